"""The on-disk form of training slices.

    DATA/manifest.json                           what there is; written last
    DATA/MODALITY/SOURCE-SPLIT-00000.npy         uint8 (bytes,): image, then labels, of slice after slice
    DATA/MODALITY/SOURCE-SPLIT-00000.index.npy   one record a slice: where it lies, its shape, its case
    DATA/MODALITY/SOURCE-SPLIT-00000.json        the shard's cases and what was left out of it

Why memory-mapped shards. A loader draws slices at random, and a sample is 64 to 260 kB: compressed
archives would inflate a whole volume for one slice, and a file for each slice means millions of files,
which no file system copies or lists gladly. In a shard a sample is one contiguous read, uncompressed,
the page cache is shared by all loader processes, and a shard is small enough to be made again when
preparing was interrupted. Image and labels lie together because they are always read together.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.files import sha256_of_file
from litemed.train.prepare.slices import TrainingSlice

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
# Open maps a process keeps; each holds a file descriptor, and 1024 is the usual limit.
_MAX_OPEN: Final = 256

INDEX_DTYPE: Final = np.dtype(
    [
        ("offset", "<u8"),
        ("case", "<u4"),
        ("z", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
        ("channels", "u1"),
        ("label_bytes", "u1"),
        ("objects", "<u4"),
    ]
)


@dataclass(frozen=True)
class SliceInfo:
    """Where a slice comes from. z: its number in the volume, 0 in 2D. objects: how many it shows."""

    modality: str
    source: str
    split: str
    case: str
    z: int
    objects: int


@dataclass
class ShardBuilder:
    """Collects the slices of one shard in memory; `data` and `index` are what goes to disk."""

    chunks: list[NDArray[np.uint8]] = field(default_factory=list)
    records: list[tuple[int, ...]] = field(default_factory=list)
    offset: int = 0

    def add(self, case: int, part: TrainingSlice) -> None:
        """Append a slice of the shard's case number `case`."""
        labels = part.objects.labels
        little = labels.astype(labels.dtype.newbyteorder("<"), copy=False)
        height, width = labels.shape
        channels = 3 if part.image.ndim == 3 else 1
        self.records.append(
            (self.offset, case, part.z, height, width, channels, labels.itemsize, len(part.objects))
        )
        for array in (part.image, little):
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self.chunks.append(flat)
            self.offset += flat.size

    @property
    def data(self) -> NDArray[np.uint8]:
        """All images and labels, (bytes,)."""
        return np.concatenate(self.chunks)

    @property
    def index(self) -> NDArray[Any]:
        """One INDEX_DTYPE record for each slice."""
        return np.array(self.records, INDEX_DTYPE)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest names it; bytes and hashes are of whole files. file: path below the folder."""

    file: str
    modality: str
    source: str
    split: str
    slices: int
    key: str
    bytes: int
    sha256: str
    index_bytes: int
    index_sha256: str


@dataclass(frozen=True)
class _Shard:
    entry: ShardEntry
    path: Path
    data_size: int
    cases: tuple[str, ...]


class Slices:
    """Prepared slices, read at random.

        slices = Slices.open("DATA", split="train")
        image, labels = slices[0]

    Can be pickled and used after a fork: every process maps the files for itself.
    """

    def __init__(self, shards: Sequence[_Shard], shard_of: NDArray[np.int32], index: NDArray[Any]) -> None:
        self._shards = tuple(shards)
        self._shard_of = shard_of
        self._index = index
        self._maps: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    @classmethod
    def open(
        cls, folder: str | Path, *, split: str | None = None, modalities: Sequence[str] | None = None
    ) -> Slices:
        """Open a prepared folder, or the part of it of one split and of some modalities.

        Reads the indices and checks the size of every shard, not its bytes: see `verify`.
        Raises InputError where the folder was not prepared to the end, or a shard is missing, cut
        short or not the one that the manifest names.
        """
        folder = Path(folder)
        shards: list[_Shard] = []
        indices: list[NDArray[Any]] = []
        for entry in read_entries(folder):
            if split is not None and entry.split != split:
                continue
            if modalities is not None and entry.modality not in modalities:
                continue
            shard, index = _open_shard(folder, entry)
            shards.append(shard)
            indices.append(index)
        counts = [len(index) for index in indices]
        shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
        return cls(shards, shard_of, np.concatenate(indices) if indices else np.empty(0, INDEX_DTYPE))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return slice `i`: image uint8 (h, w) or (h, w, 3) RGB, labels unsigned (h, w), both copies.

        The longest side is 256; objects are numbered from 1 to `info(i).objects`, 0 is background.
        """
        record = self._index[i]
        data = self._map(int(self._shard_of[i]))
        height, width, channels = int(record["height"]), int(record["width"]), int(record["channels"])
        start = int(record["offset"])
        middle = start + height * width * channels
        label_bytes = int(record["label_bytes"])
        stop = middle + height * width * label_bytes
        shape = (height, width, 3) if channels == 3 else (height, width)
        image = np.array(data[start:middle]).reshape(shape)
        labels = np.array(data[middle:stop]).view(f"<u{label_bytes}").reshape(height, width)
        return image, labels

    def info(self, i: int) -> SliceInfo:
        """Return where slice `i` comes from."""
        record, shard = self._index[i], self._shards[int(self._shard_of[i])]
        return SliceInfo(
            modality=shard.entry.modality,
            source=shard.entry.source,
            split=shard.entry.split,
            case=shard.cases[int(record["case"])],
            z=int(record["z"]),
            objects=int(record["objects"]),
        )

    @property
    def objects(self) -> NDArray[np.int64]:
        """How many objects each slice shows, (len,)."""
        return self._index["objects"].astype(np.int64)

    def indices_by_modality(self) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the slices of each modality that has any, ascending."""
        names = np.array([shard.entry.modality for shard in self._shards])
        return {
            str(name): np.flatnonzero(np.isin(self._shard_of, np.flatnonzero(names == name)))
            for name in dict.fromkeys(names)
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}

    def _map(self, number: int) -> NDArray[np.uint8]:
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        shard = self._shards[number]
        data = _load(shard.path, mmap=True)
        if data.dtype != np.uint8 or data.shape != (shard.data_size,):
            raise InputError(f"{shard.path}: holds {data.shape} {data.dtype}; prepare the data anew")
        if len(self._maps) >= _MAX_OPEN:
            self._maps.popitem(last=False)
        self._maps[number] = data
        return data


def verify(folder: Path) -> None:
    """Check every byte of a prepared folder against the hashes in its manifest.

    Raises InputError at the first file that differs or cannot be read.
    """
    for entry in read_entries(folder):
        path = folder / entry.file
        for file, expected in ((path, entry.sha256), (index_path(path), entry.index_sha256)):
            try:
                found = sha256_of_file(file)
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
            if found != expected:
                raise InputError(f"{file}: differs from the manifest; delete it and prepare again")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises InputError where there is none of this format."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not of format {FORMAT}; prepare the data anew with this version")
    return content


def index_path(data: Path) -> Path:
    """Return the path of the index of shard `data`."""
    return data.with_suffix(".index.npy")


def read_entries(folder: Path) -> list[ShardEntry]:
    """Return the shards that the manifest of a prepared folder names.

    Raises InputError where the folder was not prepared to its end, or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no {MANIFEST}; run litemed-prepare to its end first")
    content = read_json(path)
    try:
        entries = [ShardEntry(**entry) for entry in content["shards"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: does not list training slices; run litemed-prepare again") from error
    for entry in entries:
        if Path(entry.file).is_absolute() or ".." in Path(entry.file).parts:
            raise InputError(f"{path}: names {entry.file!r}, which is outside the folder")
    return entries


def _open_shard(folder: Path, entry: ShardEntry) -> tuple[_Shard, NDArray[Any]]:
    path = folder / entry.file
    for file, size in ((path, entry.bytes), (index_path(path), entry.index_bytes)):
        if not file.is_file():
            raise InputError(f"{file}: missing; run litemed-prepare again")
        if file.stat().st_size != size:
            raise InputError(
                f"{file}: {file.stat().st_size} bytes instead of {size}; run litemed-prepare again"
            )
    index = _load(index_path(path), mmap=False)
    if index.dtype != INDEX_DTYPE or index.shape != (entry.slices,):
        raise InputError(
            f"{index_path(path)}: not the index of {entry.slices} slices; run litemed-prepare again"
        )
    pixels = index["height"].astype(np.int64) * index["width"]
    ends = index["offset"].astype(np.int64) + pixels * (
        index["channels"].astype(np.int64) + index["label_bytes"]
    )
    cases = read_json(path.with_suffix(".json")).get("cases", [])
    if not isinstance(cases, list) or index["case"].max(initial=0) >= len(cases):
        raise InputError(f"{path.with_suffix('.json')}: lacks names of cases; run litemed-prepare again")
    return _Shard(entry, path, int(ends.max(initial=0)), tuple(map(str, cases))), index


def _load(path: Path, *, mmap: bool) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run litemed-prepare again") from error
