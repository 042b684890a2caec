"""A whole run: from found pairs to a folder of training slices or of test cases.

An output folder belongs to what it was made of (prepare.json); all else is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar

from litemed.runtime import files
from litemed.runtime.errors import InputError, UsageError
from litemed.train.prepare.cases import case_name, write_case
from litemed.train.prepare.pool import map_in_order
from litemed.train.prepare.settings import CaseSettings, Settings
from litemed.train.prepare.slices import COUNTS, make_slices
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import FORMAT, MANIFEST, Part, Shard, index_path, open_shard, write_shard

Made = TypeVar("Made")

MARKER: Final = "prepare.json"
# A shard is put together in memory: image files of so many bytes, each counted as a 256th at least, make
# 70 MB of pictures and 150 MB of volumes.
_PART_BYTES: Final = 32 * 2**20

OnDone = Callable[[int, Sequence[str]], object]
"""Called with the number of pairs done since the last call, and a line for each that could not be used."""


@dataclass(frozen=True)
class Summary:
    """What a run did. total: counts by name, as in the manifest; failed: a line for each unusable pair."""

    manifest: Path
    total: dict[str, int]
    failed: Sequence[str]


def prepare(
    found: Found,
    out: Path,
    settings: Settings,
    *,
    workers: int = 1,
    on_done: OnDone = lambda done, failed: None,
) -> Summary:
    """Write training slices, or with CaseSettings test cases, of all pairs below `out`.

    Shards of slices that are there already, of the same input and settings, are kept; cases are made anew.
    The result does not depend on the number of workers, nor on whether the run was interrupted.

    Raises UsageError where `out` belongs to something else or two pairs would share a file, OutputError where
    it cannot be written.
    """
    plans = plan_parts(found.pairs)
    made_of: dict[str, Any] = {"mode": "slices", "settings": asdict(settings)}
    build: Callable[..., Part] = _build_shard
    if isinstance(settings, CaseSettings):
        names = {files.same_name_key(case_name(pair, False)): pair.name for pair in found.pairs}
        if twice := {pair.name for pair in found.pairs}.difference(names.values()):
            raise UsageError(f"{min(twice)}: another pair would share the name of its case; rename one")
        made_of |= {"mode": "cases", "pairs": list(names.values())}
        build = _build_cases
    parts: list[Part] = []
    with _own_folder(out, made_of):
        for path in (*out.glob("cases/*.npz"), *out.glob("gts/*.npz")):
            path.unlink()
        built = map_in_order(partial(build, out=out, settings=settings), plans, workers)
        for (_, pairs), part in zip(plans, built, strict=True):
            parts.append(part)
            on_done(len(pairs), part.failed)
        failed = [line for part in parts for line in part.failed]
        terms = ("modality", "source", "licence", "attribution", "licence_status")
        where = ("modality", "source", "split")
        if isinstance(settings, CaseSettings):
            listed = {"cases": [{"file": f, **dict(_pick(p, where))} for p in parts for f in p.cases]}
        else:
            keys = (*where, "file", "key", "bytes", "sha256")
            listed = {"shards": [dict(_pick(part, keys)) for part in parts if part.tally["slices"]]}
        manifest = {
            "litemed": importlib.metadata.version("litemed"),
            "settings": asdict(settings),
            "problems": [*found.problems, *failed],
            "terms": [dict(entry) for entry in sorted({_pick(pair, terms) for pair in found.pairs})],
            "counts": [
                dict(key) | _total(list(group))
                for key, group in groupby(parts, key=lambda part: _pick(part, where))
            ],
            "total": _total(parts),
            **listed,
        }
        _write_json(out / MANIFEST, manifest)
    return Summary(out / MANIFEST, _total(parts), failed)


def _pick(value: object, names: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, getattr(value, name)) for name in names)


def _total(parts: Sequence[Part]) -> dict[str, int]:
    cases = sum(len(part.cases) for part in parts)
    return {"cases": cases} | {name: sum(part.tally[name] for part in parts) for name in parts[0].tally}


def plan_parts(pairs: Sequence[Pair]) -> list[tuple[str, list[Pair]]]:
    """Divide sorted `pairs` into parts of one modality, source and split; name the shard of each.

    Raises UsageError where two sources would share a file name.
    """
    plans: dict[str, tuple[str, list[Pair]]] = {}
    for (modality, source, split), group in groupby(pairs, key=lambda p: (p.modality, p.source, p.split)):
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", source)
        parts: list[list[Pair]] = []
        room = 0
        for pair in group:
            size = max(pair.image.stat().st_size if pair.image.is_file() else 0, _PART_BYTES // 256)
            if not parts or size > room:
                parts.append([])
                room = _PART_BYTES
            parts[-1].append(pair)
            room -= size
        for number, part in enumerate(parts):
            file = files.output_path(Path(modality), f"{stem}-{split}-{number:05d}", ".npy").as_posix()
            _, first = plans.setdefault(files.same_name_key(file), (file, part))
            if first is not part:
                raise UsageError(f"sources {first[0].source!r} and {source!r} share a file name; rename one")
    return list(plans.values())


def _build_shard(plan: tuple[str, list[Pair]], out: Path, settings: Settings) -> Part:
    """Make a shard below `out`, unless it is there already, made of the same input and settings.

    A pair that cannot be used is named in the record, and the rest goes on; such a shard is made anew
    in the next run. The JSON is written last, so that a shard with one is whole.
    """
    file, pairs = plan
    path, record = out / file, (out / file).with_suffix(".json")
    hashes = [_hash_or_missing(path) for pair in pairs for path in (pair.image, pair.label)]
    described = {"settings": asdict(settings), "pairs": [asdict(pair) for pair in pairs], "hashes": hashes}
    key = hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()
    with contextlib.suppress(InputError):
        ready, _ = open_shard(out, file)
        if ready.key == key and not ready.failed:
            return ready
    files.make_folder(path.parent)
    for part in (path, index_path(path)):
        files.remove_leftovers(part)
    record.unlink(missing_ok=True)
    made, failed = _use(pairs, lambda pair: make_slices(pair, settings))
    tally = {name: sum(counts[name] for _, counts in made.values()) for name in COUNTS}
    write_shard(path, [slices for slices, _ in made.values()])
    first, written = pairs[0], (file, key, path.stat().st_size, files.sha256_of_file(path))
    shard = Shard(first.modality, first.source, first.split, list(made), tally, failed, *written)
    _write_json(record, asdict(shard))
    return shard


def _build_cases(plan: tuple[str, list[Pair]], out: Path, settings: CaseSettings) -> Part:
    _, pairs = plan
    made, failed = _use(pairs, lambda pair: write_case(pair, out, settings))
    written = [case for case in made.values() if case is not None]
    tally = {"boxes": sum(boxes for _, boxes in written), "cases_without_object": len(made) - len(written)}
    first = pairs[0]
    return Part(first.modality, first.source, first.split, [file for file, _ in written], tally, failed)


def _use(pairs: Sequence[Pair], make: Callable[[Pair], Made]) -> tuple[dict[str, Made], list[str]]:
    """Return what `make` makes of each pair, by its case, and a line for each pair that cannot be used."""
    made: dict[str, Made] = {}
    failed: list[str] = []
    for pair in pairs:
        try:
            made[pair.case] = make(pair)
        except InputError as error:
            failed.append(str(error))
    return made, failed


def _hash_or_missing(path: Path | None) -> str | None:
    try:
        return None if path is None else files.sha256_of_file(path)
    except OSError:
        return "missing"


@contextlib.contextmanager
def _own_folder(out: Path, made_of: dict[str, Any]) -> Iterator[None]:
    """Make `out` the folder of this run alone, or refuse one that is another's."""
    files.make_folder(out)
    with files.FolderLock(out):
        marker = out / MARKER
        same = marker.is_file() and marker.read_bytes() == _as_json(made_of)
        if not same and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise UsageError(f"{out}: was not made of the same with the same settings; take another folder")
        _write_json(marker, made_of)
        # What it tells is true no longer.
        (out / MANIFEST).unlink(missing_ok=True)
        yield


def _write_json(path: Path, content: dict[str, Any]) -> None:
    files.remove_leftovers(path)
    with files.atomic_write(path) as stream:
        stream.write(_as_json(content))


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps({"format": FORMAT, **content}, indent=1) + "\n").encode()
