"""The model that ships: named, exact on request, refused once changed, right on drawn and real images."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import litemed.runtime
from litemed.benchmarks.demo import DEMO
from litemed.benchmarks.demo import main as draw_demo
from litemed.benchmarks.phantoms import boxes_of, draw_image
from litemed.models.checkpoint import read_checkpoint
from litemed.runtime import bundle as bundles
from litemed.runtime.bundle import Bundle
from litemed.runtime.cli import main
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import BundleError
from litemed.runtime.modalities import MODALITIES
from litemed.train.prepare.cli import main as prepare


@pytest.fixture
def case(tmp_path):
    draw_image(120, 160, 3).write(tmp_path / "2DBox_US_a.npz")
    return tmp_path / "2DBox_US_a.npz"


def test_the_command_says_once_which_model_it_uses(case, tmp_path):
    out = tmp_path / "segs"
    result = CliRunner().invoke(main, [str(case), "-o", str(out)])
    assert result.exit_code == 0, result.output
    name = Bundle.default().name
    assert result.stderr.count(f"model {name}, which ships with litemed") == 1
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["bundle"] == name
    quiet = CliRunner().invoke(main, [str(case), "-o", str(out), "--quiet", "--overwrite"])
    assert (quiet.exit_code, quiet.output) == (0, "")


def test_a_script_sees_once_which_model_it_uses():
    script = "import litemed.runtime as runtime\nfor _ in range(2): runtime.load(engine='onnxruntime')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == f"model {Bundle.default().name}, which ships with litemed\n"


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_it_reproduces_the_golden_outputs(name, light_golden):
    """As near as weights stored as float16 allow, and with the same masks."""
    engine = litemed.runtime.load(engine=name, precision="exact").engine
    embedding = engine.encode(light_golden["image"])
    logits, _ = engine.decode(embedding, light_golden["boxes"])
    assert np.abs(embedding - light_golden["embedding"]).max() < 3e-4
    assert np.abs(logits - light_golden["logits"]).max() < 1e-2
    assert np.array_equal(logits > 0, light_golden["logits"] > 0)


def test_what_is_recorded_of_it_is_true():
    """The hash that the code has, the weights that it was made from, the gate that its precisions pass."""
    manifest = (bundles.DEFAULT / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == bundles.DEFAULT_SHA256
    recorded = Bundle.default().manifest
    weights = pathlib.Path(__file__).parents[1] / "weights" / "light.safetensors"
    assert (recorded.weights.sha256, recorded.weights.trained) == (read_checkpoint(weights).sha256, True)
    for name, short in (("loose_decoder", "loose"), ("tile_decoder", "tile")):
        file = weights.with_name(f"light-{short}-decoder.safetensors")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert getattr(recorded.weights, name) == {"file": file.name, "sha256": digest}
    for precision in recorded.precisions.values():
        decoders = {"decoder": "decoder", "loose_decoder": "decoder_loose", "tile_decoder": "decoder_tiles"}
        assert precision.decoders == decoders
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
def test_a_changed_file_is_one_line_and_nothing_is_written(file, fault, case, tmp_path, monkeypatch):
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


def test_the_first_command_of_readme_finds_every_object(tmp_path):
    overlays = ("--overlay", str(tmp_path / "overlays"))
    for command, *arguments in (
        (draw_demo, str(tmp_path)),
        (main, str(tmp_path / "cases"), "-o", str(tmp_path / "segs"), *overlays),
    ):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
    for name in DEMO:
        boxes = np.load(tmp_path / "cases" / f"{name}.npz")["boxes"]
        truth = np.load(tmp_path / "gts" / f"{name}.npz")["gts"]
        found = np.load(tmp_path / "segs" / f"{name}.npz")["segs"]
        scores = dice_by_label(found, truth, int(truth.max()))
        assert scores.min() > 0.9, (name, scores)
        assert 768 <= cv2.imread(str(tmp_path / "overlays" / f"{name}.png")).shape[1] <= 1600
        np.testing.assert_array_equal(boxes, boxes_of(truth, len(boxes)))
        if "Fundus" in name:  # the cup lies within the disc
            assert (boxes[0, :2] < boxes[1, :2]).all()
            assert (boxes[0, 2:] > boxes[1, 2:]).all()


@pytest.mark.slow
def test_both_engines_find_the_objects_of_every_modality_alike(shared, tmp_path):
    """One case of each modality, volumes cropped to two slices; in most, masks are those of the labels."""
    arguments = [str(shared("data/open/index.csv")), "-o", str(tmp_path), "--cases", "--limit", "1"]
    limits = ["--max-slices", "2", "--max-boxes", "4", "--workers", "1"]
    result = CliRunner().invoke(prepare, arguments + limits)
    assert result.exit_code == 0, result.output
    maps = {}
    for engine in ("onnxruntime", "openvino"):
        out = tmp_path / engine
        options = ["--engine", engine, "--precision", "exact", "--quiet"]
        result = CliRunner().invoke(main, [str(tmp_path / "cases"), "-o", str(out), *options])
        assert result.exit_code == 0, result.output
        report = json.loads((out / "report.json").read_text())
        assert all(case["status"] == "done" for case in report["cases"])
        maps[engine] = {p.stem: np.load(p, allow_pickle=False)["segs"] for p in sorted(out.glob("*.npz"))}
    first, second = maps.values()
    assert first.keys() == second.keys()
    assert sorted(name.split("_")[1] for name in first) == sorted(MODALITIES)
    overlaps = []
    for name, labels in first.items():
        truth = np.load(tmp_path / "gts" / f"{name}.npz", allow_pickle=False)["gts"]
        assert labels.shape == second[name].shape == truth.shape
        assert (labels == second[name]).mean() >= 0.999, name
        overlaps.append(2 * ((labels > 0) & (truth > 0)).sum() / ((labels > 0).sum() + (truth > 0).sum()))
    assert np.median(overlaps) > 0.85
