"""Points and masks as prompts: scaled as the published predictor does, checked, answered like PyTorch."""

import numpy as np
import pytest
import torch

import litemed.runtime
from litemed.export.bundle import Contents
from litemed.export.graphs import graph_specs, simplify, to_onnx
from litemed.models.checkpoint import untrained_checkpoint
from litemed.models.encoders import LIGHT
from litemed.runtime.errors import EngineError, InputError, UsageError
from litemed.runtime.preprocess import preprocess
from litemed.runtime.resize import LogitResizer

SIZE = 64
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (96, 128, 3), np.uint8)
VOLUME = RNG.integers(0, 256, (5, 96, 128), np.uint8)
BOXES = [[10, 20, 60, 70], [64, 8, 120, 90]]
POINTS = [[[30, 40, 1], [100.5, 10, 0]], [[90, 50, 1]]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return untrained_checkpoint(3, LIGHT)


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def segmenter(request, model, tmp_path_factory):
    pytest.importorskip(request.param)
    path = tmp_path_factory.mktemp("points") / "bundle"
    specs = graph_specs(model.models(SIZE))
    graphs = {spec.name: simplify(to_onnx(spec), spec.name) for spec in specs}
    Contents("points", model, SIZE, specs, graphs).write(path)
    return litemed.runtime.load(path, engine=request.param, threads=1)


def close(found: np.ndarray, expected: torch.Tensor) -> bool:
    return bool(np.abs(found - expected.detach()[:, 0].numpy()).max() < 1e-4)


@torch.inference_mode()
def test_predictions_are_those_of_the_network(segmenter, model):
    network, encoded = model.model(SIZE), segmenter.encode(IMAGE)
    network_input, frame = preprocess(IMAGE, SIZE)
    embedding = network.encode(torch.from_numpy(network_input))
    boxes = torch.tensor(BOXES) // 2  # the published truncation
    kinds = [torch.tensor([[1, 0]]), torch.tensor([[1]])]
    xy = [torch.tensor([one])[..., :2] / 2 for one in POINTS]
    first = encoded.predict(BOXES)
    expected = network.decode(embedding, boxes)
    assert close(first.logits, expected[0])
    assert close(first.iou, expected[1])
    mask = torch.from_numpy(first.logits[1:2, np.newaxis])
    for i in (0, 1):
        alone, boxed = encoded.predict(points=POINTS), encoded.predict(BOXES, points=POINTS)
        assert close(alone.logits[[i]], network.decode(embedding, points=(xy[i], kinds[i]))[0])
        assert close(boxed.logits[[i]], network.decode(embedding, boxes[[i]], (xy[i], kinds[i]))[0])
    corrected = encoded.predict(points=POINTS, masks=[None, first.logits[1]])
    assert close(corrected.logits[[0]], network.decode(embedding, points=(xy[0], kinds[0]))[0])
    assert close(corrected.logits[[1]], network.decode(embedding, points=(xy[1], kinds[1]), masks=mask)[0])
    planes = np.stack([np.zeros(IMAGE.shape[:2]), *map(LogitResizer(frame).resize, corrected.logits)])
    np.testing.assert_array_equal(corrected.labels, planes.argmax(axis=0))


def test_a_point_lies_on_a_slice_of_a_volume(segmenter):
    encoded, flat = segmenter.encode(VOLUME), segmenter.encode(VOLUME[3])
    found = encoded.segment(points=POINTS, z=3)
    np.testing.assert_array_equal(found[3], flat.predict(points=POINTS).labels)
    assert found.shape == VOLUME.shape
    assert not found[[0, 1, 2, 4]].any()
    np.testing.assert_array_equal(
        flat.segment(BOXES, points=POINTS), flat.predict(BOXES, points=POINTS).labels
    )


@pytest.mark.parametrize(
    ("prompts", "fault"),
    [
        ({}, "prompts: none; give each object"),
        ({"masks": [None]}, "prompts: 1 masks; give each object"),
        ({"points": []}, "there are none"),
        ({"boxes": BOXES, "points": POINTS[:1]}, "prompts: 2 boxes, 1 points;"),
        ({"points": [POINTS[0], []]}, "object 2 has neither a box nor a point"),
        ({"points": [[[128, 4, 1]]]}, r"points of object 1: \[128, 4\] is outside the image of 128 x 96"),
        ({"points": [[[np.nan, 4, 1]]]}, r"\[nan, 4\] is outside"),
        ({"points": [[[4, 4, 2]]]}, "third number is 1"),
        ({"points": [[[4, 4]]]}, r"have shape \(1, 2\)"),
        ({"points": [[4, 4, 1]]}, r"have shape \(3,\)"),
        ({"points": ["abc"]}, "no table of numbers"),
        ({"points": [[[4, 4, 1]] * 257]}, "257; the most is 256"),
        ({"boxes": BOXES, "masks": [None, np.zeros((64, 64), bool)]}, "mask of object 2: bool of shape"),
        ({"boxes": BOXES, "masks": [None, np.zeros((96, 128))]}, "mask of object 2: float64 of shape"),
        ({"boxes": BOXES, "masks": [np.full((64, 64), np.inf), None]}, "mask of object 1"),
        ({"boxes": [[1, 1, 1, 1]]}, "needs x0 < x1"),
        ({"boxes": BOXES, "z": 1}, "an image has no slices"),
        ({"boxes": BOXES, "z": "1"}, "z: '1'; give the number of a slice"),
        ({"boxes": BOXES, "z": True}, "z: True; give the number of a slice"),
        ({"points": 5}, "points: is a int; give one of each object"),
        ({"boxes": BOXES, "masks": object()}, "masks: is a object; give one of each object"),
        ({"boxes": BOXES[:1], "masks": [[[1], [1, 2]]]}, "mask of object 1: is no array"),
        ({"boxes": BOXES[:1], "masks": [np.full((64, 64), 1e300)]}, "mask of object 1: float64"),
    ],
)
def test_prompts_that_are_refused(segmenter, prompts, fault):
    with pytest.raises(InputError, match=fault):
        segmenter.encode(IMAGE).predict(**prompts)


def test_what_does_not_go_together(segmenter, box_bundle):
    encoded = segmenter.encode(IMAGE)
    with pytest.raises(UsageError, match="merge: is for boxes alone"):
        encoded.segment(points=POINTS, merge="argmax")
    for given in ({}, {"boxes": BOXES, "z": 0}):
        with pytest.raises(UsageError, match="give boxes, or points"):
            encoded.segment(**given)
    for z in (None, -1, 5):
        with pytest.raises(InputError, match="give one from 0 to 4"):
            segmenter.encode(VOLUME).predict(points=POINTS, z=z)
    plain = litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1).encode(IMAGE)
    with pytest.raises(EngineError, match="takes no masks"):
        plain.predict(BOXES[:1], masks=[np.zeros((256, 256), np.float32)])
