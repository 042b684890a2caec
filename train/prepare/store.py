"""The on-disk form of training slices; docs/formats.md tells the files.

Memory-mapped, because a loader draws slices at random: compressed archives would inflate a whole volume for
one, and a file for each would be millions. A sample, 64 to 260 kB, is one contiguous read.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.files import atomic_write, remove_leftovers
from litemed.train.prepare.slices import TrainingSlice

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
INDEX_DTYPE: Final = np.dtype(
    {
        "names": ["offset", "case", "z", "height", "width", "channels", "label_bytes", "objects"],
        "formats": ["<u8", "<u4", "<u4", "<u2", "<u2", "u1", "u1", "<u4"],
    }
)


@dataclass(frozen=True)
class SliceInfo:
    """Where a slice comes from. z: its number in the volume, 0 in 2D. of_volume: whether there are others."""

    modality: str
    source: str
    split: str
    case: str
    z: int
    objects: int
    of_volume: bool = False


@dataclass(frozen=True, eq=False)
class Part:
    """What became of some pairs of one modality, source and split.

    cases: names of those in a shard, by their numbers there, or files of test cases. tally: counts of what
    was made and left out. failed: a line for each pair that could not be used. Of a shard: file, its path
    below the folder; key, a hash of input and settings.
    """

    modality: str
    source: str
    split: str
    cases: Sequence[str]
    tally: dict[str, int]
    failed: Sequence[str]
    file: str = ""
    key: str = ""
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Slices:
    """Prepared slices, read at random. index: an INDEX_DTYPE record for each, and shard_of its shard."""

    folder: Path
    shards: Sequence[Part]
    shard_of: NDArray[np.int64]
    index: NDArray[Any]

    @classmethod
    def open(cls, folder: str | Path, *, split: str | None = None) -> Slices:
        """Open a prepared folder, or the part of it of one split.

        Raises InputError where the folder was not prepared to the end, or a shard is missing or cut short.
        """
        folder = Path(folder)
        with _reading(folder / MANIFEST):
            manifest = _read_json(folder / MANIFEST)
            files = [entry["file"] for entry in manifest["shards"] if split in (None, entry["split"])]
        opened = [open_shard(folder, file) for file in files]
        indices = [index for _, index in opened]
        shard_of = np.repeat(np.arange(len(indices)), [len(index) for index in indices])
        index = np.concatenate([np.empty(0, INDEX_DTYPE), *indices])
        return cls(folder, [shard for shard, _ in opened], shard_of, index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return slice `i`: image uint8 (h, w) or (h, w, 3) RGB, labels unsigned (h, w), both copies.

        The longest side is 256; objects are numbered from 1 to `info(i).objects`, 0 is background.
        """
        start, _, _, height, width, channels, label_bytes, _ = self.index[i].tolist()
        middle = start + height * width * channels
        stop = middle + height * width * label_bytes
        data = _map(self.folder, self.shards[self.shard_of[i]])
        image = np.array(data[start:middle]).reshape(height, width, *([3] if channels == 3 else []))
        return image, np.array(data[middle:stop]).view(f"<u{label_bytes}").reshape(height, width)

    def info(self, i: int) -> SliceInfo:
        """Return where slice `i` comes from."""
        i = range(len(self))[i]
        _, case, z, *_, objects = self.index[i].tolist()
        shard = self.shards[self.shard_of[i]]
        following = self.index[i + 1 : i + 2][self.shard_of[i + 1 : i + 2] == self.shard_of[i]]
        of_volume = z > 0 or case in following["case"]
        return SliceInfo(shard.modality, shard.source, shard.split, shard.cases[case], z, objects, of_volume)

    def indices_by_modality(self) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the slices of each modality that has any, ascending."""
        modality_of = np.array([shard.modality for shard in self.shards], object)[self.shard_of]
        return {name: np.flatnonzero(modality_of == name) for name in dict.fromkeys(modality_of)}


def open_volumes(folder: Path, *, split: str) -> list[tuple[str, Path]]:
    """Return modality and file of each volume of one split among the test cases in a prepared folder.

    Raises InputError where the folder was not prepared to the end, or has none.
    """
    with _reading(folder / MANIFEST):
        cases = _read_json(folder / MANIFEST).get("cases", [])
        found = [(case["modality"], Path(case["file"]).name) for case in cases if case["split"] == split]
    volumes = [(modality, folder / "cases" / name) for modality, name in found if name.startswith("3D")]
    if not volumes:
        raise InputError(f"{folder}: no volumes of the split {split}; litemed-prepare --cases makes them")
    return volumes


# Each map holds a file descriptor, and 1024 is the usual limit.
@functools.lru_cache(maxsize=256)
def _map(folder: Path, shard: Part) -> NDArray[np.uint8]:
    path = folder / shard.file
    with _reading(path):
        data = np.load(path, "r", allow_pickle=False)
        if path.stat().st_size != shard.bytes:
            raise ValueError("it changed since it was opened")
    return data


def write_shard(path: Path, cases: Sequence[Sequence[TrainingSlice]]) -> None:
    """Write the slices of each case to shard `path`, and its index; a case's number is its place."""
    chunks = [np.empty(0, np.uint8)]
    index: list[tuple[int, ...]] = []
    offset = 0
    for case, slices in enumerate(cases):
        for part in slices:
            labels = part.objects.labels
            little = labels.astype(f"<u{labels.itemsize}", copy=False)
            shape = (*labels.shape, 3 if part.image.ndim == 3 else 1, labels.itemsize)
            index.append((offset, case, part.z, *shape, len(part.objects)))
            chunks += [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (part.image, little)]
            offset += part.image.nbytes + labels.nbytes
    arrays = {".npy": np.concatenate(chunks), ".index.npy": np.array(index, INDEX_DTYPE)}
    for suffix, array in arrays.items():
        file = path.with_suffix(suffix)
        remove_leftovers(file)
        with atomic_write(file) as stream:
            np.save(stream, array, allow_pickle=False)


def open_shard(folder: Path, file: str) -> tuple[Part, NDArray[Any]]:
    """Return what is said of the shard `file` of a folder, and its index.

    Raises InputError where it is outside the folder, or a part of it is missing or cut short.
    """
    path = folder / file
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise InputError(f"{folder / MANIFEST}: names {file!r}, which is outside the folder")
    with _reading(path):
        content = _read_json(path.with_suffix(".json"))
        # Version 0.1 has some of it one level below.
        content |= content.get("entry", {})
        shard = Part(**{field.name: content[field.name] for field in fields(Part)})
        index = np.load(path.with_suffix(".index.npy"), allow_pickle=False)
        if path.stat().st_size != shard.bytes or index.shape != (shard.tally["slices"],):
            raise ValueError("it is not what was written")
    return shard, index


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"it is not of format {FORMAT}")
    return content


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); run litemed-prepare to its end") from error
