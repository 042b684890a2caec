"""Write a bundle: export, simplify, check, verify and measure in a folder beside the target, then move it."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from litemed.export.agreement import measure_agreement
from litemed.export.graphs import check, graph_specs, simplify, to_onnx
from litemed.export.manifest import FLOAT32, Contents
from litemed.export.precisions import Plan, PrecisionOptions, plan
from litemed.export.quantise import KEY, KEY_BF16, quantise
from litemed.export.verify import BOX_COUNTS, COMPACT, Parity, judge, measure, references, sample_images
from litemed.models.checkpoint import Checkpoint
from litemed.runtime.bundle import MANIFEST
from litemed.runtime.errors import OutputError
from litemed.runtime.precision import Agreement, Precision

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        name: of the bundle; None takes the folder's.
        overwrite: replace a bundle that lies at the target.
        size: side of the network's input in pixels, a multiple of 64; 256 as published.
        box_counts: numbers of boxes to verify.
        precisions: what to offer beside float32.
        compact: store weights as float16; they are computed with in float32 all the same.
    """

    name: str | None = None
    overwrite: bool = False
    size: int = 256
    box_counts: Sequence[int] = BOX_COUNTS
    precisions: PrecisionOptions = field(default_factory=PrecisionOptions)
    compact: bool = False


def write_bundle(
    checkpoint: Checkpoint,
    out: str | pathlib.Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda line: None,
) -> list[Parity]:
    """Export a checkpoint to a bundle folder that appears whole or not at all.

    Whoever exports the model that ships (`runtime/model`) puts the sha256 of its new manifest beside
    `litemed.runtime.bundle.DEFAULT`.

    Args:
        checkpoint: complete weights, adapters folded.
        out: the folder to create.
        options: see `ExportOptions`.
        progress: is told each step.

    Returns:
        all comparisons with PyTorch, before and after simplification and as stored.

    Raises:
        ExportError: a graph could not be written, simplified, quantised or checked.
        VerificationError: a graph does not reproduce the PyTorch model.
        OutputError: the target exists or cannot be written.
        UsageError: what a precision needs is missing.
        InputError: an image or a case for a precision cannot be used.
        EngineError: an engine failed at a precision.
    """
    out = pathlib.Path(out)
    options = options or ExportOptions()
    _check_target(out, options.overwrite)
    planned = plan(options.precisions)
    model = checkpoint.model(options.size)
    specs = graph_specs(model)
    with _staging(out) as staging:
        progress("writing the graphs")
        exported = {spec.name: to_onnx(spec) for spec in specs}
        progress("simplifying and checking them")
        simplified = {spec.name: simplify(exported[spec.name], spec.name) for spec in specs}
        for spec in specs:
            check(exported[spec.name], spec)
            check(simplified[spec.name], spec)
        progress("running PyTorch for reference")
        expected = list(references(model, sample_images(), max(options.box_counts)))
        name = options.name or out.resolve().name
        contents = Contents(name, checkpoint, options.size, specs, simplified, compact=options.compact)
        stages = {
            "exported": replace(contents, graphs=exported, compact=False),
            "simplified": replace(contents, compact=False),
        } | ({COMPACT: contents} if options.compact else {})
        parity: list[Parity] = []
        for stage, some in stages.items():
            some.write(staging / stage)
            parity += measure(staging / stage, stage, expected, options.box_counts, progress)
            if stage != "exported":
                judge(parity)
        contents = replace(contents, parity=parity)
        if planned.attempts:
            contents = _with_precisions(contents, planned, staging / "candidate", progress)
        contents.write(staging / "finished")
        _move(staging / "finished", out, options.overwrite)
    return parity


def _with_precisions(
    contents: Contents, planned: Plan, candidate: pathlib.Path, progress: Progress
) -> Contents:
    """Make the graphs of the planned precisions, measure them in a folder, and add those that pass."""
    encoder, decoder = contents.specs
    graphs, specs = dict(contents.graphs), [encoder, decoder]
    if planned.images:
        wanted = {one.encoder for attempts in planned.attempts.values() for one in attempts}
        keys = [key for key in (KEY, KEY_BF16) if key in wanted]
        made = quantise(graphs[encoder.name], planned.images, contents.size, progress, keys)
        for key, graph in made.items():
            specs.append(replace(encoder, name=key))
            graphs[key] = graph
            check(graph, specs[-1])

    def offering(precisions: Mapping[str, Precision]) -> Contents:
        used = {key for one in precisions.values() for key in (one.encoder, one.decoder)}
        return replace(
            contents, graphs=graphs, specs=[s for s in specs if s.name in used], precisions=precisions
        )

    def measure_them(precisions: Mapping[str, Precision]) -> Mapping[str, Agreement]:
        shutil.rmtree(candidate, ignore_errors=True)
        offering(FLOAT32 | dict(precisions)).write(candidate)
        return measure_agreement(candidate, list(precisions), planned.cases, progress)

    return offering(planned.passing(measure_them, progress))


def _check_target(out: pathlib.Path, overwrite: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: exists and is not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise OutputError(f"{out}: is a folder with other files in it; name a new one")
        if not overwrite:
            raise OutputError(f"{out}: a bundle lies here already; pass --overwrite to replace it")
        others = sorted(p.name for p in out.iterdir() if p.name != MANIFEST and p.suffix != ".onnx")
        if others:
            raise OutputError(f"{out}: beside a bundle holds {', '.join(others[:5])}, which would be lost")


@contextlib.contextmanager
def _staging(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside the target, removed at the end whatever happens."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as folder:
            yield pathlib.Path(folder)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error


def _move(folder: pathlib.Path, out: pathlib.Path, overwrite: bool) -> None:
    """Put a finished folder in the target's place; an older bundle gives way only then."""
    _check_target(out, overwrite)  # again, for what has come to lie there meanwhile
    if not out.exists():
        folder.rename(out)
        return
    old = folder.with_name("old")
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
