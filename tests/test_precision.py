"""Which engine and precision run a bundle: of those that were measured to agree the fastest."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_edits import edit, replace_graph
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import litemed.runtime
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES, Cache, Engine, choice, open_engine, timing
from litemed.runtime.engines.choice import Candidate, candidates
from litemed.runtime.engines.openvino_engine import OpenVinoEngine, computes_bf16
from litemed.runtime.engines.timing import keep_times, kept_times
from litemed.runtime.errors import EngineError, OutputError, UsageError
from litemed.runtime.precision import Agreement, EngineAgreement, ModalityAgreement, Precision

Float = NDArray[np.float32]
Json = dict[str, Any]

IMAGE = np.random.default_rng(0).random((1, 3, 256, 256), np.float32)
BOXES = np.array([[20, 30, 120, 140], [60, 60, 200, 90]], np.float32)
BOTH = [f"{engine} {precision}" for engine in ENGINES for precision in ("float32", "int8")]

pytest.importorskip("openvino", reason="OpenVINO is an extra")


def agreement(dice: float = 0.995, **by_engine: float) -> Json:
    """The `agreement` of a manifest; another Dice for single engines if wanted."""
    engines = {
        name: {"modalities": {"CT": {"cases": 4, "dice": by_engine.get(name, dice), "dsc_change": -0.001}}}
        for name in ENGINES
    }
    return {"images": 4, "merge": "nested", "engines": engines}


def set_agreement(folder: pathlib.Path, precision: str, found: Json) -> None:
    edit(folder, lambda manifest: manifest["precisions"][precision].update(agreement=found))


@pytest.fixture(scope="module")
def quantised(box_bundle: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """`box_bundle` with the precision int8, which passes: an encoder that rounds its image to 8 bits."""
    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path_factory.mktemp("int8") / "bundle"))
    model = onnx.load(folder / "encoder.onnx")
    graph = model.graph
    for name, value in {"scale": np.array(1 / 255, np.float32), "zero": np.array(0, np.uint8)}.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["bytes"]),
        helper.make_node("DequantizeLinear", ["bytes", "scale", "zero"], ["rounded"]),
        *graph.node,
    ]
    nodes[2].input[0] = "rounded"
    del graph.node[:]
    graph.node.extend(nodes)

    def add(manifest: Json) -> None:
        manifest["graphs"]["encoder_int8"] = manifest["graphs"]["encoder"] | {"file": "encoder_int8.onnx"}
        manifest["precisions"]["int8"] = {
            "encoder": "encoder_int8",
            "decoder": "decoder",
            "agreement": agreement(),
        }

    edit(folder, add)
    replace_graph(folder, "encoder_int8", model)
    return folder


@pytest.fixture
def folder(quantised: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The same, to change."""
    return pathlib.Path(shutil.copytree(quantised, tmp_path / "bundle"))


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> Cache:
    return Cache(tmp_path / "cache")


def keep(
    cache: Cache, bundle: Bundle, seconds: dict[str, float], precision: str, engine: str = "auto"
) -> None:
    """Pretend that the candidates of a request were timed."""
    found, _ = candidates(bundle.manifest, engine, precision)
    keep_times(cache, bundle, found, 1, {candidate: seconds[str(candidate)] for candidate in found})


# The gate


Found = list[tuple[float, float | None]]


def judged(found: Found) -> Precision:
    modalities = {str(i): ModalityAgreement(1, *one) for i, one in enumerate(found)}
    return Precision("e", "d", Agreement(1, {"openvino": EngineAgreement(modalities)}))


@example([(0.99, -0.005), (1.0, None)])
@example([(1.0, 0.0), (0.9899, 0.0), (1.0, None)])
@example([(1.0, 0.01), (1.0, -0.0051)])
@given(st.lists(st.tuples(st.floats(0.97, 1), st.none() | st.floats(-0.02, 0.02)), min_size=1))
def test_a_precision_passes_if_both_conditions_hold_in_every_modality(found: Found) -> None:
    expected = all(dice >= 0.99 and (change is None or change >= -0.005) for dice, change in found)
    precision = judged(found)
    assert precision.passes("openvino") == expected
    assert (precision.shortcoming("openvino") is None) == expected


def test_what_was_not_measured_on_an_engine_does_not_pass_there() -> None:
    assert "not measured" in (judged([(1, 0.0)]).shortcoming("onnxruntime") or "")
    assert Precision("e", "d").passes("onnxruntime")


# The candidates


def test_each_request_has_its_candidates(folder: pathlib.Path) -> None:
    set_agreement(folder, "int8", agreement(openvino=0.98))
    manifest = Bundle.open(folder).manifest

    def found(engine: str, precision: str) -> set[str]:
        return {str(candidate) for candidate in candidates(manifest, engine, precision)[0]}

    assert found("auto", "exact") == {"openvino float32", "onnxruntime float32"}
    assert found("auto", "auto") == {"openvino float32", "onnxruntime float32", "onnxruntime int8"}
    assert found("auto", "fast") == set(BOTH)
    assert found("openvino", "auto") == {"openvino float32"}
    assert found("openvino", "fast") == {"openvino float32", "openvino int8"}
    assert found("openvino", "int8") == {"openvino int8"}
    (left_out,) = candidates(manifest, "auto", "auto")[1].items()
    assert left_out[0] == Candidate("openvino", "int8")
    assert "0.9800, under 0.99" in left_out[1]


def test_unknown_precisions_are_refused(box_bundle: pathlib.Path) -> None:
    for precision in ("int8", "half", ""):
        with pytest.raises(UsageError, match="choose one of exact, fast, auto, float32"):
            litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1, precision=precision)


@pytest.mark.parametrize(
    ("instructions", "fastest"),
    [
        (set(), {"auto": "onnxruntime int8", "openvino": "openvino float32"}),
        ({"avx2"}, {"auto": "onnxruntime int8", "openvino": "openvino float32"}),
        ({"avx2", "avx512_vnni"}, {"auto": "openvino int8", "onnxruntime": "onnxruntime int8"}),
    ],
)
def test_unless_timed_the_fastest_is_presumed_by_the_cpu_s_instructions(
    instructions: set[str], fastest: dict[str, str], quantised: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "cpu_instructions", lambda: instructions)
    monkeypatch.setattr(timing, "time_candidates", None)  # to call it would fail
    bundle = Bundle.open(quantised)
    for name, expected in fastest.items():
        for precision in ("auto", "fast"):
            engine = open_engine(name, bundle, 1, precision=precision)
            assert f"{engine.name} {engine.precision}" == expected
            assert engine.choice.startswith("presumed the fastest")
        exact = open_engine(name, bundle, 1)
        assert exact.precision == "float32"
        assert exact.choice.startswith("presumed") == (name == "auto")


@pytest.fixture
def bf16_bundle(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path / "bundle"))
    rounded = {"encoder": "encoder", "decoder": "decoder", "bf16": ["encoder"], "agreement": agreement()}
    edit(folder, lambda manifest: manifest["precisions"].update({"bf16": rounded, "int8-bf16": rounded}))
    return folder


def test_onnx_runtime_is_no_candidate_for_bf16_and_a_cpu_that_has_it_presumes_it_the_fastest(
    bf16_bundle: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Bundle.open(bf16_bundle).manifest
    exact = ["openvino float32", "onnxruntime float32"]
    for instructions, expected in (
        ({"avx512_bf16", "avx512_vnni"}, ["openvino int8-bf16", "openvino bf16", *exact]),
        ({"avx2"}, [*exact, "openvino bf16", "openvino int8-bf16"]),
    ):
        monkeypatch.setattr(choice, "cpu_instructions", lambda found=instructions: found)
        assert [str(one) for one in candidates(manifest, "auto", "fast")[0]] == expected


# What is run


@pytest.mark.parametrize("name", ENGINES)
def test_each_precision_runs_its_own_graphs(name: str, quantised: pathlib.Path) -> None:
    bundle = Bundle.open(quantised)
    exact, rounded = (open_engine(name, bundle, 1, precision=one) for one in ("exact", "int8"))
    assert (exact.precision, rounded.precision) == ("float32", "int8")
    difference = np.abs(exact.encode(IMAGE) - rounded.encode(IMAGE)).max()
    assert 1e-4 < difference < 0.05


def test_bf16_runs_where_openvino_says_that_the_cpu_has_it(bf16_bundle: pathlib.Path, cache: Cache) -> None:
    bundle = Bundle.open(bf16_bundle)
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
        engine = open_engine("openvino", bundle, 1, precision="fast", cache=cache)
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


def test_a_signal_does_no_harm_after_overlapping_engines(bf16_bundle: pathlib.Path) -> None:
    """On a CPU with bf16 this left the process a stack for signals that had been freed."""
    arguments = [str(bf16_bundle), "bf16" if computes_bf16() else "exact"]
    command = [sys.executable, "-c", OVERLAPPING_ENGINES, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "caught"), done.stderr


# What is the fastest


@pytest.mark.parametrize("fastest", BOTH)
def test_what_was_timed_decides(fastest: str, quantised: pathlib.Path, cache: Cache) -> None:
    bundle = Bundle.open(quantised)
    keep(cache, bundle, dict.fromkeys(BOTH, 2.0) | {fastest: 1.0}, "auto")
    opened = open_engine("auto", bundle, 1, precision="auto", cache=cache)
    assert f"{opened.name} {opened.precision}" == fastest
    assert opened.choice.startswith(f"timed on this CPU: {fastest} 1000 ms, ")


def test_candidates_are_timed_once_and_the_fastest_is_taken(
    quantised: pathlib.Path, cache: Cache, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that time are started wherever the user is: what lies there must not be imported."""
    downloaded = tmp_path / "downloaded"
    downloaded.mkdir()
    for name in ("numpy", "random", "json"):
        (downloaded / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    monkeypatch.chdir(downloaded)
    bundle = Bundle.open(quantised)
    told: list[str] = []
    first = open_engine("auto", bundle, 1, precision="auto", cache=cache, tell=told.append)
    assert not (tmp_path / "run").exists()
    assert len(told) == 1
    assert told[0].startswith("timing 4 ways to run boxes on this CPU, once")
    found, _ = candidates(bundle.manifest, "auto", "auto")
    times = kept_times(cache, bundle, found, 1)
    assert times is not None
    assert all(isinstance(times[candidate], float) for candidate in found)
    again = open_engine("auto", bundle, 1, precision="auto", cache=cache, tell=told.append)
    assert len(told) == 1
    for engine in (first, again):
        assert Candidate(engine.name, engine.precision) == min(found, key=lambda one: times[one])
        assert engine.choice == first.choice


def test_a_cache_that_cannot_be_written_costs_time_only(
    quantised: pathlib.Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr(Cache, "store", full)
    told: list[str] = []
    bundle = Bundle.open(quantised)
    opened = open_engine("openvino", bundle, 1, precision="auto", cache=cache, tell=told.append)
    assert opened.encode(IMAGE).shape[1] == 256
    assert "they are not kept: no space left" in told


def test_of_candidates_those_whose_graphs_are_refused_are_passed_over(
    quantised: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = "OpenVINO: takes no such graph"

    def refuse(self: OpenVinoEngine) -> None:
        raise EngineError(refused)

    monkeypatch.setattr(OpenVinoEngine, "ready", refuse)
    bundle = Bundle.open(quantised)
    assert open_engine("auto", bundle, 1, precision="auto").name == "onnxruntime"
    with pytest.raises(EngineError, match=refused):
        open_engine("openvino", bundle, 1, precision="exact")


def test_what_was_timed_of_others_does_not_count(folder: pathlib.Path, cache: Cache) -> None:
    bundle = Bundle.open(folder)
    found, _ = candidates(bundle.manifest, "onnxruntime", "fast")
    keep_times(cache, bundle, found, 1, dict.fromkeys(found, 1.0))
    assert kept_times(cache, bundle, found, 1) is not None
    assert kept_times(cache, bundle, found, 2) is None
    assert kept_times(cache, bundle, found[:1], 1) is None
    model = onnx.load(folder / "decoder.onnx")
    model.doc_string = "another"
    replace_graph(folder, "decoder", model)
    assert kept_times(cache, Bundle.open(folder), found, 1) is None


def test_no_time_is_spent_beyond_the_budget(
    quantised: pathlib.Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "BUDGET_SECONDS", 0.0)
    engine = open_engine("auto", Bundle.open(quantised), 1, precision="fast", cache=cache)
    assert engine.choice.count(" ms") == 2  # or nothing would be compared
    assert engine.choice.count("(there was no time left to try it)") == 2


def spoil(folder: pathlib.Path, key: str) -> None:
    """Give a graph an operator that no engine knows, honestly hashed."""
    model = onnx.load(folder / f"{key}.onnx")
    model.graph.node[-1].op_type = "Sqeeze"
    replace_graph(folder, key, model)


def test_a_graph_that_an_engine_refuses_is_left_out(folder: pathlib.Path, cache: Cache) -> None:
    spoil(folder, "encoder_int8")
    engine = open_engine("onnxruntime", Bundle.open(folder), 1, precision="fast", cache=cache)
    assert engine.precision == "float32"
    assert "left out: onnxruntime int8 (" in engine.choice
    assert "failed: " in engine.choice
    assert len(engine.choice.splitlines()) == 1


def test_that_nothing_runs_is_one_line_and_is_not_kept(folder: pathlib.Path, cache: Cache) -> None:
    spoil(folder, "decoder")
    bundle = Bundle.open(folder)
    with pytest.raises(EngineError, match="failed: ") as caught:
        open_engine("onnxruntime", bundle, 1, precision="auto", cache=cache)
    assert len(str(caught.value).splitlines()) == 1
    assert kept_times(cache, bundle, candidates(bundle.manifest, "onnxruntime", "auto")[0], 1) is None


OPEN = """
import sys
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import Cache, open_engine
bundle = Bundle.open(sys.argv[1])
for cache in (None, Cache(sys.argv[2])):
    engine = open_engine("auto", bundle, 1, precision="exact", cache=cache)
    print(engine.name, engine.choice)
"""


def test_an_engine_that_is_not_installed_is_left_out(quantised: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "path" / "openvino").mkdir(parents=True)
    (tmp_path / "path" / "openvino" / "__init__.py").write_text("raise ImportError('not installed')")
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(quantised), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "path")},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line, reason in zip(lines, ("presumed the fastest", "timed on this CPU"), strict=True):
        assert line.startswith(f"onnxruntime {reason}")
        assert 'left out: openvino float32 (OpenVINO cannot be loaded (not installed); pip install "' in line


# What the user is told


def told_of(folder: pathlib.Path, cache: Cache, fastest: str) -> tuple[Engine, list[str]]:
    """Open "fast" with one precision pretended to be the fastest; return what was told."""
    bundle, told = Bundle.open(folder), list[str]()
    seconds = {f"onnxruntime {one}": 1.0 + (one != fastest) for one in bundle.manifest.precisions}
    keep(cache, bundle, seconds, "fast", "onnxruntime")
    engine = open_engine("onnxruntime", bundle, 1, precision="fast", cache=cache, tell=told.append)
    assert engine.precision == fastest
    return engine, told


def test_fast_says_if_nothing_is_faster_or_what_is_does_not_agree(
    folder: pathlib.Path, box_bundle: pathlib.Path, cache: Cache
) -> None:
    assert told_of(folder, cache, "int8")[1] == []
    engine, told = told_of(folder, cache, "float32")
    assert told == [f"nothing faster than float32 on this CPU in this bundle ({engine.choice})"]
    told = []
    open_engine("onnxruntime", Bundle.open(box_bundle), 1, precision="fast", tell=told.append)
    assert told == ["nothing faster than float32 on this CPU in this bundle (onnxruntime)"]
    set_agreement(folder, "int8", agreement(0.97))
    (line,) = told_of(folder, cache, "int8")[1]
    assert line.startswith("int8 on onnxruntime changes the masks: ")
    assert "0.9700, under 0.99" in line


class Recording(Cache):
    """Remembers what was stored under what."""

    stored: list[tuple[str, ...]]

    def store(self, data: bytes, *depends_on: str) -> None:
        super().store(data, *depends_on)
        self.stored.append(depends_on)


@pytest.mark.parametrize("precision", ["exact", "int8"])
def test_openvino_is_told_its_precision_whatever_its_default(
    precision: str, quantised: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    recording = Recording(tmp_path / "cache")
    recording.stored = []
    open_engine("openvino", Bundle.open(quantised), 1, precision=precision, cache=recording)
    hints = [json.loads(depends_on[-1])["INFERENCE_PRECISION_HINT"] for depends_on in recording.stored]
    assert hints == ["f32", "f32"]
