"""int8: what it is calibrated on, what is quantised, and that it is offered only with measured agreement."""

import dataclasses
import json
import pathlib
import shutil
import tempfile

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import litemed.runtime
from litemed.benchmarks.phantoms import Phantom, draw_image, draw_volume
from litemed.export.agreement import find_measured_cases, mean_dice, measure_agreement, passing
from litemed.export.bundle import ExportOptions, write_bundle
from litemed.export.cli import describe, main
from litemed.export.quantise import (
    KEY,
    KEY_BF16,
    MAX_IMAGES,
    MIN_IMAGES,
    calibration_images,
    quantise,
    quantised_nodes,
)
from litemed.models.adapter import decoder_tensors
from litemed.models.checkpoint import FurtherDecoder, untrained_checkpoint
from litemed.runtime import precision
from litemed.runtime.bundle import Bundle
from litemed.runtime.dice import dice_by_label
from litemed.runtime.engines import ENGINES
from litemed.runtime.engines.openvino_engine import computes_bf16
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.precision import Agreement, EngineAgreement, ModalityAgreement, Precision

SIZE = 64
MODALITIES = ("US", "MR", "X-Ray")


def save(folder, name, phantom: Phantom):
    """Write a case to folder/cases and its ground truth to folder/gts."""
    for part, arrays in {
        "cases": {"imgs": phantom.image, "boxes": phantom.boxes},
        "gts": {"gts": phantom.labels},
    }.items():
        (folder / part).mkdir(exist_ok=True, parents=True)
        np.savez(folder / part / f"{name}.npz", **arrays)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """A folder of enough images, three modalities."""
    folder = tmp_path_factory.mktemp("calibration")
    for i in range(MIN_IMAGES):
        save(folder, f"2DBox_{MODALITIES[i % 3]}_{i:02d}", draw_image(60 + i, 70, 2, seed=i))
    return folder / "cases"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder of cases, a volume among them, and of the ground truth of all but those of one modality."""
    folder = tmp_path_factory.mktemp("measured")
    for i in range(9):
        save(folder, f"2DBox_{MODALITIES[i % 3]}_{i}", draw_image(64, 64 + i, 3, seed=100 + i))
    save(folder, "3DBox_CT_9", draw_volume(4, 48, 56, 2, seed=9))
    for path in (folder / "gts").glob("*X-Ray*"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def bundle(calibration, measured, tmp_path_factory):
    """A small bundle with int8 and a decoder for loose boxes; its weights mean nothing: the gate is open.

    It is made on a machine without a folder for temporary files.
    """
    path = tmp_path_factory.mktemp("int8") / "bundle"
    options = ExportOptions(
        size=SIZE,
        box_counts=(1,),
        int8=True,
        calibration=calibration,
        agreement=measured / "cases",
        ground_truth=measured / "gts",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "MIN_DICE", 0.0)
        patch.setattr(precision, "MAX_DSC_LOSS", 1.0)
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
        loose = FurtherDecoder(decoder_tensors(untrained_checkpoint(1).state), "loose.safetensors", "0" * 64)
        decoders = {"loose_decoder": loose}
        write_bundle(dataclasses.replace(untrained_checkpoint(), decoders=decoders), path, options)
    return path


@pytest.fixture(scope="module")
def encoder(bundle):
    return onnx.load(bundle / "encoder.onnx")


@pytest.fixture(scope="module")
def int8(bundle):
    return onnx.load(bundle / "encoder_int8.onnx")


def manifest(path):
    return json.loads((path / "manifest.json").read_text())


# Calibration images


def test_every_modality_gets_an_equal_share_and_volumes_give_covered_slices(tmp_path):
    for i in range(40):
        np.savez(tmp_path / f"2DBox_US_{i:02d}.npz", imgs=np.full((5, 5), i, np.uint8), boxes=[[1, 1, 5, 5]])
    for i in range(2):
        volume = np.empty((30, 6, 8), np.uint8)
        volume[:] = np.arange(30)[:, None, None] + 100 * (i + 1)
        np.savez(tmp_path / f"3DBox_MR_{i}.npz", imgs=volume, boxes=[[1, 1, 5, 5, 5, 22]])
    images = [int(image.flat[0]) for image in calibration_images(tmp_path)]
    mr, us = images[:24], images[24:]
    assert len(us) == 24
    assert all(105 <= value <= 122 for value in mr[:12])  # slices 5 to 22
    assert all(205 <= value <= 222 for value in mr[12:])
    assert images == sorted(set(mr)) + sorted(set(us))
    assert len(images) == MAX_IMAGES
    assert max(np.diff(us)) <= 2
    np.savez(tmp_path / "odd.npz", imgs=np.zeros(4, np.uint8), boxes=[[0, 0, 2, 2]])
    with pytest.raises(InputError, match=r"odd\.npz"):
        calibration_images(tmp_path)


# Quantisation


@pytest.mark.slow
def test_all_layers_are_quantised_but_the_first_and_the_products_of_attention(encoder, int8):
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.initializer}
    makes = {name: node for node in int8.graph.node for name in node.output}
    names = set(quantised_nodes(encoder))
    products = [node for node in int8.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    left = [node for node in products if node.name not in names]
    convolutions = [node for node in left if node.op_type == "Conv"]
    assert [node.input[0] for node in convolutions] == ["image"]
    assert all(set(node.input[:2]).isdisjoint(stored) for node in left if node not in convolutions)
    assert len(products) - len(left) == len(names) > 60
    for node in products:
        if node in left:
            continue
        quantised, scale = (makes[name] for name in node.input[:2])
        assert quantised.op_type == scale.op_type == "DequantizeLinear"
        weight = stored[scale.input[0]]
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64  # seven bits: see the module
        assert stored[scale.input[1]].size in weight.shape


@pytest.mark.slow
def test_the_same_images_give_the_same_bytes_and_for_openvino_convolutions_keep_float_outputs(
    encoder, int8, calibration
):
    before = encoder.SerializeToString(deterministic=True)
    images = calibration_images(calibration)
    again = quantise(encoder, images, SIZE, KEY, print)
    assert again.SerializeToString(deterministic=True) == int8.SerializeToString(deterministic=True)
    assert encoder.SerializeToString(deterministic=True) == before
    for_openvino = quantise(encoder, images[:2], SIZE, KEY_BF16, print)

    def quantised_outputs(graph):
        outputs = {node.output[0] for node in graph.graph.node if node.op_type == "Conv"}
        return sum(n.op_type == "QuantizeLinear" and n.input[0] in outputs for n in graph.graph.node)

    assert quantised_outputs(int8) >= 10
    # only those that the next layer reads without anything between
    assert quantised_outputs(for_openvino) < quantised_outputs(int8) / 2


# Agreement


def test_dice_is_the_mean_over_the_labels_that_either_map_has():
    first, second = np.array([[1, 1, 2, 0]]), np.array([[1, 0, 0, 3]])
    assert mean_dice(first, second, 5) == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert mean_dice(first[:, None], second[:, None], 1) == pytest.approx(2 / 3)
    assert mean_dice(0 * first, 0 * second, 5) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_manifest_says_what_the_runtime_gives(engine, bundle, measured):
    found = Bundle.open(bundle).manifest.precisions["int8"].agreement
    assert found is not None
    assert found.images == 10
    exact, fast = (litemed.runtime.load(bundle, engine=engine, precision=p) for p in ("exact", "int8"))
    dices: dict[str, list[float]] = {}
    changes: dict[str, list[float]] = {}
    for path in sorted((measured / "cases").iterdir()):
        case = read_case(path)
        maps = [segmenter.run(case).labels for segmenter in (exact, fast)]
        modality = path.stem.split("_")[1].replace("-", "")
        dice = np.nanmean(dice_by_label(maps[0], maps[1], len(case.boxes)))
        dices.setdefault(modality, []).append(float(dice))
        truth_path = measured / "gts" / path.name
        if truth_path.exists():
            truth = np.load(truth_path)["gts"]
            scores = [dice_by_label(truth, found, len(case.boxes)).mean() for found in maps]
            changes.setdefault(modality, []).append(float(scores[1] - scores[0]))
    assert set(dices) == set(found.engines[engine].modalities) == {"US", "MR", "XRay", "CT"}
    for modality, one in found.engines[engine].modalities.items():
        assert one.cases == len(dices[modality])
        assert one.dice == pytest.approx(np.mean(dices[modality]), abs=1e-5)
        if modality == "XRay":
            assert one.dsc_change is None
        else:
            assert one.dsc_change == pytest.approx(np.mean(changes[modality]), abs=1e-5)
    assert min(min(values) for values in dices.values()) < 1  # or nothing was compared


def test_cases_that_say_too_little_are_refused(tmp_path, measured):
    cases = pathlib.Path(shutil.copytree(measured / "cases", tmp_path / "cases"))
    with pytest.raises(UsageError, match="ground truth of no case"):
        find_measured_cases(cases, tmp_path)
    (cases / "2DBox_US_0.npz").rename(cases / "patient7.npz")
    with pytest.raises(UsageError, match=r"patient7\.npz: no modality"):
        find_measured_cases(cases)
    (cases / "patient7.npz").unlink()
    with pytest.raises(UsageError, match="9 cases"):
        find_measured_cases(cases)


@pytest.mark.slow
def test_ground_truth_that_does_not_fit_is_named(tmp_path, measured, bundle):
    for labels in (np.zeros((64, 64), np.uint8), np.ones((3, 3), np.uint8), np.ones((64, 64), np.float32)):
        np.savez(tmp_path / "2DBox_US_0.npz", gts=labels)
        found = find_measured_cases(measured / "cases", tmp_path)
        with pytest.raises(InputError, match=r"2DBox_US_0\.npz: gts"):
            measure_agreement(bundle, ["int8"], [case for case in found if case.truth], print)


# What is offered


@pytest.mark.slow
def test_the_bundle_offers_int8_and_its_description_shows_the_agreement(bundle):
    names = ["encoder_int8", *["encoder_int8_bf16"] * computes_bf16()]
    files = [f"{name}.onnx" for name in ("decoder", "decoder_loose", "encoder", *names, "mask_encoder")]
    assert sorted(p.name for p in bundle.iterdir()) == sorted([*files, "manifest.json"])
    listed = manifest(bundle)["precisions"]
    graphs = {"encoder": "encoder", "decoder": "decoder", "loose_decoder": "decoder_loose"}
    assert listed["float32"] == graphs | {"mask_encoder": "mask_encoder"}
    assert {one["loose_decoder"] for one in listed.values()} == {"decoder_loose"}
    assert listed["int8"]["encoder"] == "encoder_int8"
    assert set(listed["int8"]["agreement"]["engines"]) == set(ENGINES)
    assert (bundle / "encoder_int8.onnx").stat().st_size < 0.5 * (bundle / "encoder.onnx").stat().st_size
    one = next(iter(listed["int8"]["agreement"]["engines"]["openvino"]["modalities"].values()))
    assert f"Dice {one['dice']:.4f}" in describe(bundle)


def test_a_precision_that_agrees_on_one_engine_is_kept_and_one_that_agrees_on_none_left_out():
    good, bad = (EngineAgreement({"US": ModalityAgreement(10, dice, None)}) for dice in (0.995, 0.9))
    tried = {"int8": Precision("encoder_int8", "decoder", Agreement(10, {}))}
    told: list[str] = []

    def kept(**engines):
        return passing(tried, {"int8": Agreement(10, engines)}, told.append)

    assert set(kept(openvino=bad, onnxruntime=good)) == {"int8"}
    assert set(kept(openvino=good, onnxruntime=bad)["int8"].agreement.engines) == {"openvino", "onnxruntime"}
    assert kept(openvino=bad, onnxruntime=bad) == {}
    assert told[-1] == "int8 is left out of the bundle: it passes on no engine"
    assert any(line.startswith("int8 on openvino: ") and "under 0.99" in line for line in told)


@pytest.mark.slow
def test_bf16_is_measured_where_the_cpu_has_it_and_rounds_the_graphs_that_the_manifest_names(
    bundle, tmp_path
):
    if not computes_bf16():
        assert "bf16" not in manifest(bundle)["precisions"]
        pytest.skip("this CPU computes no bf16")
    for name, encoder in (("bf16", "encoder"), ("int8-bf16", "encoder_int8_bf16")):
        found = manifest(bundle)["precisions"][name]
        assert (found["encoder"], found["decoder"], found["bf16"]) == (encoder, "decoder", ["encoder"])
        assert set(found["agreement"]["engines"]) == {"openvino"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--int8"], "--calibration"),
        (["--int8", "--agreement", "cases"], "--calibration"),
        (["--int8", "--calibration", "cases"], "--agreement"),
        (["--calibration", "cases"], "--int8"),
        (["--ground-truth", "gts"], "--agreement"),
        (["--int8", "--calibration", "empty", "--agreement", "cases"], "empty"),
        (["--int8", "--calibration", "cases", "--agreement", "cases"], "16"),
        *[(["--agreement", "cases"], "nothing to measure")] * (not computes_bf16()),
    ],
)
def test_the_command_refuses_int8_without_what_it_needs(arguments, named, tmp_path, measured, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, ["--untrained", "-o", "bundle", "--size", "64", *arguments])
    assert result.exit_code == 2
    assert named in result.stderr.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()
