"""Which cases there are, and what their files hold.

A case is one file of the ground-truth folder, NAME.npz with `gts` and, for a volume, `spacing`: mm along the
axes of `gts`, in their order. A run is a folder with NAME.npz files that hold `segs`, as `litemed-run` writes
them. With trivial predictors there is a folder of the cases themselves, NAME.npz with `imgs` and `boxes`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litemed.benchmarks.evaluate.metrics import LabelMap
from litemed.benchmarks.evaluate.surface import Spacing
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import modality_of_name, parse_modality
from litemed.runtime.npz import NpzReader

# The most that a uint16 label map holds, as in the runtime.
_MAX_LABEL = 65_535
_LISTED = 3


@dataclass(frozen=True)
class Run:
    """One set of predictions: a name for the tables and the folder of its NAME.npz files."""

    name: str
    folder: Path


@dataclass(frozen=True)
class EvaluatedCase:
    """A case to score.

    Attributes:
        name: file name without suffix, the same in every folder.
        modality: one of `litemed.runtime.modalities.MODALITIES`.
        truth: the ground truth's file.
        source: the case's own file with image and boxes; None where no predictor needs it.
    """

    name: str
    modality: str
    truth: Path
    source: Path | None = None


def find_cases(
    truths: Path,
    runs: Sequence[Run],
    *,
    sources: Path | None = None,
    modalities: Mapping[str, str] | None = None,
) -> list[EvaluatedCase]:
    """Return every case of a ground-truth folder, by name.

    Args:
        truths: folder of NAME.npz with `gts`.
        runs: checked to have at least one of the cases each.
        sources: folder of NAME.npz with `imgs` and `boxes`; then every case must be there.
        modalities: case name -> modality, for the cases whose names do not begin with one.

    Raises:
        UsageError: no case at all, a run without any of them, a case without source or modality.
    """
    found = sorted(path for path in truths.glob("*.npz") if path.is_file())
    if not found:
        raise UsageError(f"{truths}: no .npz file; give the folder of the ground truth")
    for run in runs:
        if not any((run.folder / path.name).is_file() for path in found):
            raise UsageError(
                f"{run.folder}: has none of the {len(found)} cases of {truths}; names must be equal"
            )
    named = {path: (modalities or {}).get(path.stem) or modality_of_name(path.stem) for path in found}
    if unknown := [path.stem for path in found if named[path] is None]:
        advice = "name the files like 2DBox_US_0525 or give --modalities"
        raise UsageError(f"{truths}: no modality known for {_listed(unknown)}; {advice}")
    if sources and (missing := [path.stem for path in found if not (sources / path.name).is_file()]):
        advice = "trivial predictors need every case"
        raise UsageError(f"{sources}: no image and boxes of {_listed(missing)}; {advice}")
    return [
        EvaluatedCase(path.stem, modality, path, sources / path.name if sources else None)
        for path, modality in named.items()
        if modality is not None
    ]


def read_modalities(path: Path) -> dict[str, str]:
    """Return case name -> modality from a CSV with the columns `case` and `modality`.

    Raises InputError where it cannot be read, lacks a column or names an unknown modality.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV ({error})") from error
    table = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}: line {number}"
        if not row.get("case") or not row.get("modality"):
            raise InputError(f"{where} has no case or no modality; the columns are case,modality")
        table[row["case"].removesuffix(".npz")] = parse_modality(row["modality"], where)
    return table


def read_truth(path: Path) -> tuple[LabelMap, Spacing | None]:
    """Read NAME.npz with `gts`: the labels, at least one above 0, and mm along the axes of a volume.

    Raises InputError naming the file.
    """
    with NpzReader(path) as archive:
        labels = _check_labels(archive.read("gts"), f"{path}: gts")
        spacing = archive.read("spacing") if labels.ndim == 3 and "spacing" in archive.names else None
    if not labels.any():
        raise InputError(f"{path}: no label above 0, nothing to score; leave the case out")
    if labels.ndim == 2:
        return labels, None
    if spacing is None:
        raise InputError(f"{path}: a volume without `spacing`, which NSD in mm needs; add it")
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf":
        raise InputError(f"{path}: spacing has shape {spacing.shape}; give three lengths in mm, one per axis")
    z, y, x = (float(length) for length in spacing)
    if not (np.isfinite(spacing).all() and min(z, y, x) > 0):
        raise InputError(f"{path}: spacing {(z, y, x)}; lengths are positive")
    return labels, (z, y, x)


def read_prediction(path: Path) -> LabelMap:
    """Read NAME.npz with `segs`; raises InputError naming the file."""
    with NpzReader(path) as archive:
        return _check_labels(archive.read("segs"), f"{path}: segs")


def _check_labels(labels: np.ndarray, name: str) -> LabelMap:
    if labels.dtype.kind not in "ui":
        raise InputError(f"{name} has dtype {labels.dtype}; labels are integers")
    if labels.ndim not in (2, 3):
        raise InputError(f"{name} has shape {labels.shape}; give (height, width) or (depth, height, width)")
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > _MAX_LABEL:
        raise InputError(f"{name} has labels from {low} to {high}; they must lie in 0 to {_MAX_LABEL}")
    return labels


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} case(s) ({', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''})"
