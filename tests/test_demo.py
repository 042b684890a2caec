"""README's first command: drawn cases, and masks that a person would call right."""

from __future__ import annotations

import pathlib

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from litemed.benchmarks.demo import DEMO, main
from litemed.benchmarks.phantoms import boxes_of
from litemed.runtime.cli import main as run
from litemed.runtime.dice import dice_by_label


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder after README's first command."""
    folder = tmp_path_factory.mktemp("demo")
    overlays = ("--overlay", str(folder / "overlays"))
    for command, *arguments in (
        (main, str(folder)),
        (run, str(folder / "cases"), "-o", str(folder / "segs"), *overlays),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("name", DEMO)
def test_the_model_that_ships_finds_every_object(demo: pathlib.Path, name: str) -> None:
    truth = np.load(demo / "gts" / f"{name}.npz")["gts"]
    found = np.load(demo / "segs" / f"{name}.npz")["segs"]
    scores = dice_by_label(found, truth, int(truth.max()))
    assert scores.min() > 0.9, scores
    picture = cv2.imread(str(demo / "overlays" / f"{name}.png"))
    assert picture is not None
    assert picture.shape[1] == 768


def test_boxes_are_those_of_the_objects_and_the_cup_lies_within_the_disc(demo: pathlib.Path) -> None:
    for name in DEMO:
        case = np.load(demo / "cases" / f"{name}.npz")
        truth = np.load(demo / "gts" / f"{name}.npz")["gts"]
        expected = boxes_of(truth, len(case["boxes"]))
        if "Fundus" in name:
            disc, cup = expected
            assert (disc[:2] < cup[:2]).all()
            assert (disc[2:] > cup[2:]).all()
        np.testing.assert_array_equal(case["boxes"], expected)
