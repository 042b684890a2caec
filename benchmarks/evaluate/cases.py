"""Which cases there are, and what their files hold.

A case is one file of the ground-truth folder, NAME.npz with `gts` and, for a volume, `spacing`: mm along the
axes of `gts`, in their order. A run is a folder with NAME.npz files that hold `segs`, as `litemed-run` writes
them. With trivial predictors there is a folder of the cases themselves, NAME.npz with `imgs` and `boxes`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litemed.benchmarks.evaluate.metrics import LabelMap, check_label_map
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.npz import NpzReader
from litemed.train.prepare.modalities import modality_of_name, parse_modality

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
        modality: one of `litemed.train.prepare.modalities.MODALITIES`.
        truth: the ground truth's file.
        source: the case's own file with image and boxes; None where no predictor needs it.
    """

    name: str
    modality: str
    truth: Path
    source: Path | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """Ground truth: labels, integer (H, W) or (D, H, W), and mm along each axis of a volume if stated."""

    labels: LabelMap
    spacing: tuple[float, ...] | None


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
    named = {path.stem: (modalities or {}).get(path.stem) or modality_of_name(path.stem) for path in found}
    _refuse(
        [name for name, modality in named.items() if modality is None],
        f"{truths}: no modality known for",
        "name the files like 2DBox_US_0525 or give --modalities",
    )
    if sources is not None:
        _refuse(
            [path.stem for path in found if not (sources / path.name).is_file()],
            f"{sources}: no image and boxes of",
            "trivial predictors need every case",
        )
    return [
        EvaluatedCase(path.stem, modality, path, sources / path.name if sources else None)
        for path in found
        if (modality := named[path.stem]) is not None
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
        case, modality = row.get("case"), row.get("modality")
        if not case or not modality:
            raise InputError(
                f"{path}: line {number} has no case or no modality; the columns are case,modality"
            )
        table[case.removesuffix(".npz")] = parse_modality(modality, f"{path}: line {number}")
    return table


def read_truth(path: Path) -> Truth:
    """Read NAME.npz with `gts`; raises InputError naming the file."""
    with NpzReader(path) as archive:
        labels = archive.read("gts")
        check_label_map(labels, f"{path}: gts")
        spacing = archive.read("spacing") if labels.ndim == 3 and "spacing" in archive.names else None
    return Truth(labels, None if spacing is None else _check_spacing(spacing, path))


def read_prediction(path: Path) -> LabelMap:
    """Read NAME.npz with `segs`; raises InputError naming the file."""
    with NpzReader(path) as archive:
        labels = archive.read("segs")
    check_label_map(labels, f"{path}: segs")
    return labels


def _check_spacing(spacing: np.ndarray, path: Path) -> tuple[float, ...]:
    if spacing.shape != (3,) or spacing.dtype.kind not in "iuf":
        raise InputError(f"{path}: spacing has shape {spacing.shape}; give three lengths in mm, one per axis")
    lengths = tuple(float(length) for length in spacing)
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise InputError(f"{path}: spacing {lengths}; lengths are positive")
    return lengths


def _refuse(names: Sequence[str], what: str, advice: str) -> None:
    if names:
        listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
        raise UsageError(f"{what} {len(names)} case(s) ({listed}); {advice}")
