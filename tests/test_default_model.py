"""The model that ships: used where none is named, said so, exact on request, refused once changed."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import litemed.runtime
from litemed.benchmarks.phantoms import draw_image
from litemed.models.checkpoint import read_checkpoint
from litemed.runtime import bundle as bundles
from litemed.runtime.bundle import Bundle
from litemed.runtime.cli import main
from litemed.runtime.errors import BundleError

PHANTOM = draw_image(120, 160, 3)


@pytest.fixture
def case(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "2DBox_US_a.npz"
    np.savez(path, imgs=PHANTOM.image, boxes=PHANTOM.boxes)
    return path


def test_the_command_says_once_which_model_it_uses(case: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "segs"
    result = CliRunner().invoke(main, [str(case), "-o", str(out)])
    assert result.exit_code == 0, result.output
    name = Bundle.default().name
    assert result.stderr.count(f"model {name}, which ships with litemed") == 1
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["bundle"] == name
    quiet = CliRunner().invoke(main, [str(case), "-o", str(out), "--quiet", "--overwrite"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_the_call_says_it_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "litemed"):
        segmenter = litemed.runtime.load(precision="exact")
    assert caplog.messages == [f"model {Bundle.default().name}, which ships with litemed"]
    assert segmenter.engine.precision == "float32"
    labels = segmenter.segment(PHANTOM.image, PHANTOM.boxes)
    for label in range(1, 4):
        found, drawn = labels == label, PHANTOM.labels == label
        assert 2 * (found & drawn).sum() / (found.sum() + drawn.sum()) > 0.85


def test_it_was_made_from_the_weights_beside_it() -> None:
    weights = pathlib.Path(__file__).parents[1] / "weights" / "light.safetensors"
    recorded = Bundle.default().manifest.weights
    assert (recorded.sha256, recorded.trained) == (read_checkpoint(weights).sha256, True)


def test_every_precision_in_it_passes_where_it_was_measured() -> None:
    for precision in Bundle.default().manifest.precisions.values():
        if precision.agreement is not None:
            assert all(precision.passes(engine) for engine in precision.agreement.engines)


@pytest.mark.parametrize(
    ("file", "fault"),
    [("encoder.onnx", "sha256"), ("manifest.json", "manifest.json"), ("decoder.onnx", "missing")],
)
def test_a_changed_file_is_one_line_and_nothing_is_written(
    file: str, fault: str, case: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundles.DEFAULT, copy)
    if fault == "missing":
        (copy / file).unlink()
    elif fault == "JSON":
        (copy / file).write_bytes((copy / file).read_bytes()[:-100])
    else:
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
    monkeypatch.setattr(bundles, "DEFAULT", copy)
    with pytest.raises(BundleError, match="install it again"):
        Bundle.default()
    out = tmp_path / "segs"
    result = CliRunner().invoke(main, [str(case), "-o", str(out)])
    assert result.exit_code != 0
    (line,) = result.output.splitlines()
    assert str(copy / file) in line
    assert fault in line
    assert not out.exists()
