"""The export: whole or nothing, verified, described; and what it refuses."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from litemed.export import verify
from litemed.export.bundle import ExportOptions, write_bundle
from litemed.export.cli import main
from litemed.export.graphs import ExportError, check, graph_specs, with_half_weights
from litemed.export.verify import Parity, VerificationError
from litemed.models.adapter import decoder_tensors
from litemed.models.checkpoint import untrained_checkpoint
from litemed.models.encoders import LIGHT
from litemed.runtime.bundle import DEFAULT, Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import OutputError

SIZE = 64  # a small input, since exporting takes long at full size
ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def checkpoint():
    return untrained_checkpoint(encoder=LIGHT)  # the quicker one to export


@pytest.fixture(scope="module")
def export(checkpoint, tmp_path_factory):
    """A bundle with all numbers of boxes verified, and what was measured."""
    path = tmp_path_factory.mktemp("export") / "bundle"
    return path, write_bundle(checkpoint, path, ExportOptions(size=SIZE))


@pytest.fixture(scope="module")
def bundle(export):
    return export[0]


def quick(**options):
    return ExportOptions(size=SIZE, box_counts=(1,), **options)


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.slow
def test_both_stages_agree_with_pytorch_on_both_engines_for_every_number_of_boxes(export):
    path, parity = export
    seen = {(p.stage, p.engine, p.boxes) for p in parity if p.graph == "decoder"}
    stages, counts = ("exported", "simplified"), (1, 2, 17, 241)
    assert seen == {(stage, engine, n) for stage in stages for engine in ENGINES for n in counts}
    assert all(p.max_abs_diff < 1e-4 for p in parity)
    assert all(p.mask_iou > 0.999 for p in parity if p.mask_iou is not None)
    assert all(p.largest > 0.1 for p in parity)  # or the IoU says nothing
    assert [p["max_abs_diff"] for p in manifest(path)["parity"]] == [p.max_abs_diff for p in parity]


def test_a_bundle_of_four_files_opens_after_a_move_and_the_number_of_boxes_stays_symbolic(bundle, tmp_path):
    graphs = ["decoder.onnx", "encoder.onnx", "mask_encoder.onnx"]
    assert sorted(p.name for p in bundle.iterdir()) == sorted([*graphs, "manifest.json"])
    shutil.copytree(bundle, tmp_path / "elsewhere")
    assert not Bundle.open(tmp_path / "elsewhere").manifest.weights.trained  # drawn at random
    graph = onnx.load(bundle / "decoder.onnx", load_external_data=False).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output
    }
    assert shapes == {"logits": ["N", SIZE, SIZE], "iou": ["N"]}
    assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.initializer)


def test_a_frozen_number_of_boxes_is_found_out(checkpoint, bundle):
    *_, spec = graph_specs(checkpoint.models(SIZE))
    graph = onnx.load(bundle / "decoder.onnx")
    check(graph, spec)
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="decoder: inputs and outputs"):
        check(graph, spec)


@pytest.mark.slow
def test_the_command_exports_in_half_the_bytes_and_says_what_that_costs(checkpoint, bundle, tmp_path):
    path = tmp_path / "compact"
    save_file(checkpoint.state, tmp_path / "light.safetensors")
    result = run(
        *(tmp_path / "light.safetensors", "-o", path, "--compact", "--verify", "quick", "--size", SIZE)
    )
    assert result.exit_code == 0, result.output
    parity = manifest(path)["parity"]
    assert len(parity) == 3 * 2 * 6  # stages, engines, comparisons
    stored = max(p["max_abs_diff"] for p in parity if p["stage"] == "compact")
    exact = max(p["max_abs_diff"] for p in parity if p["stage"] != "compact")
    assert exact < stored / 5
    assert result.output.splitlines()[-1] == (
        f"{path}: {len(parity)} comparisons with PyTorch pass, largest difference {exact:.1e} in float32, "
        f"{stored:.1e} as stored"
    )
    image = np.random.default_rng(0).random((1, 3, SIZE, SIZE), np.float32)
    sizes = [sum(file.stat().st_size for file in folder.glob("*.onnx")) for folder in (bundle, path)]
    assert 0.45 < sizes[1] / sizes[0] < 0.56
    for engine in ENGINES:  # weights were rounded, nothing else
        full, half = (open_engine(engine, Bundle.open(folder), 1).encode(image) for folder in (bundle, path))
        assert 1e-6 < np.abs(half - full).max() / np.abs(full).max() < 0.02


@pytest.mark.slow
def test_the_command_adds_further_decoders_and_compares_them_too(checkpoint, tmp_path):
    path, light = tmp_path / "bundle", tmp_path / "light.safetensors"
    save_file(checkpoint.state, light)
    names = {"loose_decoder": "decoder_loose", "tile_decoder": "decoder_tiles"}
    given, digests = [], {}
    for seed, name in enumerate(names, 1):
        file = tmp_path / f"{name}.safetensors"
        save_file(decoder_tensors(untrained_checkpoint(seed, LIGHT).state), file)
        given += [f"--{name.replace('_', '-')}", file]
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    result = run(light, *given, "-o", path, "--verify", "quick", "--size", SIZE)
    assert result.exit_code == 0, result.output
    said, described = manifest(path), run("--inspect", path).output
    for name, title, label in (("loose_decoder", "loose", "loose"), ("tile_decoder", "tile", "tiles")):
        assert f"{name}.safetensors: {title} decoder" in result.output
        assert said["weights"][name] == {"file": f"{name}.safetensors", "sha256": digests[name]}
        graph = names[name]
        compared = [(p["stage"], p["engine"], p["boxes"]) for p in said["parity"] if p["graph"] == graph]
        assert compared == [(s, e, n) for s in ("exported", "simplified") for e in ENGINES for n in (1, 2)]
        assert f'{label}    {{"file": "{name}.safetensors", "sha256": "{digests[name]}"}}' in described
        assert f"graph    {graph}.onnx" in described
    assert "float32  encoder + decoder + decoder_loose + decoder_tiles" in described


def test_weights_that_float16_cannot_hold_stay_as_they_are():
    weights = {"large": np.full(5000, 1e5), "small": np.full(10, 0.1), "fine": np.linspace(-1, 1, 5000)}
    tensors = [onnx.numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    tensors.append(onnx.numpy_helper.from_array(np.arange(5000), "indices"))
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    stored = with_half_weights(graph).graph
    assert {t.name for t in stored.initializer} == {"large", "small", "indices", "fine.float16"}
    casts = [(n.op_type, list(n.input), list(n.output)) for n in stored.node]
    assert casts == [("Cast", ["fine.float16"], ["fine"])]
    half = next(t for t in stored.initializer if t.name == "fine.float16")
    expected = weights["fine"].astype(np.float32).astype(np.float16)
    assert np.array_equal(onnx.numpy_helper.to_array(half), expected)
    assert len(graph.graph.node) == 0  # the graph given is left alone


@pytest.mark.slow
def test_a_bundle_that_differs_is_not_left_behind(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(verify, "MAX_ABS_DIFF", 0.0)
    monkeypatch.setattr(verify, "MAX_ROUNDINGS", 0.0)
    with pytest.raises(VerificationError) as error:
        write_bundle(checkpoint, tmp_path / "bundle", quick())
    assert list(tmp_path.iterdir()) == []
    for part in ("exported encoder on onnxruntime", "simplified decoder on openvino, 1 boxes"):
        assert part in str(error.value)


def test_weights_other_than_the_bundles_are_found_out(bundle):
    other = untrained_checkpoint(1, LIGHT).models(SIZE)
    expected = list(verify.references(other, 2))
    with pytest.raises(VerificationError, match="10 of 10 comparisons"):
        verify.judge(verify.measure(bundle, "simplified", expected, counts=(2,)))


@pytest.mark.parametrize(
    ("parity", "fault"),
    [
        (Parity("encoder", "exported", "openvino", None, float("nan"), 1.0), "differs by nan"),
        (Parity("encoder", "exported", "openvino", None, 5e-4, 1.0), "differs by 0.0005"),
        # by the order of float32's own rounding it may differ, and no more
        (Parity("encoder", "exported", "openvino", None, 5e-4, 1.0, rounding=1e-4), None),
        (Parity("encoder", "exported", "openvino", None, 2e-3, 1.0, rounding=1e-4), "differs by 0.002"),
        (Parity("decoder", "exported", "openvino", 1, 1e-6, 1.0, mask_iou=0.99), "1 boxes: mask IoU 0.99"),
        (Parity("decoder", "exported", "openvino", 1, 1e-6, 1.0, mask_iou=1.0), None),
        (Parity("decoder", "compact", "openvino", 1, 0.5, 1.0, mask_iou=0.991), None),
        (Parity("decoder", "compact", "openvino", 1, 1e-6, 1.0, mask_iou=0.98), "mask IoU 0.98"),
    ],
)
def test_what_counts_as_a_difference(parity, fault):
    assert parity.fault() is None if fault is None else fault in parity.fault()


@pytest.mark.slow
def test_an_older_bundle_gives_way_only_if_asked_and_alone(tmp_path, checkpoint, bundle):
    path = tmp_path / "bundle"
    shutil.copytree(bundle, path)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        write_bundle(checkpoint, path, quick())
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which would be lost"):
        write_bundle(checkpoint, path, quick(overwrite=True))
    assert (path / "manifest.json").read_bytes() == before
    (path / "notes.txt").unlink()
    write_bundle(checkpoint, path, quick(name="second", overwrite=True))
    assert manifest(path)["name"] == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_other_files_are_never_replaced(tmp_path, checkpoint):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for target in (tmp_path, tmp_path / "notes.txt", tmp_path / "link"):
        with pytest.raises(OutputError, match=target.name):
            write_bundle(checkpoint, target, quick(overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_inspection_describes_a_bundle_and_names_a_damaged_file(tmp_path, bundle):
    path = shutil.copytree(bundle, tmp_path / "bundle")
    said = manifest(path)
    said["weights"]["lora"] = {"rank": 4, "alpha": 1.0, "targets": ["attn.qkv", "mlp.fc1"], "sha256": None}
    (path / "manifest.json").write_text(json.dumps(said))
    result = run("--inspect", path)
    assert result.exit_code == 0
    for part in ("random, seed 0", "UNTRAINED", '"rank": 4, "alpha": 1.0', '"boxes": 2'):
        assert part in result.output
    (path / "decoder.onnx").write_bytes(b"")
    result = run("--inspect", path)
    assert result.exit_code == 1
    assert "decoder.onnx" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.pth"],
        ["-o", "b"],
        ["a.pth", "--untrained", "-o", "b"],
        ["--inspect", "b", "-o", "c"],
        ["--untrained", "-o", "b", "--size", "100"],
        ["--untrained", "-o", "b", "--adapter", "a"],
        ["--untrained", "-o", "b", "--loose-decoder", "a"],
    ],
)
def test_wrong_use(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxsim", "openvino", "safetensors"])
def test_what_the_extra_brings_is_asked_for_in_one_line(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    result = run("--untrained", "-o", tmp_path / "b")
    assert result.exit_code == 2
    assert result.stderr == f"error: {package} is not installed; in the checkout: pip install '.[export]'\n"
    assert not any(tmp_path.iterdir())


def test_inspection_needs_the_base_install_alone():
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxsim', 'openvino', 'safetensors'): sys.modules[name] = None\n"
        "from litemed.export.cli import main\n"
        "main(['--inspect', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", script, DEFAULT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(Bundle.default().name)


def test_a_bad_checkpoint_ends_in_one_line(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "bad.pth")
    result = run(tmp_path / "bad.pth", "-o", tmp_path / "bundle")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "bad.pth" in result.stderr
    assert result.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bad.pth"]
