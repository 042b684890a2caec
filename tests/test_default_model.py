"""The model that ships: used where none is named, said so, exact on request, refused once changed."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

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


@pytest.fixture
def case(tmp_path: pathlib.Path) -> pathlib.Path:
    draw_image(120, 160, 3).write(tmp_path / "2DBox_US_a.npz")
    return tmp_path / "2DBox_US_a.npz"


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


def test_a_script_sees_once_which_model_it_uses() -> None:
    script = "import litemed.runtime as runtime\nfor _ in range(2): runtime.load(engine='onnxruntime')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == f"model {Bundle.default().name}, which ships with litemed\n"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_it_reproduces_the_golden_outputs(name: str, light_golden: dict[str, np.ndarray]) -> None:
    """As near as weights stored as float16 allow, and with the same masks."""
    engine = litemed.runtime.load(engine=name, precision="exact").engine
    embedding = engine.encode(light_golden["image"])
    logits, _ = engine.decode(embedding, light_golden["boxes"])
    assert np.abs(embedding - light_golden["embedding"]).max() < 3e-4
    assert np.abs(logits - light_golden["logits"]).max() < 1e-2
    assert np.array_equal(logits > 0, light_golden["logits"] > 0)


def test_what_is_recorded_of_it_is_true() -> None:
    """The hash that the code has, the weights that it was made from, the gate that its precisions pass."""
    manifest = (bundles.DEFAULT / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == bundles.DEFAULT_SHA256
    recorded = Bundle.default().manifest
    weights = pathlib.Path(__file__).parents[1] / "weights" / "light.safetensors"
    assert (recorded.weights.sha256, recorded.weights.trained) == (read_checkpoint(weights).sha256, True)
    for precision in recorded.precisions.values():
        if precision.agreement is not None:
            assert not any(map(precision.shortcoming, precision.agreement.engines))


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("encoder.onnx", "sha256"),
        ("manifest.json", "damaged"),
        ("manifest.json", "another name"),
        ("decoder.onnx", "missing"),
    ],
)
def test_a_changed_file_is_one_line_and_nothing_is_written(
    file: str, fault: str, case: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(bundles.DEFAULT, copy)
    data = (copy / file).read_bytes()
    if fault == "missing":
        (copy / file).unlink()
    elif fault == "another name":
        (copy / file).write_bytes(data.replace(b'"name": "light', b'"name": "lighter', 1))
        assert Bundle.open(copy).name.startswith("lighter")
    else:
        middle = len(data) // 2
        (copy / file).write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    monkeypatch.setattr(bundles, "DEFAULT", copy)
    with pytest.raises(BundleError, match=r"; install litemed again$"):
        Bundle.default()
    out = tmp_path / "segs"
    result = CliRunner().invoke(main, [str(case), "-o", str(out)])
    assert result.exit_code != 0
    (line,) = result.output.splitlines()
    assert str(copy / file) in line
    assert line.count(";") == 1
    assert not out.exists()
