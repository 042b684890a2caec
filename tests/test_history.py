"""What a run writes about its course: CSV log, picture, and TensorBoard's events where it is installed."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from litemed.train.history import EventLog, Row, untrained_row, write_history
from litemed.train.validation import ValidationScores

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None


def rows() -> list[Row]:
    dsc, ellipse = {"CT": 0.25, "US": 0.75}, {"CT": 0.5, "US": 0.7}
    scores = ValidationScores(dsc, ellipse, {"CT": 1, "US": 1}, skipped=1)
    trained = {"samples": 8, "lr": 1e-4, "loss": 0.5, "dice": 0.25, "focal": 0.125, "iou": 0.125}
    trained["cross_entropy"] = 0.75
    trained |= {"skipped": 0, "seconds": 2.0, "samples_per_second": 4.0, "wait_share": 0.0}
    scored = {"epoch": 2, **trained, "dsc": 0.5, "ellipse": 0.6, "dsc_CT": 0.25, "dsc_US": 0.75}
    return [untrained_row(scores), {"epoch": 1, **trained, "dsc": None, "ellipse": None}, scored]


def test_the_log_keeps_what_was_not_measured_empty(tmp_path: Path) -> None:
    write_history(tmp_path, rows())
    with (tmp_path / "log.csv").open(newline="") as stream:
        base, first, second = csv.DictReader(stream)
    assert (base["epoch"], base["loss"], base["dsc"], base["skipped"]) == ("0", "", "0.5", "1")
    assert (first["loss"], first["dsc"], first["ellipse"], first["dsc_CT"]) == ("0.5", "", "", "")
    assert base["ellipse"] == second["ellipse"] == "0.6"
    assert (second["lr"], second["dsc_CT"], second["dsc_US"]) == ("0.0001", "0.25", "0.75")


def test_equal_histories_give_equal_pictures_and_others_do_not(tmp_path: Path) -> None:
    pictures = []
    for name, history in (("a", rows()), ("b", rows()), ("c", rows()[:1])):
        (tmp_path / name).mkdir()
        write_history(tmp_path / name, history)
        pictures.append((tmp_path / name / "loss.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    decoded = cv2.imdecode(np.frombuffer(pictures[0], np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.std() > 5


@pytest.mark.skipif(HAS_TENSORBOARD, reason="TensorBoard is installed here")
def test_without_tensorboard_there_are_no_events(tmp_path: Path) -> None:
    events = EventLog(tmp_path)
    events.add(rows()[-1])
    events.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_TENSORBOARD, reason="TensorBoard is not installed here")
def test_events_hold_every_row_and_only_what_was_measured(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for folder in (tmp_path / "run", None):
        events = EventLog(folder)
        for row in rows():
            events.add(row)
        events.close()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    found = EventAccumulator(str(tmp_path / "run/tensorboard"))
    found.Reload()
    values = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
    assert values["dsc"] == [(0, 0.5), (2, 0.5)]
    assert values["dsc/US"] == [(0, 0.75), (2, 0.75)]
    assert values["loss"] == [(1, 0.5), (2, 0.5)]
    assert values["cross_entropy"] == [(1, 0.75), (2, 0.75)]
