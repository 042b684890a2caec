"""Fixtures that several test modules share."""

import collections
import functools
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from bundle_edits import edit, replace_graph

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("LITEMED_SHARED", ROOT.parent / "shared"))

Find = Callable[[str], pathlib.Path]


if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: with a thread for each core in every one, PyTorch waits for itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Take interrupts though the shell that began the tests in its background has them ignored.

    Processes inherit that, and those of the tests that wait for an interrupt would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give workers the modules with the most slow tests first, or one ends long after the other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="module")
def one_thread():
    """Have PyTorch compute with one thread: sums in one order, and no threads that wait for one another.

    That they do on busy cores, far longer than they compute.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared():
    """Return a function from a path below the folder of test material to the file, or skip."""

    def find(relative: str) -> pathlib.Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"test material {relative} is not here (set LITEMED_SHARED to its folder)")
        return path

    return find


@pytest.fixture(scope="session")
def prepare_drawn():
    """Return a function that prepares eight drawn pictures in a new folder.

    It takes the folder, the modalities to give them in turn, how many more there are that vanish at 64
    pixels, and how many to train on; the others are to score on. It returns what `litemed-prepare` made.
    """
    from litemed.benchmarks.phantoms import draw_image
    from litemed.train.prepare.pipeline import prepare as run_prepare
    from litemed.train.prepare.slices import Settings
    from litemed.train.prepare.sources import Found, Pair

    def prepare(
        folder: pathlib.Path, modalities: tuple[str, ...], too_small: int = 0, training: int = 6
    ) -> pathlib.Path:
        folder.mkdir()
        pairs = []
        for number in range(8 + too_small):
            phantom = draw_image(96, 96, 2, seed=number)
            labels = phantom.labels
            if number >= 8:
                labels = np.zeros_like(labels)
                labels[40:42, 40:42] = 1
            path = folder / f"picture{number}.npz"
            np.savez(path, imgs=phantom.image, gts=labels)
            modality = modalities[number % len(modalities)]
            split = "val" if training <= number < 8 else "train"
            pairs.append(Pair(modality, "drawn", path.stem, split, path, None))
        pairs.sort(key=lambda pair: (pair.modality, pair.split))
        made = run_prepare(Found(tuple(pairs)), folder / "data", Settings())
        assert not made.failed
        return folder / "data"

    return prepare


@pytest.fixture(scope="session")
def data(prepare_drawn, tmp_path_factory):
    """Return prepared pictures of CT and US."""
    return prepare_drawn(tmp_path_factory.mktemp("data") / "two", ("CT", "US"))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """Return files of weights drawn at random: "base", "other" ones, and "light" ones of the light model."""
    from safetensors.torch import save_file

    from litemed.models.checkpoint import untrained_checkpoint

    folder, made = tmp_path_factory.mktemp("untrained"), {}
    for seed, (name, encoder) in enumerate((("base", "tiny_vit"), ("other", "tiny_vit"), ("light", "light"))):
        made[name] = folder / f"{name}.safetensors"
        save_file(untrained_checkpoint(seed, encoder=encoder).state, made[name])
    return made


@pytest.fixture(scope="session")
def base(untrained):
    """Return weights drawn at random to tune or to learn from."""
    return untrained["base"]


@pytest.fixture(scope="session")
def golden_checkpoint(shared, tmp_path_factory):
    """Return a function from a layout ("plain" or "loralib") to the golden checkpoint in that layout."""

    @functools.cache
    def make(layout: str) -> pathlib.Path:
        script = shared("golden/make_checkpoint.py")
        path = tmp_path_factory.mktemp("golden") / f"{layout}.pth"
        arguments = [] if layout == "plain" else ["--lora", layout]
        subprocess.run([sys.executable, str(script), str(path), *arguments], check=True)
        return path

    return make


@pytest.fixture(scope="session")
def golden_bundle(golden_checkpoint, tmp_path_factory):
    """Return a function from a layout to a bundle exported from that golden checkpoint."""

    @functools.cache
    def make(layout: str) -> pathlib.Path:
        from litemed.export.bundle import Contents
        from litemed.export.graphs import graph_specs, simplify, to_onnx
        from litemed.models.checkpoint import read_checkpoint

        # Not through `write_bundle`: the tests compare with the golden outputs themselves.
        path, checkpoint = (
            tmp_path_factory.mktemp("bundles") / layout,
            read_checkpoint(golden_checkpoint(layout)),
        )
        specs = graph_specs(checkpoint.models())
        graphs = {spec.name: simplify(to_onnx(spec), spec.name) for spec in specs}
        Contents(layout, checkpoint, 256, specs, graphs).write(path)
        return path

    return make


@pytest.fixture(scope="session")
def golden_expected(shared):
    """Return the published code's outputs, see the README beside them."""
    with np.load(shared("golden/expected.npz"), allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="session")
def light_golden(shared):
    """Return what the light model's weights gave on one image and two boxes where they were trained."""
    with np.load(shared("models/light/golden.npz"), allow_pickle=False) as file:
        return dict(file)


ENCODER = """encoder (float[1,3,256,256] image) => (float[1,256,64,64] image_embedding) {
    small = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (image)
    shape = Constant <value_ints = [256, 3, 1, 1]> ()
    weight = ConstantOfShape <value = float[1] {1}> (shape)
    image_embedding = Conv (small, weight)
}"""
DECODER = """decoder (float[1,256,64,64] image_embedding, float[N,P,2] points, float[N,P] labels)
        => (float[N,256,256] logits, float[N] iou) {
    four = Constant <value_ints = [-1, 4]> ()
    boxes = Reshape (points, four)
    unused = Shape (labels)
    axis = Constant <value_ints = [2]> ()
    column = Unsqueeze (boxes, axis)
    x0, y0, x1, y1 = Split <axis = 1, num_outputs = 4> (column)
    zero = Constant <value_float = 0.0> ()
    size = Constant <value_float = 256.0> ()
    one = Constant <value_float = 1.0> ()
    line = Range (zero, size, one)
    wide = Constant <value_ints = [1, 1, 256]> ()
    high = Constant <value_ints = [1, 256, 1]> ()
    across = Reshape (line, wide)
    down = Reshape (line, high)
    left = Sub (across, x0)
    right = Sub (x1, across)
    above = Sub (down, y0)
    below = Sub (y1, down)
    distance = Min (left, right, above, below)
    mean = ReduceMean <keepdims = 0> (image_embedding)
    nothing = Mul (mean, zero)
    logits = Add (distance, nothing)
    sides = Constant <value_ints = [1, 2]> ()
    iou = ReduceMax <keepdims = 0> (logits, sides)
}"""


@pytest.fixture(scope="session")
def box_bundle(tmp_path_factory):
    """Return a bundle for tests of what is round the network, whose graphs take no time and are foreseeable.

    Its logits are the distance in network pixels to the box's nearest edge, positive within. So every object
    is its box, and where boxes overlap the one whose edges are farther wins.
    """
    import onnx

    from litemed.runtime.bundle import PREPROCESSING

    folder = tmp_path_factory.mktemp("boxes") / "bundle"
    folder.mkdir()
    entries = {}
    for name, text in {"encoder": ENCODER, "decoder": DECODER}.items():
        model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>' + text)
        onnx.checker.check_model(model, full_check=True)
        data = model.SerializeToString()
        (folder / f"{name}.onnx").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entries[name] = {"file": f"{name}.onnx", "sha256": digest, "bytes": len(data), "opset": 20}
    manifest = {
        "schema": 5,
        "name": "boxes",
        "litemed": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "input": {"size": 256} | PREPROCESSING,
        "graphs": entries,
        "precisions": {"float32": {"encoder": "encoder", "decoder": "decoder"}},
        "weights": {
            "file": "none",
            "sha256": "0" * 64,
            "layout": "none",
            "encoder": "light",
            "trained": True,
            "lora": None,
        },
        "parity": [],
        "tools": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def loose_bundle(box_bundle, tmp_path_factory):
    """Return the same with further decoders, to which an object is its box less some pixels a side.

    Of that for loose boxes it is 8 pixels, of that for tiles 1.
    """
    import onnx

    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path_factory.mktemp("loose") / "bundle"))
    for name, key, margin in (("loose_decoder", "decoder_loose", 8), ("tile_decoder", "decoder_tiles", 1)):
        text = DECODER.replace("(distance, nothing)", "(distance, margin)").replace(
            "nothing = Mul (mean, zero)",
            f"nothing = Mul (mean, zero) less = Constant <value_float = -{margin}.0> () "
            "margin = Add (nothing, less)",
        )
        edit(
            folder,
            lambda manifest, key=key: manifest["graphs"].update({key: {"file": f"{key}.onnx", "opset": 20}}),
        )
        edit(
            folder, lambda manifest, name=name, key=key: manifest["precisions"]["float32"].update({name: key})
        )
        model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>' + text)
        replace_graph(folder, key, model)
    return folder
