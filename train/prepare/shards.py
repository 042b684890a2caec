"""Plan the shards of a run, and make one: the unit of parallel work and of going on after an interruption."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError, LitemedError, UsageError
from litemed.runtime.files import atomic_write, make_folder, output_path, remove_leftovers, sha256_of_file
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.slices import Tally, make_slices
from litemed.train.prepare.sources import Pair
from litemed.train.prepare.store import FORMAT, ShardBuilder, ShardEntry, index_path, read_json

# A shard stays below about 70 MB for images and 150 MB for volumes: it is put together in memory.
MAX_PAIRS: Final = 256
MAX_IMAGE_BYTES: Final = 32 * 2**20


@dataclass(frozen=True)
class ShardPlan:
    """The pairs that make up one shard. file: its path below the output folder."""

    file: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Failure:
    """A pair that could not be used, and the one line that says why."""

    name: str
    error: str


@dataclass(frozen=True)
class ShardRecord:
    """What the JSON beside a shard says.

    entry: bytes are 0 and hashes "" where the shard has no slice; its key is the hash of input files,
    pairs and settings. cases: names, by the number that the index has; also those that show no object.
    terms: distinct licence, attribution and licence status.
    """

    entry: ShardEntry
    cases: tuple[str, ...]
    terms: tuple[tuple[str, str, str], ...]
    tally: Tally
    failed: tuple[Failure, ...]


def plan_shards(pairs: Sequence[Pair]) -> list[ShardPlan]:
    """Divide sorted `pairs` into shards of one modality, source and split.

    Raises UsageError where two sources would share a file name.
    """
    plans: list[ShardPlan] = []
    owner: dict[str, str] = {}
    for (modality, source, split), group in groupby(pairs, key=lambda p: (p.modality, p.source, p.split)):
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", source)
        if owner.setdefault(f"{modality}/{stem}".lower(), source) != source:
            first = owner[f"{modality}/{stem}".lower()]
            raise UsageError(f"sources {first!r} and {source!r} would share the file name {stem}; rename one")
        for number, part in enumerate(_parts(list(group))):
            path = output_path(Path(modality), f"{stem}-{split}-{number:05d}", ".npy")
            plans.append(ShardPlan(path.as_posix(), part))
    return plans


def _parts(pairs: list[Pair]) -> list[tuple[Pair, ...]]:
    parts: list[list[Pair]] = []
    size = 0
    for pair in pairs:
        more = pair.image.stat().st_size if pair.image.is_file() else 0
        if not parts or len(parts[-1]) >= MAX_PAIRS or size + more > MAX_IMAGE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(pair)
        size += more
    return [tuple(part) for part in parts]


def build_shard(plan: ShardPlan, out: Path, settings: Settings) -> ShardRecord:
    """Make the shard of `plan` below `out`, unless it is there already, made of the same input and settings.

    A pair that cannot be used is named in the record, and the rest goes on; such a shard is made anew
    in the next run. The JSON is written last, so that a shard with one is whole.
    """
    path = out / plan.file
    key = _key(plan, settings)
    ready = read_record(path)
    if ready is not None and ready.entry.key == key and not ready.failed and _is_whole(path, ready.entry):
        return ready
    make_folder(path.parent)
    for file in (path, index_path(path), path.with_suffix(".json")):
        remove_leftovers(file)
    path.with_suffix(".json").unlink(missing_ok=True)
    builder = ShardBuilder()
    tally = Tally()
    cases: list[str] = []
    failed: list[Failure] = []
    for pair in plan.pairs:
        try:
            slices, counted = make_slices(pair, settings)
        except LitemedError as error:
            failed.append(Failure(pair.name, str(error)))
            continue
        for part in slices:
            builder.add(len(cases), part)
        cases.append(pair.case)
        tally += counted
    size, index_size = 0, 0
    if tally.slices:
        size, index_size = _write_npy(path, builder.data), _write_npy(index_path(path), builder.index)
    else:
        path.unlink(missing_ok=True)
        index_path(path).unlink(missing_ok=True)
    first = plan.pairs[0]
    entry = ShardEntry(
        file=plan.file,
        modality=first.modality,
        source=first.source,
        split=first.split,
        slices=tally.slices,
        key=key,
        bytes=size,
        sha256=sha256_of_file(path) if size else "",
        index_bytes=index_size,
        index_sha256=sha256_of_file(index_path(path)) if index_size else "",
    )
    terms = sorted({(p.licence, p.attribution, p.licence_status) for p in plan.pairs})
    record = ShardRecord(entry, tuple(cases), tuple(terms), tally, tuple(failed))
    with atomic_write(path.with_suffix(".json")) as stream:
        stream.write(json.dumps({"format": FORMAT, **asdict(record)}, indent=1).encode())
    return record


def read_record(data: Path) -> ShardRecord | None:
    """Return the record beside shard `data`, or None where there is none that can be read."""
    try:
        content = read_json(data.with_suffix(".json"))
        return ShardRecord(
            entry=ShardEntry(**content["entry"]),
            cases=tuple(content["cases"]),
            terms=tuple((licence, attribution, status) for licence, attribution, status in content["terms"]),
            tally=Tally(**content["tally"]),
            failed=tuple(Failure(**failure) for failure in content["failed"]),
        )
    except (InputError, KeyError, TypeError, ValueError):
        return None


def _is_whole(path: Path, entry: ShardEntry) -> bool:
    files = ((path, entry.bytes), (index_path(path), entry.index_bytes))
    return all((file.stat().st_size if file.is_file() else 0) == size for file, size in files)


def _key(plan: ShardPlan, settings: Settings) -> str:
    described = [
        {**asdict(pair), "image": _hash_or_missing(pair.image), "label": _hash_or_missing(pair.label)}
        for pair in plan.pairs
    ]
    text = json.dumps({"format": FORMAT, "settings": asdict(settings), "pairs": described}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_or_missing(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return sha256_of_file(path)
    except OSError:
        return "missing"


def _write_npy(path: Path, array: NDArray[Any]) -> int:
    with atomic_write(path) as stream:
        np.save(stream, array, allow_pickle=False)
    return path.stat().st_size
