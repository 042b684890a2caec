"""Find the pairs of images and labels in a folder, a file or an index.

A SOURCE is one of

- an index CSV, or a folder that holds an `index.csv`. Columns: `modality`, `image`, `label` (paths
  relative to the CSV) and, where known, `source`, `case`, `split` (train, val or test), `labels`
  (binary, class or instance), `licence`, `attribution`, `licence_status`;
- a folder of `images/` and `labels/` with files of the same name (any of the readers' types; the
  `_0000` that nnU-Net adds to an image's name is ignored), directly or below folders named after
  modality, data set and split: `CT/images`, `MR/my_data/images`, `val/US/images`;
- challenge training npz (`imgs`, `gts`), anywhere below the folder, or one such file.

Where a folder does not say a modality, the start of the file name may (`CT_Abd_0001.npz`), or the
caller gives one for all.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from litemed.runtime.errors import InputError, LitemedError, UsageError
from litemed.runtime.files import same_name_key
from litemed.runtime.modalities import find_modality, modality_of_name, parse_modality

SPLITS: Final = ("train", "val", "test")
LABEL_KINDS: Final = ("binary", "class", "instance")
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES: Final = (".nii.gz", ".nii")
_SUFFIXES: Final = (*NIFTI_SUFFIXES, *IMAGE_SUFFIXES)
_SPLIT_FOLDERS: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Pair:
    """One image, or volume, and its labels.

    label: None where the image file holds both (challenge npz).
    kind: "binary" and "class" labels may fall into several components, "instance" ones do not.
    """

    modality: str
    source: str
    case: str
    split: str
    kind: str
    image: Path
    label: Path | None
    licence: str = ""
    attribution: str = ""
    licence_status: str = ""

    @property
    def name(self) -> str:
        """What error messages and progress call this pair."""
        return f"{self.modality}/{self.source}/{self.case}"


@dataclass(frozen=True)
class SourceOptions:
    """How pairs are found.

    modality: for files whose folder and name do not say theirs; kind: of labels that do not say theirs.
    val_fraction: share of the cases without a split that go to `val`, drawn by a hash of source and
    case, so that a case keeps its side when others come or go.
    licence_status: index rows with another status are left out; None takes all.
    """

    modality: str | None = None
    kind: str = "class"
    val_fraction: float = 0.1
    licence_status: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction <= 1:
            raise UsageError(f"validation fraction {self.val_fraction}: must lie between 0 and 1")
        if self.kind not in LABEL_KINDS:
            raise UsageError(f"label kind {self.kind!r}: use one of {', '.join(LABEL_KINDS)}")


@dataclass(frozen=True)
class Found:
    """pairs, sorted and distinct by name; problems, one line each; rows left out by their licence status."""

    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()
    licence_left_out: int = 0


@dataclass
class _Collector:
    options: SourceOptions
    pairs: list[Pair] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    licence_left_out: int = 0

    def split_of(self, source: str, case: str) -> str:
        digest = hashlib.sha256(f"{source}/{case}".encode()).digest()
        return "val" if int.from_bytes(digest[:8]) < self.options.val_fraction * 2**64 else "train"


def find_pairs(sources: Sequence[Path], options: SourceOptions, index: Path | None = None) -> Found:
    """Return every pair in `sources`, sorted by modality, source, split and case.

    index: a CSV that lies elsewhere, with paths relative to the one folder in `sources`.

    Raises UsageError where a source does not exist or none of them holds a pair.
    """
    collector = _Collector(options)
    if index is not None:
        if len(sources) != 1 or not sources[0].is_dir():
            raise UsageError(f"{index}: an index needs one SOURCE, the folder that its paths start from")
        _read_index(index, sources[0], collector)
        sources = ()
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: no such file or folder")
        if source.is_dir():
            inside = source / "index.csv"
            if inside.is_file():
                _read_index(inside, source, collector)
            else:
                _scan_folder(source, collector)
        elif source.suffix.lower() == ".csv":
            _read_index(source, source.parent, collector)
        elif source.suffix.lower() == ".npz":
            _add_npz(source, source.parent, collector)
        else:
            raise UsageError(f"{source}: not a folder, index CSV or training npz")
    if not collector.pairs:
        reason = collector.problems[0] if collector.problems else "no images/ with labels/, npz or index.csv"
        if collector.licence_left_out:
            reason = f"all {collector.licence_left_out} rows are left out by their licence status"
        where = ", ".join(map(str, (index, *sources) if index else sources))
        raise UsageError(f"{where}: no pair of image and labels found ({reason})")
    return _distinct(collector)


def _distinct(collector: _Collector) -> Found:
    by_name: dict[str, Pair] = {}
    problems = collector.problems
    ordered = sorted(collector.pairs, key=lambda p: (p.modality, p.source, p.split, p.case, str(p.image)))
    for pair in ordered:
        # Names become file names, and not every file system tells A from a.
        first = by_name.setdefault(same_name_key(pair.name), pair)
        if first is not pair:
            problems.append(
                f"{pair.image}: a second case called {pair.name} (first: {first.image}); rename one"
            )
    return Found(tuple(by_name.values()), tuple(problems), collector.licence_left_out)


def _read_index(index: Path, base: Path, collector: _Collector) -> None:
    try:
        with index.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            missing = {"modality", "image", "label"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{index}: no column {', '.join(sorted(missing))}")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{index}: cannot be read as an index CSV ({error})") from error
    if not rows:
        raise UsageError(f"{index}: has no row below its columns; list a pair of image and label in each")
    allowed = collector.options.licence_status
    for number, row in enumerate(rows, start=2):
        if allowed is not None and row.get("licence_status", "") not in allowed:
            collector.licence_left_out += 1
            continue
        try:
            collector.pairs.append(_row_pair(base, row, f"{index}: line {number}", collector))
        except LitemedError as error:
            collector.problems.append(str(error))


def _row_pair(base: Path, row: dict[str, str], where: str, collector: _Collector) -> Pair:
    modality = parse_modality(row["modality"], where)
    if not row["image"] or not row["label"]:
        raise InputError(f"{where}: no image or label path")
    image, label = base / row["image"], base / row["label"]
    source = row.get("source") or base.resolve().name
    case = row.get("case") or _stem(image)
    split = row.get("split") or collector.split_of(source, case)
    kind = row.get("labels") or collector.options.kind
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split!r}; use one of {', '.join(SPLITS)}")
    if kind not in LABEL_KINDS:
        raise InputError(f"{where}: unknown kind of labels {kind!r}; use one of {', '.join(LABEL_KINDS)}")
    return Pair(
        modality=modality,
        source=source,
        case=case,
        split=split,
        kind=kind,
        image=image,
        label=None if image == label else label,
        licence=row.get("licence", ""),
        attribution=row.get("attribution", ""),
        licence_status=row.get("licence_status", ""),
    )


def _scan_folder(root: Path, collector: _Collector) -> None:
    for folder in (root, *sorted(path for path in root.rglob("*") if path.is_dir())):
        if (folder / "images").is_dir() and (folder / "labels").is_dir():
            _add_folder(folder, root, collector)
    for path in sorted(root.rglob("*.npz")):
        _add_npz(path, root, collector)


def _add_folder(folder: Path, root: Path, collector: _Collector) -> None:
    images, labels = _by_stem(folder / "images"), _by_stem(folder / "labels")
    for stem in list(images):
        plain = stem.removesuffix("_0000")
        if stem not in labels and plain in labels:
            images.setdefault(plain, []).extend(images.pop(stem))
    for stem in sorted(images.keys() | labels.keys()):
        found, wanted = images.get(stem, []), labels.get(stem, [])
        if len(found) == 1 and len(wanted) == 1:
            _add_pair(found[0], wanted[0], stem, folder, root, collector)
        elif not wanted:
            collector.problems.append(f"{found[0]}: no file {stem}.* in {folder / 'labels'}")
        elif not found:
            collector.problems.append(f"{wanted[0]}: no file {stem}.* in {folder / 'images'}")
        else:
            twice = found if len(found) > 1 else wanted
            collector.problems.append(f"{twice[0]}: {twice[1].name} has the same name; keep one")


def _add_npz(path: Path, root: Path, collector: _Collector) -> None:
    _add_pair(path, None, path.stem, path.parent, root, collector)


def _add_pair(
    image: Path, label: Path | None, case: str, folder: Path, root: Path, collector: _Collector
) -> None:
    # The nearest folder that says something counts; those above SOURCE are not the user's to name.
    names = [part.name for part in _upwards(folder, root)]
    modality = next((found for name in names if (found := find_modality(name))), None)
    modality = modality or modality_of_name(case) or collector.options.modality
    if modality is None:
        collector.problems.append(
            f"{image}: modality unknown; name its folder after it, or give --modality for all such files"
        )
        return
    split = next((_SPLIT_FOLDERS[name.lower()] for name in names if name.lower() in _SPLIT_FOLDERS), None)
    plain = [n for n in names if not find_modality(n) and n.lower() not in _SPLIT_FOLDERS]
    source = plain[0] if plain else root.resolve().name
    collector.pairs.append(
        Pair(
            modality=modality,
            source=source,
            case=case,
            split=split or collector.split_of(source, case),
            kind=collector.options.kind,
            image=image,
            label=label,
        )
    )


def _upwards(folder: Path, root: Path) -> list[Path]:
    folder, root = folder.resolve(), root.resolve()
    above = [folder, *folder.parents]
    return above[: above.index(root) + 1] if root in above else above


def _by_stem(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(_SUFFIXES) and not path.name.startswith("."):
            found.setdefault(_stem(path), []).append(path)
    return found


def _stem(path: Path) -> str:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem
