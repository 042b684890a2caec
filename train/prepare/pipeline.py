"""A whole run: from found pairs to a folder of training slices or of test cases."""

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from litemed.runtime import files
from litemed.runtime.errors import InputError, UsageError
from litemed.train.prepare.labelled_pairs import doubt_of
from litemed.train.prepare.pool import map_in_order
from litemed.train.prepare.slices import Settings, TrainingSlice, case_name, make_slices, write_case
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import FORMAT, MANIFEST, Part, open_shard, write_shard

MARKER: Final = "prepare.json"
_WHERE: Final = ("modality", "source", "split")
_TERMS: Final = ("modality", "source", "licence", "attribution", "licence_status")
# A shard is put together in memory: image files of so many bytes, each counted as a 256th at least, make
# 70 MB of pictures and 150 MB of volumes.
_PART_BYTES: Final = 32 * 2**20


@dataclass(frozen=True)
class Summary:
    """What a run did: counts by name, as in the manifest, and a line for each pair that could not be used."""

    total: dict[str, int]
    failed: Sequence[str]


def prepare(
    found: Found,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    on_done: Callable[[int, Sequence[str], Sequence[str]], object] = lambda done, failed, doubts: None,
) -> Summary:
    """Write training slices, or test cases, of all pairs below `out`.

    Shards of slices that are there already, of the same input and settings, are kept; cases are made anew.
    on_done: called with the number of pairs done since the last call, a line for each that failed, and one
    for each that may not be meant so.

    Raises UsageError where `out` belongs to something else or two pairs would share a file, OutputError where
    it cannot be written.
    """
    plans = plan_parts(found.pairs)
    made_of: dict[str, Any] = {"settings": asdict(settings)}
    if settings.cases:
        names = {files.same_name_key(case_name(pair, False)): pair.name for pair in found.pairs}
        if twice := {pair.name for pair in found.pairs}.difference(names.values()):
            raise UsageError(f"{min(twice)}: another pair would share the name of its case; rename one")
        made_of["pairs"] = list(names.values())
    parts: list[Part] = []
    files.make_folder(out)
    with files.FolderLock(out):
        marker = out / MARKER
        same = marker.is_file() and marker.read_bytes() == _as_json(made_of)
        if not same and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise UsageError(f"{out}: was not made of the same with the same settings; take another folder")
        _write_json(marker, made_of)
        # Until the run has ended there is no manifest.
        for path in (out / MANIFEST, *out.glob("cases/*.npz"), *out.glob("gts/*.npz")):
            path.unlink(missing_ok=True)
        built = map_in_order(partial(_build_and_doubt, out=out, settings=settings), plans, workers)
        for (_, pairs), (part, doubts) in zip(plans, built, strict=True):
            parts.append(part)
            on_done(len(pairs), part.failed, doubts)
        failed = [line for part in parts for line in part.failed]
        groups = groupby(parts, key=lambda part: _pick(part, _WHERE))
        manifest: dict[str, Any] = {
            "litemed": importlib.metadata.version("litemed"),
            "settings": asdict(settings),
            "problems": [*found.problems, *failed],
            "terms": [dict(entry) for entry in sorted({_pick(pair, _TERMS) for pair in found.pairs})],
            "counts": [dict(where) | _total(list(group)) for where, group in groups],
            "total": _total(parts),
        }
        if settings.cases:
            manifest["cases"] = [{"file": f, **dict(_pick(p, _WHERE))} for p in parts for f in p.cases]
        else:
            keys = (*_WHERE, "file", "key", "bytes", "sha256")
            manifest["shards"] = [dict(_pick(part, keys)) for part in parts if part.tally.get("slices")]
        _write_json(out / MANIFEST, manifest)
    return Summary(_total(parts), failed)


def _pick(value: object, names: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, getattr(value, name)) for name in names)


def _total(parts: Sequence[Part]) -> dict[str, int]:
    total = Counter(cases=0)
    for part in parts:
        total.update(part.tally, cases=len(part.cases))
    return dict(total)


def plan_parts(pairs: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    """Divide `pairs` into parts of one modality, source and split; name the shard of each."""
    plans: dict[str, tuple[str, list[Pair]]] = {}
    filled: Counter[str] = Counter()
    for pair in pairs:
        stem = f"{re.sub(r'[^A-Za-z0-9._-]', '_', pair.source)}-{pair.split}"
        place = f"{pair.modality}/{stem}"
        name = f"{stem}-{filled[place] // _PART_BYTES:05d}"
        size = pair.image.stat().st_size if pair.image.is_file() else 0
        filled[place] += max(size, _PART_BYTES // 256)
        file = files.output_path(Path(pair.modality), name, ".npy").as_posix()
        part = plans.setdefault(files.same_name_key(file), (file, []))[1]
        part.append(pair)
        if part[0].source != pair.source:
            raise UsageError(f"sources {part[0].source!r} and {pair.source!r} share a file name; rename one")
    return list(plans.values())


def _build_and_doubt(plan: tuple[str, list[Pair]], out: Path, settings: Settings) -> tuple[Part, list[str]]:
    """Return what `_build` does, and a line for each pair that may not be meant so."""
    return _build(plan, out, settings), [line for pair in plan[1] if (line := doubt_of(pair))]


def _build(plan: tuple[str, list[Pair]], out: Path, settings: Settings) -> Part:
    """Make test cases, or a shard below `out` unless it is there already, of the same input and settings.

    A pair that cannot be used is named in the record, and the rest goes on; such a shard is made anew
    in the next run. The JSON is written last, so that a shard with one is whole.
    """
    file, pairs = plan
    path, record = out / file, (out / file).with_suffix(".json")
    key = ""
    if not settings.cases:
        about = [asdict(pair) | {"image": _hash(pair.image), "label": _hash(pair.label)} for pair in pairs]
        key = hashlib.sha256(json.dumps([FORMAT, asdict(settings), about]).encode()).hexdigest()
        with contextlib.suppress(InputError):
            ready, _ = open_shard(out, file)
            if ready.key == key and not ready.failed:
                return ready
        files.make_folder(path.parent)
        record.unlink(missing_ok=True)
    cases: list[str] = []
    slices: list[list[TrainingSlice]] = []
    tally: Counter[str] = Counter()
    failed: list[str] = []
    for pair in pairs:
        try:
            if settings.cases:
                name, counts = write_case(pair, out, settings)
                cases += [name] if counts["boxes"] else []
            else:
                shown, counts = make_slices(pair, settings)
                cases.append(pair.case)
                slices.append(shown)
            tally.update(counts)
        except InputError as error:
            failed.append(str(error))
    part = Part(pairs[0].modality, pairs[0].source, pairs[0].split, cases, dict(tally), failed)
    if not settings.cases:
        write_shard(path, slices)
        size, digest = path.stat().st_size, files.sha256_of_file(path)
        part = replace(part, file=file, key=key, bytes=size, sha256=digest)
        _write_json(record, asdict(part))
    return part


def _hash(path: Path | None) -> str | None:
    try:
        return None if path is None else files.sha256_of_file(path)
    except OSError:
        return "missing"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    files.remove_leftovers(path)
    with files.atomic_write(path) as stream:
        stream.write(_as_json(content))


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps({"format": FORMAT, **content}, indent=1) + "\n").encode()
