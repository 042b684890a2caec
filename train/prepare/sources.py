"""Find the pairs of images and labels in a folder, a file or an index, and take a part of them.

What a SOURCE may be is told by `litemed-prepare --help`.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Final

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import same_name_key
from litemed.runtime.inputs.pictures import PICTURE_SUFFIXES
from litemed.runtime.inputs.volumes import VOLUMES
from litemed.runtime.modalities import find_modality, modality_of_name, parse_modality

SPLITS: Final = ("train", "val", "test")
_SUFFIXES: Final = (*VOLUMES, *PICTURE_SUFFIXES)
_PARTS: Final = ("images", "labels")
_SPLIT_FOLDERS: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Pair:
    """One image, or volume, and its labels. label: None where the image file holds both (challenge npz)."""

    modality: str
    source: str
    case: str
    split: str
    image: Path
    label: Path | None
    licence: str = ""
    attribution: str = ""
    licence_status: str = ""

    @property
    def name(self) -> str:
        """What error messages call this pair."""
        return f"{self.modality}/{self.source}/{self.case}"


@dataclass(frozen=True)
class SourceOptions:
    """How pairs are found.

    modality: for files whose folder and name do not say theirs.
    val_fraction: share of `val` among cases without a split, drawn by a hash of source and case, so that a
    case keeps its side when others come or go. licence_status: of the rows of an index that count; None: all.
    """

    modality: str | None = None
    val_fraction: float = 0.1
    licence_status: tuple[str, ...] | None = None

    def draw_split(self, source: str, case: str) -> str:
        """Return the split of a case that has none."""
        digest = hashlib.sha256(f"{source}/{case}".encode()).digest()
        return "val" if int.from_bytes(digest[:8]) < self.val_fraction * 2**64 else "train"


@dataclass(frozen=True)
class Found:
    """pairs, distinct by name, sorted by modality, source, split and case; problems, one line each.

    unread: of each source that is a folder without an index, the files in it and below that are of no kind
    that is read there.
    """

    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()
    unread: Mapping[Path, Sequence[Path]] = field(default_factory=dict)


def find_pairs(sources: Sequence[Path], options: SourceOptions) -> Found:
    """Return every pair in `sources`.

    Raises UsageError where a source does not exist or none of them holds a pair.
    """
    found: list[Pair | str] = []
    unread: dict[Path, list[Path]] = {}
    for source in sources:
        index = source / "index.csv" if source.is_dir() else source
        if index.suffix.lower() == ".csv" and index.is_file():
            found += _in_index(index, options)
        elif source.is_dir():
            found += _in_folder(source, options)
            unread[source] = [path for path in source.rglob("[!.]*") if path.is_file() and not _is_read(path)]
        elif source.suffix.lower() == ".npz" and source.is_file():
            found.append(_placed_pair(source, None, source.stem, source.parent, source.parent, options))
        else:
            raise UsageError(f"{source}: no such folder, index CSV or training npz")
    problems = [line for line in found if isinstance(line, str)]
    usable = [pair for pair in found if isinstance(pair, Pair)]
    pairs: dict[str, Pair] = {}
    for pair in sorted(
        _told_apart(usable), key=lambda p: (p.modality, p.source, p.split, p.case, str(p.image))
    ):
        # Names become file names, and not every file system tells A from a.
        first = pairs.setdefault(same_name_key(pair.name), pair)
        if first is not pair:
            problems.append(f"{pair.image}: is called {pair.name} like {first.image}; give a column `case`")
    if not pairs:
        reason = problems[0] if problems else "no images/ with labels/, npz, or row of such a licence status"
        raise UsageError(f"{', '.join(map(str, sources))}: no pair of image and labels found ({reason})")
    return Found(tuple(pairs.values()), tuple(problems), unread)


def _told_apart(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """Yield all pairs; where images of several folders share a name, with the folders in front."""
    sharing: dict[str, list[Pair]] = {}
    for pair in pairs:
        sharing.setdefault(same_name_key(pair.name), []).append(pair)
    for group in sharing.values():
        folders = [pair.image.parent.absolute() for pair in group]
        common = Path(os.path.commonpath(folders))
        for pair, folder in zip(group, folders, strict=True):
            yield replace(pair, case="_".join((*folder.relative_to(common).parts, pair.case)))


def select(
    found: Found, splits: Sequence[str] = (), limit: int | None = None, exclude: Sequence[str] = ()
) -> Found:
    """Return pairs of these splits (all if none), at most `limit` of each modality, none to exclude.

    With a limit the sources of a modality take turns, and the splits come in the order given.
    Raises UsageError where nothing is left, or a source to exclude is unknown.
    """
    for source in exclude:
        if not any(pair.source == source for pair in found.pairs):
            raise UsageError(f"source {source!r} to exclude: no pair comes from it; check its name")
    order = splits or SPLITS
    pairs = [pair for pair in found.pairs if pair.source not in exclude and pair.split in order]
    if not pairs:
        raise UsageError(f"no pair of {', '.join(order)} is left of {len(found.pairs)}; choose another part")
    if limit is not None:
        turns: Counter[tuple[str, str]] = Counter()
        ranks: dict[Pair, tuple[str, int, int]] = {}
        for pair in sorted(pairs, key=lambda pair: order.index(pair.split)):
            turns[pair.modality, pair.source] += 1
            ranks[pair] = (pair.modality, turns[pair.modality, pair.source], order.index(pair.split))
        by_modality = groupby(sorted(pairs, key=ranks.__getitem__), key=lambda pair: pair.modality)
        chosen = {pair for _, ranked in by_modality for pair in islice(ranked, limit)}
        pairs = [pair for pair in pairs if pair in chosen]
    return replace(found, pairs=tuple(pairs))


def _in_index(index: Path, options: SourceOptions) -> Iterator[Pair | str]:
    """Yield the pairs of an index CSV; for a row that cannot be used the line that says why."""
    try:
        with index.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            missing = {"modality", "image", "label"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{index}: no column {', '.join(sorted(missing))}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{index}: cannot be read as an index CSV ({error})") from error
    for number, row in enumerate(rows, start=2):
        if options.licence_status is None or row.get("licence_status", "") in options.licence_status:
            try:
                yield _pair_of_row(index.parent, row, f"{index}: line {number}", options)
            except InputError as error:
                yield str(error)


def _pair_of_row(base: Path, row: dict[str, str], where: str, options: SourceOptions) -> Pair:
    modality = parse_modality(row["modality"], where)
    if not row["image"] or not row["label"]:
        raise InputError(f"{where}: no image or label path")
    if "\0" in row["image"] + row["label"]:
        raise InputError(f"{where}: a path with a null byte; correct it")
    source = row.get("source") or base.resolve().name
    case = row.get("case") or _stem(base / row["image"])
    split = row.get("split") or options.draw_split(source, case)
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    label = None if row["label"] == row["image"] else base / row["label"]
    terms = (row.get(key, "") for key in ("licence", "attribution", "licence_status"))
    return Pair(modality, source, case, split, base / row["image"], label, *terms)


def _in_folder(root: Path, options: SourceOptions) -> Iterator[Pair | str]:
    """Yield the pairs below a folder, and a line for each file that lacks its partner."""
    for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
        if not ((folder / "images").is_dir() and (folder / "labels").is_dir()):
            continue
        images, labels = _by_stem(folder / "images"), _by_stem(folder / "labels")
        for stem in sorted(images.keys() | labels.keys()):
            image, label = images.get(stem, []), labels.get(stem, [])
            if len(image) == len(label) == 1:
                yield _placed_pair(image[0], label[0], stem, folder, root, options)
            else:
                yield f"{(image or label)[0]}: give one file {stem}.* in images and one in labels"
    for path in sorted(root.rglob("*.npz")):
        yield _placed_pair(path, None, path.stem, path.parent, root, options)


def _placed_pair(
    image: Path, label: Path | None, case: str, folder: Path, root: Path, options: SourceOptions
) -> Pair | str:
    """Return the pair of which the folders from `folder` up to `root` say what it is, the nearest first."""
    names = [*reversed(folder.relative_to(root).parts), root.resolve().name]
    modality = next(filter(None, map(find_modality, names)), None)
    modality = modality or modality_of_name(case) or options.modality
    if modality is None:
        return f"{image}: modality unknown; name its folder after it, or give --modality for all such files"
    split = next((_SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in _SPLIT_FOLDERS), None)
    plain = [name for name in names if not find_modality(name) and name.lower() not in _SPLIT_FOLDERS]
    source = plain[0] if plain else names[-1]
    return Pair(modality, source, case, split or options.draw_split(source, case), image, label)


def _is_read(path: Path) -> bool:
    """Return whether a file in a folder of data is read, or named if it cannot be."""
    name = path.name.lower()
    return name.endswith(".npz") or (path.parent.name in _PARTS and name.endswith(_SUFFIXES))


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found = [path for path in folder.iterdir() if path.name.lower().endswith(_SUFFIXES)]
    shown = sorted((path for path in found if not path.name.startswith(".")), key=lambda p: (_stem(p), p))
    return {stem: list(paths) for stem, paths in groupby(shown, key=_stem)}


def _stem(path: Path) -> str:
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
