"""README's first command: drawn cases, and masks that a person would call right."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np
from click.testing import CliRunner

from litemed.benchmarks.demo import DEMO, main
from litemed.benchmarks.phantoms import boxes_of
from litemed.runtime.cli import main as run
from litemed.runtime.dice import dice_by_label


def test_the_model_that_ships_finds_every_object(tmp_path: pathlib.Path) -> None:
    overlays = ("--overlay", str(tmp_path / "overlays"))
    for command, *arguments in (
        (main, str(tmp_path)),
        (run, str(tmp_path / "cases"), "-o", str(tmp_path / "segs"), *overlays),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
    for name in DEMO:
        boxes = np.load(tmp_path / "cases" / f"{name}.npz")["boxes"]
        truth = np.load(tmp_path / "gts" / f"{name}.npz")["gts"]
        found = np.load(tmp_path / "segs" / f"{name}.npz")["segs"]
        scores = dice_by_label(found, truth, int(truth.max()))
        assert scores.min() > 0.9, (name, scores)
        assert cv2.imread(str(tmp_path / "overlays" / f"{name}.png")).shape[1] == 768
        np.testing.assert_array_equal(boxes, boxes_of(truth, len(boxes)))
        if "Fundus" in name:  # the cup lies within the disc
            assert (boxes[0, :2] < boxes[1, :2]).all()
            assert (boxes[0, 2:] > boxes[1, 2:]).all()
