"""`pip install litemed` gives a working runtime without torch and onnx."""

import json
import pathlib
import re
import subprocess
import sys
import venv
import zipfile

import numpy as np
import pytest

from litemed.benchmarks.phantoms import draw_image
from litemed.runtime.dice import dice_by_label

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "-w", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


def pip(command, *arguments, python=sys.executable):
    done = subprocess.run([python, "-m", "pip", command, "-q", *arguments], capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "ConnectionError" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_wheel_holds_the_model_licence_and_attribution_and_stays_small(wheel):
    assert wheel.stat().st_size < 55e6
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        model = [name for name in names if name.startswith("litemed/runtime/model/")]
        assert {pathlib.PurePath(name).name for name in model} == {
            *("manifest.json", "encoder.onnx", "decoder.onnx", "decoder_loose.onnx"),
            *("decoder_tiles.onnx", "mask_encoder.onnx"),
        }
        assert sum(archive.getinfo(name).file_size for name in model) < 58e6
        texts = {
            pathlib.PurePath(name).name: archive.read(name).decode()
            for name in names
            if ".dist-info/" in name
        }
    assert "Apache License" in texts["LICENSE"]
    assert "Attribution" in texts["README.md"]
    assert "CC BY 4.0" in texts["README.md"]
    # Its page has links that work anywhere.
    page = texts["METADATA"].partition("\n\n")[2]
    assert "# litemed" in page
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]*)\)", page))


@pytest.mark.slow
def test_the_base_install_segments_without_torch_and_onnx(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    pip("install", "-c", ROOT / "constraints.txt", wheel, python=binaries / "python")
    listing = subprocess.check_output([binaries / "python", "-m", "pip", "list", "--format=json"])
    names = {entry["name"].lower() for entry in json.loads(listing)}
    assert {"litemed", "numpy", "onnxruntime"} <= names
    assert not names & {"torch", "onnx", "onnxsim", "safetensors"}
    phantom = draw_image(120, 160, 3)
    phantom.write(tmp_path / "2DBox_US_a.npz")
    folders = [tmp_path / "2DBox_US_a.npz", "-o", tmp_path / "segs", "--overlay", tmp_path / "png"]
    subprocess.run([binaries / "litemed-run", *folders], cwd=tmp_path, check=True)
    with np.load(tmp_path / "segs" / "2DBox_US_a.npz") as output:
        assert dice_by_label(output["segs"], phantom.labels, 3).min() > 0.85
    assert len(list((tmp_path / "png").glob("*.png"))) == 1


@pytest.mark.parametrize("command", ["run", "export", "train", "prepare", "eval", "distill", "bench"])
def test_version_loads_neither_an_engine_nor_torch(command):
    script = pathlib.Path(sys.executable).with_name(f"litemed-{command}")
    code = (
        f"import runpy, sys; sys.argv = [{str(script)!r}, '--version']\n"
        f"try: runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.1.0" in done.stdout
