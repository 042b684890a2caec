"""Both engines compute what a bundle's graphs say, for any number of boxes, and fail in one line."""

import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from bundle_edits import edit, replace_graph
from numpy.typing import NDArray

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import BOXES_PER_CALL, ENGINES, Cache, Engine, available_threads, open_engine
from litemed.runtime.engines.cpu import cpu_quota, own_cores
from litemed.runtime.errors import EngineError, OutputError, UsageError

Float = NDArray[np.float32]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request, box_bundle):
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is an extra")
    return open_engine(request.param, Bundle.open(box_bundle), threads=1)


def some_boxes(count: int) -> Float:
    rng = np.random.default_rng(count)
    low = rng.integers(0, 200, (count, 2))
    return np.concatenate([low, low + rng.integers(5, 56, (count, 2))], axis=1).astype(np.float32)


def distances(boxes: Float) -> Float:
    """What the decoder of `box_bundle` computes: the distance to the nearest edge, positive within."""
    across = np.arange(256, dtype=np.float32)
    x0, y0, x1, y1 = (column[:, None] for column in boxes.T)
    horizontal, vertical = np.minimum(across - x0, x1 - across), np.minimum(across - y0, y1 - across)
    return np.minimum(horizontal[:, None, :], vertical[:, :, None])


def test_encodes(engine):
    image = np.random.default_rng(0).random((1, 3, 256, 256)).astype(np.float32)
    embedding = engine.encode(image)
    assert (embedding.shape, embedding.dtype) == ((1, 256, 64, 64), np.float32)
    engine.encode(np.zeros_like(image))  # results outlive the next call
    expected = image.reshape(1, 3, 64, 4, 64, 4).mean(axis=(3, 5)).sum(axis=1)
    np.testing.assert_allclose(embedding[0, 17], expected[0], rtol=0, atol=1e-5)
    assert engine.version.startswith("20" if engine.name == "openvino" else "1.")
    with pytest.raises(EngineError) as caught:
        engine.encode(np.zeros((1, 3, 64, 64), np.float32))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("count", [1, BOXES_PER_CALL, 2 * BOXES_PER_CALL + 3])
def test_decodes_any_number_of_boxes_but_few_at_a_time(count, engine, monkeypatch):
    boxes, embedding, sizes, run = some_boxes(count), np.zeros((1, 256, 64, 64), np.float32), [], engine.run

    def recording(graph: object, outputs: list[str], inputs: dict[str, Float]) -> list[Float]:
        sizes.append(len(inputs["points"]))
        return run(graph, outputs, inputs)

    monkeypatch.setattr(engine, "run", recording)
    logits, iou = engine.decode(embedding, boxes)
    assert (max(sizes), sum(sizes)) == (min(count, BOXES_PER_CALL), count)
    engine.decode(embedding, boxes[::-1])
    np.testing.assert_array_equal(logits, distances(boxes))
    np.testing.assert_array_equal(iou, distances(boxes).max(axis=(1, 2)))


def test_a_decoder_that_returns_other_shapes(engine, monkeypatch):
    shapes = [(2, 1, 256, 256), (1, 256, 256), (2, 64, 64)]
    answers = iter([np.zeros(shape, np.float32), np.zeros(2, np.float32)] for shape in shapes)
    monkeypatch.setattr(engine, "run", lambda *_: next(answers))
    for _ in shapes:
        with pytest.raises(EngineError, match="export the bundle again"):
            engine.decode(np.zeros((1, 256, 64, 64), np.float32), some_boxes(2))


@pytest.mark.parametrize("name", ENGINES)
def test_further_decoders_are_loaded_when_they_are_first_needed(name, loose_bundle, tmp_path, monkeypatch):
    if name == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is an extra")
    bundle, loaded, load = Bundle.open(loose_bundle), [], Engine._load

    def recording(self: Engine, some: Bundle, role: str, key: str) -> object:
        loaded.append((role, key))
        return load(self, some, role, key)

    monkeypatch.setattr(Engine, "_load", recording)
    engine = open_engine(name, bundle, 1, cache=Cache(tmp_path / "cache"))
    boxes, embedding = some_boxes(BOXES_PER_CALL + 1), np.zeros((1, 256, 64, 64), np.float32)
    np.testing.assert_array_equal(engine.decode(embedding, boxes)[0], distances(boxes))
    assert list(engine.decoders) == ["decoder", "loose_decoder", "tile_decoder"]
    assert sorted(loaded) == [("decoder", "decoder"), ("encoder", "encoder")]
    for decoder, margin in (("tile_decoder", 1), ("loose_decoder", 8), ("tile_decoder", 1), ("decoder", 0)):
        expected = distances(boxes) - margin
        np.testing.assert_array_equal(engine.decode(embedding, boxes, decoder)[0], expected)
    assert loaded[2:] == [("decoder", "decoder_tiles"), ("decoder", "decoder_loose")]
    assert len(list((tmp_path / "cache").iterdir())) == (4 if name == "openvino" else 0)


def test_a_further_decoder_that_is_none_or_not_there(loose_bundle, box_bundle, tmp_path):
    folder = pathlib.Path(shutil.copytree(loose_bundle, tmp_path / "bundle"))
    replace_graph(folder, "decoder_loose", onnx.load(folder / "encoder.onnx"))
    engine = open_engine("onnxruntime", Bundle.open(folder), threads=1)  # needs it not yet
    engine.load_decoder("loose_decoder")
    with pytest.raises(EngineError, match=r"decoder_loose\.onnx: is no decoder"):
        engine.ready()
    engine = open_engine("onnxruntime", Bundle.open(box_bundle), threads=1)
    assert list(engine.decoders) == ["decoder"]
    with pytest.raises(EngineError, match="no loose decoder; export it with --loose-decoder"):
        engine.decode(np.zeros((1, 256, 64, 64), np.float32), some_boxes(1), "loose_decoder")


def edit_graph(folder: pathlib.Path, role: str, change: Callable[[Any], object]) -> None:
    model = onnx.load(folder / f"{role}.onnx")
    change(model.graph)
    replace_graph(folder, role, model)


def freeze(graph: Any) -> None:
    graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: replace_graph(f, "decoder", onnx.load(f / "encoder.onnx")), "is no decoder"),
        (lambda folder: edit(folder, lambda m: m["input"].update(size=512)), "is no encoder"),
        (lambda f: edit_graph(f, "encoder", lambda g: g.output.append(g.input[0])), "is no encoder"),
        (lambda f: edit_graph(f, "decoder", freeze), "is no decoder"),
        (lambda f: edit_graph(f, "decoder", lambda g: setattr(g.node[0], "op_type", "Sqeeze")), "failed"),
    ],
)
def test_a_graph_that_does_not_fit_its_role_is_refused_as_it_is_loaded(
    spoil, why, name, box_bundle, tmp_path
):
    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path / "bundle"))
    spoil(folder)
    with pytest.raises(EngineError, match=why) as caught:
        open_engine(name, Bundle.open(folder), threads=1)
    assert len(str(caught.value).splitlines()) == 1


def test_unknown_engines_and_thread_counts(box_bundle):
    for name, threads, why in (("tensorrt", 1, "tensorrt"), ("auto", 0, "0"), ("auto", 10**6, "1000000")):
        with pytest.raises(UsageError, match=why):
            open_engine(name, Bundle.open(box_bundle), threads)


def test_a_missing_engine_says_what_to_install_and_auto_takes_the_other(box_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    with pytest.raises(EngineError, match=r"in the checkout: pip install '\.\[openvino\]'$"):
        open_engine("openvino", Bundle.open(box_bundle))
    assert open_engine("auto", Bundle.open(box_bundle)).name == "onnxruntime"


def test_threads_default_to_what_the_process_may_use(box_bundle):
    cpus = os.sched_getaffinity(0)
    assert 1 <= available_threads() <= len(cpus)
    assert open_engine("onnxruntime", Bundle.open(box_bundle)).threads == available_threads()
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert available_threads() == 1
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "parent" / "cache"


def test_an_entry_is_found_by_just_what_it_depends_on(kept):
    cache = Cache(kept)
    for content in (b"content", b"newer"):
        cache.store(content, "a", "b")
        assert Cache(kept).load("a", "b") == content
    assert not any(cache.load(*other) for other in [("a",), ("ab",), ("b", "a"), ("a", "b", ""), ("a,b",)])
    (entry,) = kept.iterdir()
    assert (kept.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)


def flip(entry: pathlib.Path) -> None:
    data = bytearray(entry.read_bytes())
    data[-1] ^= 1
    entry.write_bytes(data)


def put_another(entry: pathlib.Path) -> None:
    Cache(entry.parent).store(b"theirs", "b")
    (theirs,) = set(entry.parent.iterdir()) - {entry}
    theirs.rename(entry)


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        lambda entry: (entry.rename(entry.parent / "other"), entry.symlink_to("other")),
        put_another,
        lambda entry: entry.chmod(0o620),
        lambda entry: entry.write_bytes(b""),
        lambda entry: (entry.unlink(), entry.mkdir()),
        lambda entry: (entry.unlink(), os.mkfifo(entry)),
    ],
)
def test_an_entry_that_is_damaged_or_may_be_another_s_is_not_used(harm, kept):
    cache = Cache(kept)
    cache.store(b"content", "a")
    harm(*kept.iterdir())
    assert cache.load("a") is None


def test_a_cache_that_others_may_write_into_or_that_is_no_folder_is_refused(kept, tmp_path):
    Cache(kept)
    (tmp_path / "link").symlink_to(kept)
    for name in (tmp_path / "link", __file__):
        with pytest.raises(UsageError, match="is no folder"):
            Cache(name)
    for mode in (0o770, 0o702, 0o777):
        kept.chmod(mode)
        with pytest.raises(UsageError, match="not yours alone"):
            Cache(kept)


def test_openvino_takes_from_the_cache_what_it_compiled_and_can_do_without(box_bundle, kept, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    bundle, cache, image = Bundle.open(box_bundle), Cache(kept), np.ones((1, 3, 256, 256), np.float32)
    compiled: list[str] = []

    def opened(threads: int = 1) -> float:
        return float(open_engine("openvino", bundle, threads, cache=cache).encode(image).max())

    def full(self: Cache, data: bytes, graph: str, *rest: str) -> None:
        compiled.append(graph)
        raise OutputError("no space left")

    for threads, entries in ((1, 2), (2, 4)):  # other options, other entries
        assert (opened(threads), len(list(kept.iterdir()))) == (3, entries)
    monkeypatch.setattr(Cache, "store", full)
    assert (opened(), compiled) == (3, [])
    for entry in kept.iterdir():
        flip(entry)
    assert opened() == 3
    assert set(compiled) == {graph.sha256 for graph in bundle.manifest.graphs.values()}
    monkeypatch.setattr(Cache, "load", lambda *_: b"no compiled graph")
    assert opened() == 3


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hardware_threads_of_one_core_count_once(tmp_path):
    for cpu, siblings in {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2"}.items():
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", f"{siblings}\n")
    assert own_cores([0, 1, 2, 4, 5], tmp_path) == 3
    assert own_cores([0, 4, 6, 7], tmp_path) == 3  # of the last two nothing is known


@pytest.mark.parametrize(
    ("files", "own", "quota"),
    [
        ({}, "", np.inf),
        ({"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "150000 100000\n"}, "0::/a/b\n", 1.5),
        ({"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "400000 100000\n"}, "0::/a/b\n", 1),
        ({"cpu.max": "250000 100000\n"}, "0::/not/visible/here\n", 2.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", np.inf),
        ({"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "4:cpu:/x\n", np.inf),
        ({"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, "4:cpu:/x\n", 0.5),
    ],
)
def test_cpu_quota(files, own, quota, tmp_path):
    for name, text in files.items():
        write(tmp_path / "mount" / name, text)
    write(tmp_path / "own", own)
    assert cpu_quota(tmp_path / "mount", tmp_path / "own") == quota
