"""The runtime's label maps are those of the published LiteMedSAM, on both engines."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import litemed.runtime
from litemed.runtime.boxes import scale_boxes
from litemed.runtime.method import Method
from litemed.runtime.preprocess import preprocess

CASES = ("2DBox_Golden_five", "2DBox_Golden_one", "2DBox_Golden_upscaled", "3DBox_Golden_three")
PAPER = dataclasses.asdict(Method.of_paper())
AGREEMENT = 0.999  # of the voxels; these weights give noise-like masks, with many values near zero

Find = Callable[[str], pathlib.Path]
Expected = dict[str, NDArray[Any]]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request):
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture(scope="module", params=["plain", "loralib"])
def layout(request):
    return str(request.param)


@pytest.fixture(scope="module")
def segmenter(engine, layout, golden_bundle):
    return litemed.runtime.load(golden_bundle(layout), engine=engine, threads=2)


def case(shared: Find, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with np.load(shared(f"golden/cases/{name}.npz"), allow_pickle=False) as file:
        return file["imgs"], file["boxes"]


def assert_agrees(labels: NDArray[np.unsignedinteger], expected: NDArray[Any]) -> None:
    assert labels.dtype == expected.dtype == np.uint8
    assert labels.shape == expected.shape
    assert expected.any()
    assert (labels == expected).mean() >= AGREEMENT


@pytest.mark.slow
def test_embedding_logits_and_iou(segmenter, layout, shared, golden_expected):
    image, boxes = case(shared, "2DBox_Golden_five")
    network_input, frame = preprocess(image)
    embedding = segmenter.engine.encode(network_input)
    logits, iou = segmenter.engine.decode(embedding, scale_boxes(boxes, frame))
    for found, name in (
        (embedding[:, :, ::4, ::4], "embedding_every4"),
        (logits[:, None, ::2, ::2], "logits"),
        (iou[:, None], "iou"),
    ):
        np.testing.assert_allclose(found, golden_expected[f"{layout}_{name}"], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_point_prompts(segmenter, layout, shared, golden_expected):
    embedding = segmenter.engine.encode(golden_expected["image"])
    points = np.array([[[40, 60], [60, 70], [200, 90], [0, 0]]], np.float32)
    logits, _ = segmenter.engine.decode_points(embedding, points, np.array([[1, 1, 0, -1]], np.float32))
    expected = golden_expected[f"{layout}_points_logits_every2"]
    np.testing.assert_allclose(logits[:, None, ::2, ::2], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_argmax_label_maps(segmenter, layout, name, shared, golden_expected):
    labels = segmenter.segment(*case(shared, name), **PAPER)
    assert_agrees(labels, golden_expected[f"{layout}_argmax_{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sequential_label_maps(engine, name, golden_bundle, shared, golden_expected):
    segmenter = litemed.runtime.load(golden_bundle("plain"), engine=engine, threads=2)
    labels = segmenter.segment(*case(shared, name), propagate=True)
    assert_agrees(labels, golden_expected[f"plain_sequential_{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
def test_label_maps_do_not_hang_on_the_number_of_threads(
    engine, threads, golden_bundle, shared, golden_expected
):
    segmenter = litemed.runtime.load(golden_bundle("plain"), engine=engine, threads=threads)
    labels = segmenter.segment(*case(shared, CASES[0]), **PAPER)
    assert_agrees(labels, golden_expected[f"plain_argmax_{CASES[0]}"])
