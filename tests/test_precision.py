"""Which engine and precision run a bundle: of those that were measured to agree the fastest."""

import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_edits import edit, replace_graph
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from litemed.runtime import engines
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES, candidates, open_engine
from litemed.runtime.engines.openvino_engine import OpenVinoEngine, computes_bf16
from litemed.runtime.errors import EngineError
from litemed.runtime.precision import Agreement, EngineAgreement, ModalityAgreement, Precision

Json = dict[str, Any]

EXACT = ["openvino float32", "onnxruntime float32"]
IMAGE = np.random.default_rng(0).random((1, 3, 256, 256), np.float32)

pytest.importorskip("openvino", reason="OpenVINO is an extra")


def agreement(dice: float = 0.995, **by_engine: float) -> Json:
    """The `agreement` of a manifest; another Dice for single engines if wanted."""
    ct = {one: {"cases": 4, "dice": by_engine.get(one, dice), "dsc_change": -0.001} for one in ENGINES}
    return {"images": 4, "merge": "nested", "engines": {one: {"modalities": {"CT": ct[one]}} for one in ct}}


def set_agreement(folder: pathlib.Path, precision: str, found: Json) -> None:
    edit(folder, lambda manifest: manifest["precisions"][precision].update(agreement=found))


@pytest.fixture(scope="module")
def quantised(box_bundle, tmp_path_factory):
    """`box_bundle` with the precision int8, which passes and whose encoder gives other embeddings."""
    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path_factory.mktemp("int8") / "bundle"))
    model = onnx.load(folder / "encoder.onnx")
    (fill,) = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    fill.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([1.001], np.float32)))
    int8 = {"encoder": "encoder_int8", "decoder": "decoder", "agreement": agreement()}

    def add(manifest: Json) -> None:
        manifest["graphs"]["encoder_int8"] = manifest["graphs"]["encoder"] | {"file": "encoder_int8.onnx"}
        manifest["precisions"]["int8"] = int8

    edit(folder, add)
    replace_graph(folder, "encoder_int8", model)
    return folder


@pytest.fixture
def folder(quantised, tmp_path):
    """The same, to change."""
    return pathlib.Path(shutil.copytree(quantised, tmp_path / "bundle"))


@pytest.fixture
def bf16_folder(folder):
    """The same with bf16 as well."""
    rounded = {"encoder": "encoder", "decoder": "decoder", "bf16": ["encoder"], "agreement": agreement()}
    edit(folder, lambda manifest: manifest["precisions"].update({"bf16": rounded, "int8-bf16": rounded}))
    return folder


@example([(0.99, -0.005), (1.0, None)])
@example([(1.0, 0.0), (0.9899, 0.0), (1.0, None)])
@example([(1.0, 0.01), (1.0, -0.0051)])
@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.97, 1), st.none() | st.floats(-0.02, 0.02)), min_size=1))
def test_a_precision_passes_if_both_conditions_hold_in_every_modality(found):
    expected = all(dice >= 0.99 and (change is None or change >= -0.005) for dice, change in found)
    modalities = {str(i): ModalityAgreement(1, *one) for i, one in enumerate(found)}
    precision = Precision("e", "d", Agreement(1, {"openvino": EngineAgreement(modalities)}))
    assert (precision.shortcoming("openvino") is None) == expected
    assert "not measured" in (precision.shortcoming("onnxruntime") or "")
    assert Precision("e", "d").shortcoming("onnxruntime") is None


def test_each_request_has_its_candidates(folder):
    set_agreement(folder, "int8", agreement(openvino=0.98))
    manifest = Bundle.open(folder).manifest

    def found(engine: str, precision: str) -> set[str]:
        return {" ".join(candidate) for candidate in candidates(manifest, engine, precision)[0]}

    assert found("auto", "exact") == set(EXACT)
    assert found("auto", "auto") == {*EXACT, "onnxruntime int8"}
    assert found("auto", "fast") == {*EXACT, "onnxruntime int8", "openvino int8"}
    assert found("openvino", "auto") == {"openvino float32"}
    assert found("openvino", "int8") == {"openvino int8"}
    (left_out,) = candidates(manifest, "auto", "auto")[1]
    assert left_out == "openvino int8 (its masks of CT agree to 0.9800, under 0.99)"


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [
        ({"avx2"}, ["onnxruntime int8", *EXACT, "openvino int8", "openvino bf16", "openvino int8-bf16"]),
        ({"avx_vnni"}, ["openvino int8", "onnxruntime int8", *EXACT, "openvino bf16", "openvino int8-bf16"]),
        (
            {"avx512_bf16", "avx512_vnni"},
            ["openvino int8-bf16", "openvino bf16", "openvino int8", "onnxruntime int8", *EXACT],
        ),
    ],
)
def test_the_fastest_is_presumed_by_the_cpu_s_instructions(instructions, expected, bf16_folder, monkeypatch):
    monkeypatch.setattr(engines, "cpu_instructions", lambda: instructions)
    bundle = Bundle.open(bf16_folder)
    for precision in ("auto", "fast"):
        assert [" ".join(one) for one in candidates(bundle.manifest, "auto", precision)[0]] == expected
    engine = open_engine("onnxruntime", bundle, 1, precision="auto")
    assert (engine.precision, engine.choice) == ("int8", "presumed the fastest")
    assert open_engine("onnxruntime", bundle, 1).choice == ""


@pytest.mark.parametrize("name", ENGINES)
def test_each_precision_runs_its_own_graphs(name, quantised):
    bundle = Bundle.open(quantised)
    exact, rounded = (open_engine(name, bundle, 1, precision=one) for one in ("exact", "int8"))
    assert (exact.precision, rounded.precision) == ("float32", "int8")
    difference = np.abs(exact.encode(IMAGE) - rounded.encode(IMAGE)).max()
    assert 1e-4 < difference < 0.05


def test_bf16_runs_where_openvino_says_that_the_cpu_has_it(bf16_folder, monkeypatch):
    bundle = Bundle.open(bf16_folder)
    with pytest.raises(EngineError, match="no bf16"):
        open_engine("onnxruntime", bundle, 1, precision="bf16")
    if computes_bf16():
        engine = open_engine("openvino", bundle, 1, precision="bf16")
        difference = np.abs(engine.encode(IMAGE) - open_engine("openvino", bundle, 1).encode(IMAGE)).max()
        assert 0 < difference < 0.1
        assert open_engine("auto", bundle, 1, precision="auto").precision.endswith("bf16")
    else:
        with pytest.raises(EngineError, match="this CPU computes no bf16"):
            open_engine("openvino", bundle, 1, precision="bf16")
        monkeypatch.setattr(engines, "cpu_instructions", lambda: {"avx512_bf16"})
        engine = open_engine("openvino", bundle, 1, precision="fast")
        assert engine.precision == "float32"
        assert "left out: openvino bf16 (this CPU computes no bf16" in engine.choice


OVERLAPPING_ENGINES = """
import gc, signal, sys
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import open_engine

signal.signal(signal.SIGUSR1, lambda number, frame: print("caught"))
bundle = Bundle.open(sys.argv[1])
engines = [open_engine("openvino", bundle, 1, precision=sys.argv[2]) for _ in range(2)]
while engines:
    del engines[0]
    gc.collect()
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_signal_does_no_harm_after_overlapping_engines(bf16_folder):
    """On a CPU with bf16 this left the process a stack for signals that had been freed."""
    precision = "bf16" if computes_bf16() else "exact"
    command = [sys.executable, "-c", OVERLAPPING_ENGINES, str(bf16_folder), precision]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "caught"), done.stderr


def test_those_whose_graphs_are_refused_are_passed_over(quantised, monkeypatch):
    def refuse(self: OpenVinoEngine) -> None:
        raise EngineError("takes no such graph")

    monkeypatch.setattr(OpenVinoEngine, "ready", refuse)
    monkeypatch.setattr(engines, "cpu_instructions", lambda: {"avx512_vnni"})
    bundle = Bundle.open(quantised)
    engine = open_engine("auto", bundle, 1, precision="auto")
    assert (engine.name, engine.precision) == ("onnxruntime", "int8")
    assert engine.choice == "presumed the fastest; left out: openvino int8 (takes no such graph)"
    with pytest.raises(EngineError, match="takes no such graph"):
        open_engine("openvino", bundle, 1, precision="exact")


def test_that_nothing_runs_is_one_line(folder):
    model = onnx.load(folder / "decoder.onnx")
    model.graph.node[-1].op_type = "Sqeeze"
    replace_graph(folder, "decoder", model)
    why = r"nothing runs this bundle; left out: onnxruntime int8 \(.* failed: "
    with pytest.raises(EngineError, match=why) as caught:
        open_engine("onnxruntime", Bundle.open(folder), 1, precision="auto")
    assert len(str(caught.value).splitlines()) == 1


def test_fast_says_if_its_masks_do_not_agree(folder):
    told: list[str] = []
    for precision in ("fast", "auto", "int8"):
        open_engine("onnxruntime", Bundle.open(folder), 1, precision=precision, tell=told.append)
    assert told == []
    set_agreement(folder, "int8", agreement(0.97))
    open_engine("onnxruntime", Bundle.open(folder), 1, precision="fast", tell=told.append)
    (line,) = told
    assert line.startswith("int8 on onnxruntime changes the masks: ")
    assert "0.9700, under 0.99" in line
