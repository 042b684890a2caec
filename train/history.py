"""What a run writes about its course: a CSV log, a picture of it, and TensorBoard's events where installed.

A row of the history, one an epoch: `epoch` (from 1; 0 for the weights the run starts from), `samples` (images
that counted), `lr`, the mean losses `loss`, `dice`, `focal`, `iou`, `cross_entropy` (and `embedding` of a
distillation; empty where not learnt), `dsc` (the macro mean on the validation slices, empty when not
measured), `ellipse` (that of the ellipses in the boxes), `skipped` slices, `seconds`, `samples_per_second`,
`wait_share` (of the time, spent waiting for the loader) and `dsc_MODALITY` for each modality.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from litemed.runtime.files import atomic_write
from litemed.train.validation import ValidationScores

LOSSES = ("dice", "focal", "iou", "cross_entropy")
"""The parts of the loss of masks: fields of `litemed.train.losses.LossParts`."""

EMBEDDING = "embedding"
"""The part that a distillation adds, see `litemed.train.distill`."""

_PARTS = (EMBEDDING, *LOSSES)

LOG = "log.csv"
EVENTS = "tensorboard"
_FIRST = (
    *("epoch", "samples", "lr", "loss", *LOSSES, "dsc", "ellipse"),
    *("skipped", "seconds", "samples_per_second", "wait_share"),
)
CURVE = "loss.png"
Row = dict[str, Any]


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Replace log and picture in a run's folder. Raises OutputError when they cannot be written."""
    write_log(folder / LOG, rows)
    draw_curves(folder / CURVE, rows)


def write_log(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV; a column for every key that occurs."""
    names = list(dict.fromkeys([*_FIRST, *sorted({name for row in rows for name in row})]))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _short(value) for name, value in row.items()})
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


def draw_curves(path: Path, rows: Sequence[Row]) -> None:
    """Draw the losses, and the validation DSC by modality, over the epochs as a PNG."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in ("loss", *(name for name in _PARTS if any(name in row for row in rows))):
        _plot(left, rows, name, name, bold=name == "loss")
    scored = [row for row in rows if row["dsc"] is not None]
    modalities = sorted({name for row in scored for name in row if name.startswith("dsc_")})
    for name in modalities:
        _plot(right, scored, name, name.removeprefix("dsc_"))
    if scored:
        _plot(right, scored, "dsc", "macro", bold=True)
        _plot(right, scored, "ellipse", "ellipse in the box")
        right.legend(fontsize="small", ncols=2)
    left.legend(fontsize="small")
    left.set(xlabel="epoch", ylabel="mean training loss", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="validation DSC", ylim=(0, 1))
    with atomic_write(path) as stream:
        # Without the version in it, equal runs give equal bytes.
        figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})


class EventLog:
    """TensorBoard's events of a run, in its folder `EVENTS`.

    Nothing is written without a folder, or where TensorBoard is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer = None
        if folder is None:
            return
        with contextlib.suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / EVENTS))

    def add(self, row: Row) -> None:
        """Write one row of the history."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name.replace("dsc_", "dsc/"), value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        if self._writer is not None:
            self._writer.close()


def _plot(axes: Axes, rows: Sequence[Row], column: str, label: str, bold: bool = False) -> None:
    """Draw one column over the epochs; gaps where it has no value."""
    values = [math.nan if row.get(column) is None else row[column] for row in rows]
    style = {"color": "black", "linewidth": 2} if bold else {"linewidth": 1}
    axes.plot([row["epoch"] for row in rows], values, marker=".", label=label, **style)


def untrained_row(scores: ValidationScores) -> Row:
    """Return row 0: the scores of the weights that a run starts from, and no losses."""
    return {
        "epoch": 0,
        "samples": 0,
        "lr": None,
        **score_columns(scores),
        "skipped": scores.skipped,
    }


class Counts(NamedTuple):
    """Of an epoch: slices skipped; seconds that it took, and of these spent waiting for the loader."""

    skipped: int
    seconds: float
    waited_s: float


def trained_row(
    epoch: int, rate: float, losses: Mapping[str, float], counts: Counts, scores: ValidationScores | None
) -> Row:
    """Return the row of an epoch, from 1.

    losses: mean losses by name, and the number of `samples`. scores: None where they were not measured.
    """
    return {
        "epoch": epoch,
        "lr": rate,
        **losses,
        "skipped": counts.skipped + (scores.skipped if scores else 0),
        "seconds": counts.seconds,
        "samples_per_second": losses["samples"] / counts.seconds,
        "wait_share": counts.waited_s / counts.seconds,
        **score_columns(scores),
    }


def score_columns(scores: ValidationScores | None) -> Row:
    """Return the columns of validation scores; the first two, empty, where there was none."""
    if scores is None:
        return {"dsc": None, "ellipse": None}
    return {
        "dsc": scores.macro,
        "ellipse": scores.macro_ellipse,
        **{f"dsc_{name}": value for name, value in scores.dsc.items()},
    }


def summary(row: Row, epochs: int, is_best: bool) -> str:
    """Return the line that is printed at the end of an epoch."""
    dsc = "" if row["dsc"] is None else f" DSC {row['dsc']:.4f} (ellipse {row['ellipse']:.4f})"
    skipped = f" skipped {row['skipped']} slices" if row["skipped"] else ""
    parts = " ".join(f"{name} {row[name]:.4f}" for name in _PARTS if name in row)
    return (
        f"epoch {row['epoch']}/{epochs} loss {row['loss']:.4f} ({parts}){dsc}{' best' if is_best else ''} "
        f"lr {row['lr']:.2g} "
        f"{row['samples_per_second']:.1f} samples/s, waited {row['wait_share']:.0%}{skipped}"
    )


def _short(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
