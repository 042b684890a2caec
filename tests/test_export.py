"""The export: whole or nothing, verified, described; and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from litemed.export import verify
from litemed.export.bundle import ExportOptions, write_bundle
from litemed.export.cli import main
from litemed.export.errors import ExportError, VerificationError
from litemed.export.graphs import check, graph_specs, simplify, to_onnx
from litemed.export.storage import with_half_weights
from litemed.models.checkpoint import Checkpoint, read_checkpoint, untrained_checkpoint
from litemed.runtime.bundle import DEFAULT, Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import OutputError

QUICK = ExportOptions(size=64, box_counts=(1, 2))  # a small input, since exporting takes long at full size


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return untrained_checkpoint()


@pytest.fixture(scope="module")
def bundle(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "bundle"
    write_bundle(checkpoint, path, QUICK)
    return path


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


def test_both_stages_agree_with_pytorch_on_both_engines_for_every_number_of_boxes(
    golden_checkpoint, tmp_path
):
    parity = write_bundle(read_checkpoint(golden_checkpoint("plain")), tmp_path / "bundle")
    seen = {(p.stage, p.engine, p.boxes) for p in parity if p.graph == "decoder"}
    assert seen == {
        (stage, engine, boxes)
        for stage in ("exported", "simplified")
        for engine in ("onnxruntime", "openvino")
        for boxes in (1, 2, 17, 241)
    }
    assert all(p.max_abs_diff < 1e-4 for p in parity)
    assert all(p.mask_iou > 0.999 for p in parity if p.mask_iou is not None)
    # noise-like masks: they must not be empty, or the IoU says nothing
    assert all(p.largest > 1 for p in parity)
    assert [p["max_abs_diff"] for p in manifest(tmp_path / "bundle")["parity"]] == [
        p.max_abs_diff for p in parity
    ]


def test_a_bundle_holds_three_files_and_opens_after_a_move(bundle, tmp_path):
    assert sorted(p.name for p in bundle.iterdir()) == ["decoder.onnx", "encoder.onnx", "manifest.json"]
    shutil.copytree(bundle, tmp_path / "elsewhere")
    Bundle.open(tmp_path / "elsewhere")


def test_the_number_of_boxes_stays_symbolic(bundle):
    graph = onnx.load(bundle / "decoder.onnx").graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert shapes["boxes"] == ["N", 4]
    assert shapes["logits"] == ["N", 64, 64]
    assert shapes["iou"] == ["N"]


def test_no_graph_has_external_data(bundle):
    for name in ("encoder", "decoder"):
        graph = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
        assert not any(t.data_location == onnx.TensorProto.EXTERNAL for t in graph.graph.initializer)


def test_untrained_weights_are_marked(tmp_path, checkpoint, bundle):
    assert manifest(bundle)["weights"]["trained"] is True
    write_bundle(checkpoint, tmp_path / "b", ExportOptions(trained=False, size=64, box_counts=(1,)))
    assert manifest(tmp_path / "b")["weights"]["trained"] is False


def test_a_compact_bundle_takes_half_the_bytes_and_computes_in_float32(checkpoint, bundle, tmp_path):
    path = tmp_path / "compact"
    parity = write_bundle(checkpoint, path, dataclasses.replace(QUICK, compact=True))
    found = {(p.engine, p.graph, p.boxes) for p in parity if p.stage == "compact"}
    assert found == {(p.engine, p.graph, p.boxes) for p in parity if p.stage == "simplified"}
    assert manifest(path)["parity"][-1]["stage"] == "compact"
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    boxes = np.array([[5, 5, 40, 40], [20, 30, 60, 50]], np.float32)
    for name in ("encoder", "decoder"):
        full, half = ((folder / f"{name}.onnx").stat().st_size for folder in (bundle, path))
        assert 0.45 < half / full < 0.56
    for engine in ("onnxruntime", "openvino"):
        full, half = (open_engine(engine, Bundle.open(folder), 1) for folder in (bundle, path))
        embedding = full.encode(image)
        apart = np.abs(half.encode(image) - embedding).max() / np.abs(embedding).max()
        assert 1e-6 < apart < 0.02  # weights were rounded, nothing else
        whole, rounded = (one.decode(embedding, boxes)[0] for one in (full, half))
        assert np.abs(whole - rounded).max() < 0.02 * np.abs(whole).max()


def test_a_compact_bundle_of_other_masks_is_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "MIN_COMPACT_IOU", 1.1)
    with pytest.raises(VerificationError, match=r"compact decoder on onnxruntime, 1 boxes: mask IoU"):
        write_bundle(checkpoint, tmp_path / "bundle", dataclasses.replace(QUICK, compact=True))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_stay_as_they_are():
    weights = {"large": np.full(5000, 1e5), "small": np.full(10, 0.1), "fine": np.linspace(-1, 1, 5000)}
    weights["indices"] = np.arange(5000)
    tensors = [
        onnx.numpy_helper.from_array(v.astype(np.int64 if k == "indices" else np.float32), k)
        for k, v in weights.items()
    ]
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    stored = with_half_weights(graph).graph
    assert {t.name for t in stored.initializer} == {"large", "small", "indices", "fine.float16"}
    assert [(n.op_type, list(n.input), list(n.output)) for n in stored.node] == [
        ("Cast", ["fine.float16"], ["fine"])
    ]
    half = next(t for t in stored.initializer if t.name == "fine.float16")
    assert np.array_equal(
        onnx.numpy_helper.to_array(half), weights["fine"].astype(np.float32).astype(np.float16)
    )
    assert len(graph.graph.node) == 0  # the graph given is left alone


def test_a_bundle_that_differs_is_not_left_behind(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(verify, "MAX_ABS_DIFF", 0.0)
    monkeypatch.setattr(verify, "MAX_ROUNDINGS", 0.0)
    with pytest.raises(VerificationError) as error:
        write_bundle(checkpoint, tmp_path / "bundle", QUICK)
    assert list(tmp_path.iterdir()) == []
    for part in ("exported encoder on onnxruntime", "simplified decoder on openvino, 2 boxes"):
        assert part in str(error.value)


def test_weights_other_than_the_bundles_are_found_out(bundle):
    other = untrained_checkpoint(seed=1).model(64)
    expected = list(verify.references(other, verify.sample_images()[:1], 2))
    with pytest.raises(VerificationError, match="6 of 6 comparisons"):
        verify.judge(verify.measure(bundle, "simplified", expected, counts=(2,)))


def test_nan_is_a_difference():
    parity = verify.Parity("encoder", "exported", "onnxruntime", None, float("nan"), 1.0, 0.0, None)
    with pytest.raises(VerificationError, match="differs by nan"):
        verify.judge([parity])


def test_the_encoder_may_differ_by_the_order_of_float32_rounding_and_no_more():
    def parity(difference, rounding):
        return verify.Parity("encoder", "exported", "openvino", None, difference, 1.0, rounding, None)

    assert parity(5e-4, 0.0).fault() is not None
    assert parity(5e-4, 1e-4).fault() is None
    assert parity(2e-3, 1e-4).fault() is not None


def test_a_mask_that_differs_is_a_difference_even_where_logits_are_close():
    assert verify.Parity("decoder", "exported", "openvino", 1, 1e-6, 1.0, 0.0, 0.99).fault() is not None
    assert verify.Parity("decoder", "exported", "openvino", 1, 1e-6, 1.0, 0.0, 1.0).fault() is None


def test_an_older_bundle_is_kept_unless_asked(tmp_path, checkpoint):
    path = tmp_path / "bundle"
    write_bundle(checkpoint, path, QUICK)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        write_bundle(checkpoint, path, QUICK)
    assert (path / "manifest.json").read_bytes() == before
    write_bundle(checkpoint, path, ExportOptions(name="second", overwrite=True, size=64, box_counts=(1,)))
    assert manifest(path)["name"] == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_other_files_are_never_replaced(tmp_path, checkpoint):
    (tmp_path / "notes.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(OutputError):
            write_bundle(checkpoint, target, ExportOptions(overwrite=True, box_counts=(1,)))
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="link"):
        write_bundle(checkpoint, tmp_path / "link", QUICK)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_lies_beside_a_bundle_is_not_lost(tmp_path, checkpoint):
    path = tmp_path / "bundle"
    write_bundle(checkpoint, path, QUICK)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which would be lost"):
        write_bundle(checkpoint, path, ExportOptions(overwrite=True, size=64, box_counts=(1,)))
    assert (path / "notes.txt").read_text() == "mine"


def test_a_bundle_that_came_to_lie_there_meanwhile_is_kept(tmp_path, checkpoint):
    path = tmp_path / "bundle"

    def other(line):
        if line == "simplifying and checking them":
            path.mkdir()
            (path / "manifest.json").write_text("another export's")

    with pytest.raises(OutputError, match="--overwrite"):
        write_bundle(checkpoint, path, QUICK, progress=other)
    assert [p.name for p in path.iterdir()] == ["manifest.json"]


def test_a_frozen_number_of_boxes_is_found_out(checkpoint):
    _, spec = graph_specs(checkpoint.model(64))
    graph = to_onnx(spec)
    check(graph, spec)
    graph.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="decoder: outputs"):
        check(graph, spec)


def test_simplification_keeps_the_values(checkpoint):
    import onnxruntime

    _, spec = graph_specs(checkpoint.model(64))
    graph = to_onnx(spec)
    rng = np.random.default_rng(0)
    inputs = {
        "image_embedding": rng.normal(size=(1, 256, 16, 16)).astype(np.float32),
        "boxes": np.array([[10, 20, 50, 40], [0, 0, 63, 63], [5, 5, 9, 60]], np.float32),
    }
    outputs = [
        onnxruntime.InferenceSession(g.SerializeToString()).run(None, inputs)[0]
        for g in (graph, simplify(graph, spec.name))
    ]
    assert outputs[0].shape == (3, 64, 64)
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-4


def test_images_of_the_caller_are_used(tmp_path, checkpoint):
    with pytest.raises(VerificationError, match="no readable image"):
        write_bundle(checkpoint, tmp_path / "b", ExportOptions(images=tmp_path, box_counts=(1,)))


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command_exports_and_inspects(tmp_path, golden_checkpoint):
    result = run(golden_checkpoint("loralib"), "-o", tmp_path / "bundle", "--verify", "quick", "--size", 64)
    assert result.exit_code == 0, result.output
    assert "layout training, loralib" in result.output
    assert "folded LoRA of rank 4, alpha 1, in attn.qkv, mlp.fc1, mlp.fc2" in result.output
    result = run("--inspect", tmp_path / "bundle")
    assert result.exit_code == 0
    for part in ("loralib.pth", "rank 4", "encoder.onnx", "('N', 64, 64)", "2 boxes", "openvino"):
        assert part in result.output
    (tmp_path / "bundle" / "decoder.onnx").write_bytes(b"")
    result = run("--inspect", tmp_path / "bundle")
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
    assert result.stderr == (
        f"error: this needs {package}, not installed here; in the checkout: pip install '.[export]'\n"
    )
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


def test_help_shows_examples_and_exit_codes():
    result = run("--help")
    assert "litemed-export lite_medsam.pth -o bundle" in result.output
    assert "Exit codes" in result.output
