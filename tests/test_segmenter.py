"""The path from an image and boxes to a label map, on graphs whose masks are the boxes themselves."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

import litemed.runtime
from litemed.runtime.boxes import Boxes, scale_boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.engines import BOXES_PER_CALL, ENGINES, Engine, open_engine
from litemed.runtime.engines.protocol import Float
from litemed.runtime.errors import EngineError, InputError
from litemed.runtime.method import Method
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import LogitResizer
from litemed.runtime.segmenter import Segmenter

PAPER = Method(merge="argmax", volume="box", zoom="off")
BOX = Method(volume="box")


def test_a_wrong_spacing_is_refused(box_bundle):
    segmenter = litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)
    volume, boxes = np.zeros((3, 8, 8), np.uint8), [[0, 0, 0, 4, 4, 2]]
    assert segmenter.segment(volume, boxes, spacing=np.array([3, 1, 1])).shape == (3, 8, 8)
    for spacing in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, np.nan), "abc", ("a", "b", "c"), 3):
        with pytest.raises(InputError, match="image: spacing"):
            segmenter.segment(volume, boxes, spacing=spacing)


class Watched:
    """An engine that tells what it was asked for."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.version, self.threads = engine.name, engine.version, engine.threads
        self.decoders = ("decoder",)
        self.encoded: list[Float] = []
        self.rested_after: list[tuple[int, int]] = []
        self.decoded: list[Float] = []
        self._engine = engine

    def encode(self, image: Float) -> Float:
        self.encoded.append(image)
        return self._engine.encode(image)

    def rest_encoder(self) -> None:
        self.rested_after.append((len(self.encoded), len(self.decoded)))
        self._engine.rest_encoder()

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        self.decoded.append(boxes.copy())
        return self._engine.decode(embedding, boxes)


@pytest.fixture(scope="module", params=ENGINES)
def plain_engine(request, box_bundle):
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is an extra")
    return open_engine(request.param, Bundle.open(box_bundle), threads=1)


@pytest.fixture
def engine(plain_engine):
    return Watched(plain_engine)


@pytest.fixture
def segmenter(box_bundle, engine):
    return Segmenter(Bundle.open(box_bundle), engine)


def image(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def boxes_in(rng: np.random.Generator, count: int, height: int, width: int) -> NDArray[np.int64]:
    low = rng.integers(0, [width - 8, height - 8], (count, 2))
    high = rng.integers(low + 4, [width + 1, height + 1])
    return np.concatenate([low, high], axis=1)


def expected_slice(
    boxes: NDArray[np.int64], numbers: list[int], height: int, width: int
) -> NDArray[np.uint16]:
    """The definition, on full planes: distance to the nearest edge, background of zeros last, argmax."""
    frame = Frame.of(height, width)
    resizer = LogitResizer(frame)
    across = np.arange(256, dtype=np.float32)
    planes = []
    for x0, y0, x1, y1 in scale_boxes(boxes, frame):
        horizontal, vertical = np.minimum(across - x0, x1 - across), np.minimum(across - y0, y1 - across)
        planes.append(resizer.resize(np.minimum(horizontal, vertical[:, None])))
    winner = np.stack([*planes, np.zeros((height, width), np.float32)]).argmax(axis=0)
    return np.array([*numbers, 0], np.uint16)[winner]


def test_the_last_case_gives_the_encoders_memory_back_and_loses_nothing(segmenter, engine):
    volume = image(4, 60, 80)
    boxes = Boxes.parse([[5, 5, 0, 40, 40, 2], [30, 10, 1, 70, 50, 2]], volume.shape)
    case = Case("c", volume, boxes)
    expected = segmenter.run(case, BOX).labels
    assert engine.rested_after == []
    encoded, decoded = len(engine.encoded), len(engine.decoded)
    np.testing.assert_array_equal(segmenter.run(case, BOX, last=True).labels, expected)
    assert engine.rested_after == [(encoded + 3, decoded + 2)]  # all slices encoded, the last not yet decoded
    np.testing.assert_array_equal(segmenter.run(case, BOX).labels, expected)


@pytest.mark.parametrize("shape", [(90, 140), (300, 420, 3), (700, 20), (256, 256, 3)])
@pytest.mark.parametrize("count", [1, 2, BOXES_PER_CALL, 3 * BOXES_PER_CALL + 1])
def test_an_image_is_encoded_once_and_its_boxes_merged(segmenter, engine, shape, count):
    height, width = shape[:2]
    boxes = boxes_in(np.random.default_rng(count), count, height, width)
    result = segmenter.run(Case("c", image(*shape), Boxes.parse(boxes, shape)), PAPER)
    np.testing.assert_array_equal(
        result.labels, expected_slice(boxes, list(range(1, count + 1)), height, width)
    )
    assert result.labels.dtype == np.uint8
    assert len(engine.encoded) == result.encodings == 1
    assert sum(map(len, engine.decoded)) == result.decodings == count
    assert max(map(len, engine.decoded)) <= BOXES_PER_CALL
    assert all(seconds > 0 for seconds in result.seconds.values())


def volume_boxes(rng: np.random.Generator, count: int, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    flat = boxes_in(rng, count, *shape[1:])
    z = np.sort(rng.integers(0, shape[0], (count, 2)), axis=1)
    return np.concatenate([flat[:, :2], z[:, :1], flat[:, 2:], z[:, 1:]], axis=1)


@pytest.mark.parametrize("count", [1, 3, 2 * BOXES_PER_CALL + 1])
def test_a_volume_is_segmented_slice_by_slice(segmenter, engine, count):
    shape = (11, 60, 80)
    boxes = volume_boxes(np.random.default_rng(count), count, shape)
    volume = image(*shape)
    calls: list[tuple[int, int]] = []
    result = segmenter.run(
        Case("v", volume, Boxes.parse(boxes, shape)),
        PAPER,
        progress=lambda *call: calls.append(call),
    )
    covered = 0
    for position in range(shape[0]):
        here = [i for i in range(count) if boxes[i, 2] <= position <= boxes[i, 5]]
        covered += bool(here)
        numbers = [i + 1 for i in here]
        plane = expected_slice(boxes[here][:, [0, 1, 3, 4]], numbers, *shape[1:])
        np.testing.assert_array_equal(result.labels[position], plane)
    assert len(engine.encoded) == result.encodings == covered
    assert calls == [(done, covered) for done in range(1, covered + 1)]
    assert result.decodings == (boxes[:, 5] - boxes[:, 2] + 1).sum()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((9, 9), np.float32), np.zeros((9, 9), np.int16), np.zeros((9, 9), bool), [[1, 2], [3, 4]], "x"],
)
def test_images_that_are_not_uint8_are_refused_with_advice(segmenter, wrong):
    with pytest.raises(InputError, match=r"not uint8; scale it to 0\.\.255"):
        segmenter.segment(wrong, [[1, 1, 5, 5]])


@pytest.mark.parametrize(
    ("shape", "boxes"),
    [
        ((64, 64), []),
        ((64, 64), [[1, 1, 0, 5, 5, 1]]),
        ((4, 64, 64), [[1, 1, 5, 5]]),
        ((0, 64), [[1, 1, 5, 5]]),
    ],
)
def test_boxes_that_do_not_fit_are_refused_before_anything_runs(segmenter, engine, shape, boxes):
    with pytest.raises(InputError):
        segmenter.segment(np.zeros(shape, np.uint8), boxes)
    assert not engine.encoded


class Broken(Watched):
    poison = np.nan

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        logits, iou = super().decode(embedding, boxes)
        logits[0, 0, 0] = self.poison
        return logits, iou


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("propagate", [False, True])
def test_damaged_logits_are_an_error_not_a_mask(box_bundle, plain_engine, propagate, poison, monkeypatch):
    monkeypatch.setattr(Broken, "poison", poison)
    with pytest.raises(EngineError, match="not finite"):
        Segmenter(Bundle.open(box_bundle), Broken(plain_engine)).segment(
            image(64, 64), [[8, 8, 40, 40]], propagate=propagate
        )


class Small:
    """An engine for inputs of 64 x 64 pixels: logits are the distance to the nearest edge of the box."""

    name, version, threads = "small", "0", 1
    decoders = ("decoder",)

    def encode(self, image: Float) -> Float:
        assert image.shape == (1, 3, 64, 64)
        return np.zeros((1, 256, 16, 16), np.float32)

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        x0, y0, x1, y1 = boxes.T[:, :, None]
        across = np.arange(64, dtype=np.float32)
        logits = np.minimum(
            np.minimum(across - x0, x1 - across)[:, None], np.minimum(across - y0, y1 - across)[..., None]
        )
        return logits, np.zeros(len(boxes), np.float32)


@pytest.mark.parametrize("propagate", [False, True])
def test_a_bundle_says_the_size_of_the_input(box_bundle, propagate):
    bundle = Bundle.open(box_bundle)
    small_input = dataclasses.replace(bundle.manifest.input, size=64)
    small = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, input=small_input))
    labels = Segmenter(small, Small()).segment(image(320, 640), [[100, 50, 300, 250]], propagate=propagate)
    rows, columns = np.flatnonzero(labels.any(axis=1)), np.flatnonzero(labels.any(axis=0))
    assert np.abs([columns[0] - 105, rows[0] - 55, columns[-1] - 300, rows[-1] - 250]).max() <= 6


@pytest.mark.parametrize("propagate", [False, True])
def test_masks_end_at_their_boxes_where_the_caller_says_so(box_bundle, propagate):
    class Everything(Small):
        def encode(self, image: Float) -> Float:
            return np.zeros((1, 256, 64, 64), np.float32)

        def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
            return np.ones((len(boxes), 256, 256), np.float32), np.zeros(len(boxes), np.float32)

    volume, box = image(3, 40, 50), [[5, 6, 1, 30, 20, 2]]
    expected = np.zeros(volume.shape, np.uint8)
    expected[1:3, 6:21, 5:31] = 1
    everywhere = np.zeros(volume.shape, np.uint8)
    everywhere[1:3] = 1
    segmenter = Segmenter(Bundle.open(box_bundle), Everything())
    for asked, wanted in ((True, expected), (False, everywhere)):
        found = segmenter.segment(volume, box, propagate=propagate, crop_masks=asked)
        np.testing.assert_array_equal(found, wanted)
        flat = segmenter.segment(volume[0], [[5, 6, 30, 20]], propagate=propagate, crop_masks=asked)
        np.testing.assert_array_equal(flat, wanted[1])


def test_load_gives_a_segmenter_that_holds_no_graphs(box_bundle):
    segmenter = litemed.runtime.load(str(box_bundle), engine="onnxruntime", threads=2)
    assert segmenter.engine.threads == 2
    assert segmenter.bundle.digest == Bundle.open(box_bundle).digest
    assert not segmenter.bundle.graphs


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, litemed.runtime as runtime; runtime.load\n"
        "print(runtime.__version__, sorted({'numpy', 'cv2', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0.1.0 []\n"
