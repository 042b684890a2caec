"""What is timed against what: the columns of Table 4."""

from __future__ import annotations

import hashlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.choice import candidates
from litemed.runtime.errors import UsageError
from litemed.runtime.files import sha256_of_file

BASELINE, ABLATION, PROPOSED = "Baseline", "Ablation", "Proposed"
MODULE = "litemed.benchmarks.table4"

Kind = Literal["baseline", "ablation", "bundle", "command"]


@dataclass(frozen=True)
class Contender:
    """A column.

    Attributes:
        title: of the column.
        kind: baseline: the published procedure; ablation: a bundle, one box at a time; bundle: litemed-run;
            command: a line for the shell.
        model: checkpoint of the baseline, bundle of the next two; of a command the line itself.
        digest: sha256 of the checkpoint, of the bundle's manifest or of the command's line.
        engine: of a bundle.
        precision: of a bundle, as `litemed.runtime.engines.open_engine` takes it.
        threads: to compute with, of a bundle or the baseline; None leaves it to them.
    """

    title: str
    kind: Kind
    model: str
    digest: str
    engine: str = ""
    threads: int | None = None
    precision: str = "exact"

    @property
    def has_warm_clock(self) -> bool:
        """Whether it can be timed with its model loaded; a foreign command cannot."""
        return self.kind != "command"

    @property
    def identity(self) -> str:
        """What decides its times and label maps, the title aside."""
        return f"{self.kind} {self.digest} {self.engine} {self.precision} {self.threads}"

    @property
    def folder(self) -> str:
        """A name for its files: readable, and different for different titles."""
        readable = "".join(c if c.isalnum() else "_" for c in self.title)[:40]
        return f"{readable}-{hashlib.sha256(self.title.encode()).hexdigest()[:6]}"

    def process(self, input_folder: Path, output: Path) -> list[str]:
        """Return the command that segments the cases in a folder into another, in a process of its own."""
        if self.kind == "command":
            line = self.model.replace("{input}", shlex.quote(str(input_folder)))
            return ["/bin/sh", "-c", line.replace("{output}", shlex.quote(str(output)))]
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        files = [str(input_folder), str(output)]
        if self.kind == "baseline":
            return [sys.executable, "-m", f"{MODULE}.baseline", *files, "--checkpoint", self.model, *threads]
        options = ["--model", self.model, *self._engine_options, *threads]
        if self.kind == "ablation":
            return [sys.executable, "-m", f"{MODULE}.ablation", *files, *options]
        options += ["-o", str(output), "--quiet"]
        return [sys.executable, "-m", "litemed.runtime.cli", str(input_folder), *options]

    def worker(self) -> list[str]:
        """Return the command of a process that loads the model and then takes cases, see `worker`."""
        command = [sys.executable, "-m", f"{MODULE}.worker", self.kind, self.model]
        command += self._engine_options
        return command + ([] if self.threads is None else ["--threads", str(self.threads)])

    @property
    def _engine_options(self) -> list[str]:
        return ["--engine", self.engine, "--precision", self.precision] if self.engine else []


def standard_contenders(
    checkpoint: Path | None,
    bundle: Path,
    engine: str,
    threads: int | None,
    precision: str = "exact",
) -> tuple[Contender, ...]:
    """Return the paper's columns; without a checkpoint there is no Baseline.

    Raises:
        BundleError: the bundle cannot be used.
        UsageError: the checkpoint cannot be read.
    """
    columns = []
    if checkpoint is not None:
        try:
            digest = sha256_of_file(checkpoint)
        except OSError as error:
            raise UsageError(f"{checkpoint}: cannot be read: {error.strerror}; give a checkpoint") from error
        columns.append(Contender(BASELINE, "baseline", str(checkpoint), digest, threads=threads))
    digest = Bundle.open(bundle).digest
    columns.append(Contender(ABLATION, "ablation", str(bundle), digest, engine, threads, precision))
    columns.append(Contender(PROPOSED, "bundle", str(bundle), digest, engine, threads, precision))
    return tuple(columns)


def parse_column(text: str, threads: int | None) -> Contender:
    """Read a column that a user adds.

    Args:
        text: TITLE=BUNDLE, TITLE=BUNDLE@ENGINE or TITLE=BUNDLE@ENGINE:PRECISION for a bundle,
            TITLE=COMMAND for a line of the shell that has {input} and {output} in it, two folders.
        threads: to compute with, for a bundle.

    Raises:
        UsageError: it is neither.
        BundleError: the bundle cannot be used.
    """
    title, equals, value = text.partition("=")
    title = title.strip()
    if not equals or not title or not value.strip() or not title.isprintable() or "|" in title:
        raise UsageError(f"{text!r}: give TITLE=BUNDLE@ENGINE or TITLE='COMMAND {{input}} {{output}}'")
    if title in (BASELINE, ABLATION, PROPOSED):
        raise UsageError(f"{title}: is a column of the paper; give another title")
    if "{input}" in value or "{output}" in value:
        if "{input}" not in value or "{output}" not in value:
            raise UsageError(f"{title}: the command needs both {{input}} and {{output}}, two folders")
        return Contender(title, "command", value, hashlib.sha256(value.encode()).hexdigest())
    path, _, chosen = value.rpartition("@") if "@" in value else (value, "", "auto")
    engine, _, precision = chosen.partition(":")
    bundle = Bundle.open(path)
    candidates(bundle.manifest, engine, precision or "exact")  # refuses unknown names
    return Contender(title, "bundle", path, bundle.digest, engine, threads, precision or "exact")
