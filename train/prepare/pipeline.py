"""A whole run: from found pairs to a folder of training slices or of test cases.

An output folder belongs to the settings it was made with (prepare.json). A run that was interrupted goes
on when it is called again; other settings, or files of other input, are refused unless `overwrite` is set.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial, reduce
from itertools import groupby
from operator import add
from pathlib import Path
from typing import Any, Final

from litemed.runtime.errors import LitemedError, UsageError
from litemed.runtime.files import FolderLock, atomic_write, make_folder, remove_leftovers, same_name_key
from litemed.train.prepare.cases import case_name, make_case, write_case
from litemed.train.prepare.pool import map_unordered
from litemed.train.prepare.settings import CaseSettings, Settings
from litemed.train.prepare.shards import Failure, ShardRecord, build_shard, plan_shards
from litemed.train.prepare.slices import Tally
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import FORMAT, MANIFEST

MARKER: Final = "prepare.json"
Progress = Callable[[int], object]
"""Called with the number of pairs done since the last call."""


@dataclass(frozen=True)
class Summary:
    """What a run did. made: slices or test cases; objects: on slices, or boxes of cases."""

    manifest: Path
    made: int
    objects: int
    failed: tuple[Failure, ...]


@dataclass(frozen=True)
class _CaseOutcome:
    pair: Pair
    file: str = ""
    boxes: int = 0
    failure: Failure | None = None


def _ignore(told: object) -> None:
    """Take no notice."""


def prepare_slices(
    found: Found,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Progress = _ignore,
    on_failure: Callable[[Failure], None] = _ignore,
) -> Summary:
    """Write training slices of all pairs below `out`; see `litemed.train.prepare.store` for the form.

    Shards that are there already, of the same input and settings, are kept. The result does not depend
    on the number of workers, nor on whether the run was interrupted.

    Raises UsageError where `out` belongs to something else, OutputError where it cannot be written.
    """
    plans = plan_shards(found.pairs)
    make_folder(out)
    with FolderLock(out):
        _claim(out, "slices", settings, overwrite)
        _clear(out, {plan.file for plan in plans}, overwrite)
        records: dict[str, ShardRecord] = {}
        pairs_of = {plan.file: len(plan.pairs) for plan in plans}
        for record in map_unordered(partial(build_shard, out=out, settings=settings), plans, workers):
            records[record.entry.file] = record
            for failure in record.failed:
                on_failure(failure)
            on_progress(pairs_of[record.entry.file])
        ordered = [records[plan.file] for plan in plans]
        _write_json(out / MANIFEST, _slices_manifest(ordered, found, settings))
    total = _total(ordered)
    failed = tuple(failure for record in ordered for failure in record.failed)
    return Summary(out / MANIFEST, total.slices, total.objects, failed)


def prepare_cases(
    found: Found,
    out: Path,
    settings: CaseSettings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: Progress = _ignore,
    on_failure: Callable[[Failure], None] = _ignore,
) -> Summary:
    """Write a test case of every pair to OUT/cases and its ground truth to OUT/gts.

    Every run writes all of them, each whole or not at all, and the same bytes from the same input. Those of a
    pair that no longer gives one are removed.

    Raises UsageError where `out` belongs to something else, OutputError where it cannot be written.
    """
    pairs, failed = _distinct_names(found.pairs)
    for failure in failed:
        on_failure(failure)
    make_folder(out)
    with FolderLock(out):
        _claim(out, "cases", settings, overwrite)
        wanted = {case_name(pair, volume) for pair in pairs for volume in (False, True)}
        _remove_cases(out, wanted, overwrite)
        (out / MANIFEST).unlink(missing_ok=True)
        outcomes: dict[str, _CaseOutcome] = {}
        for outcome in map_unordered(partial(_write_one_case, out=out, settings=settings), pairs, workers):
            outcomes[outcome.pair.name] = outcome
            if outcome.failure is not None:
                failed.append(outcome.failure)
                on_failure(outcome.failure)
            on_progress(1)
        made = [outcomes[pair.name] for pair in pairs if outcomes[pair.name].boxes]
        _remove_cases(out, {Path(outcome.file).stem for outcome in made}, remove=True)
        failed.sort(key=lambda failure: failure.name)
        without = len(pairs) - len(made) - sum(o.failure is not None for o in outcomes.values())
        _write_json(out / MANIFEST, _cases_manifest(made, without, failed, found, settings))
    return Summary(out / MANIFEST, len(made), sum(outcome.boxes for outcome in made), tuple(failed))


def _remove_cases(out: Path, wanted: set[str], remove: bool) -> None:
    """Remove the cases that are not wanted, or refuse a folder that has some."""
    for path in sorted((*out.glob("cases/*.npz"), *out.glob("gts/*.npz"))):
        if path.stem not in wanted:
            if not remove:
                raise UsageError(
                    f"{out}: holds {path.name}, of input that is not given now; take another folder, or "
                    "--overwrite"
                )
            path.unlink()


def _write_one_case(pair: Pair, out: Path, settings: CaseSettings) -> _CaseOutcome:
    try:
        case = make_case(pair, settings)
    except LitemedError as error:
        return _CaseOutcome(pair, failure=Failure(pair.name, str(error)))
    if case is None:
        return _CaseOutcome(pair)
    write_case(case, out)
    return _CaseOutcome(pair, f"{case.name}.npz", len(case.boxes))


def _distinct_names(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Failure]]:
    first: dict[str, Pair] = {}
    failed: list[Failure] = []
    for pair in pairs:
        name = case_name(pair, is_volume=False)
        other = first.setdefault(same_name_key(name), pair)
        if other is not pair:
            failed.append(
                Failure(pair.name, f"{pair.image}: would share its name with {other.name}; rename one")
            )
    return list(first.values()), failed


def _claim(out: Path, mode: str, settings: Settings, overwrite: bool) -> None:
    """Make `out` the folder of this run, or refuse one that is another's."""
    marker = out / MARKER
    wanted = {"format": FORMAT, "mode": mode, "settings": asdict(settings)}
    if marker.is_file():
        try:
            same = json.loads(marker.read_text("utf-8")) == wanted
        except (OSError, ValueError):
            same = False
        if not same and not overwrite:
            raise UsageError(f"{out}: was prepared with other settings; take another folder, or --overwrite")
    elif any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UsageError(f"{out}: is not empty and was not made by litemed-prepare; take another folder")
    _write_json(marker, wanted)


def _clear(out: Path, files: set[str], overwrite: bool) -> None:
    """Remove the manifest, which is true no longer, and with `overwrite` what this run will not make."""
    records = {path.relative_to(out).with_suffix(".npy").as_posix(): path for path in out.glob("*/*.json")}
    stale = sorted(records.keys() - files)
    if stale and not overwrite:
        raise UsageError(
            f"{out}: holds {stale[0]}, of input that is not given now; take another folder, or --overwrite"
        )
    (out / MANIFEST).unlink(missing_ok=True)
    for name in stale:
        for path in (records[name], out / name, (out / name).with_suffix(".index.npy")):
            path.unlink(missing_ok=True)


def _total(records: Sequence[ShardRecord]) -> Tally:
    return reduce(add, (record.tally for record in records), Tally())


def _slices_manifest(records: Sequence[ShardRecord], found: Found, settings: Settings) -> dict[str, Any]:
    counts: list[dict[str, Any]] = []
    for (modality, source, split), group in groupby(
        records, key=lambda r: (r.entry.modality, r.entry.source, r.entry.split)
    ):
        part = list(group)
        cases = sum(len(record.cases) for record in part)
        counts.append(
            {"modality": modality, "source": source, "split": split, "cases": cases}
            | asdict(_total(part))
            | {"failed": sum(len(record.failed) for record in part)}
        )
    return {
        **_head(found, settings),
        "counts": counts,
        "total": {"cases": sum(len(record.cases) for record in records)} | asdict(_total(records)),
        "terms": _terms((r.entry.modality, r.entry.source, *terms) for r in records for terms in r.terms),
        "failed": [{"name": f.name, "error": f.error} for record in records for f in record.failed],
        "shards": [asdict(record.entry) for record in records if record.tally.slices],
    }


def _cases_manifest(
    made: Sequence[_CaseOutcome],
    without: int,
    failed: Sequence[Failure],
    found: Found,
    settings: CaseSettings,
) -> dict[str, Any]:
    return {
        **_head(found, settings),
        "total": {
            "cases": len(made),
            "boxes": sum(outcome.boxes for outcome in made),
            "cases_without_object": without,
        },
        "terms": _terms(
            (p.modality, p.source, p.licence, p.attribution, p.licence_status) for p in (o.pair for o in made)
        ),
        "failed": [{"name": failure.name, "error": failure.error} for failure in failed],
        "cases": [
            {
                "file": outcome.file,
                "modality": outcome.pair.modality,
                "source": outcome.pair.source,
                "case": outcome.pair.case,
                "split": outcome.pair.split,
                "boxes": outcome.boxes,
            }
            for outcome in made
        ],
    }


def _head(found: Found, settings: Settings) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "litemed": importlib.metadata.version("litemed"),
        "settings": asdict(settings),
        "licence_status_left_out": found.licence_left_out,
        "problems": list(found.problems),
    }


def _terms(rows: Iterable[tuple[str, str, str, str, str]]) -> list[dict[str, str]]:
    """Return, for each source once, on what terms it may be used and who must be named."""
    keys = ("modality", "source", "licence", "attribution", "licence_status")
    return [dict(zip(keys, row, strict=True)) for row in sorted(set(rows))]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    remove_leftovers(path)
    with atomic_write(path) as stream:
        stream.write((json.dumps(content, indent=1) + "\n").encode())
