"""An image that is encoded once and asked often."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

import litemed.runtime
from litemed.runtime import interactive
from litemed.runtime.engines import Engine
from litemed.runtime.errors import InputError, UsageError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (300, 400, 3), np.uint8)
VOLUME = RNG.integers(0, 256, (20, 64, 80), np.uint8)
BOXES = [[10, 10, 90, 90], [50, 60, 200, 220], [380, 280, 390, 290], [0, 0, 400, 300]]


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def encodings(segmenter, monkeypatch):
    """The network inputs that the engine encoded."""
    seen, encode = [], segmenter.engine.encode
    monkeypatch.setattr(segmenter.engine, "encode", lambda image: seen.append(image) or encode(image))
    return seen


def test_an_image_is_encoded_once_and_gives_the_labels_of_segment(segmenter, encodings):
    encoded = segmenter.encode(IMAGE)
    assert len(encodings) == 1
    for boxes in ([BOXES[0]], [BOXES[1]], BOXES[:2], [BOXES[0]]):
        found = encoded.segment(boxes, zoom="off")
        assert len(encodings) == 1
        assert (found == segmenter.segment(IMAGE, boxes, zoom="off")).all()
        del encodings[1:]
    tile = encoded.segment([BOXES[2]])
    assert len(encodings) == 2
    assert (encoded.segment([BOXES[2]]) == tile).all()
    assert len(encodings) == 2
    assert (tile == segmenter.segment(IMAGE, [BOXES[2]])).all()


def test_slices_of_a_volume_are_encoded_when_they_are_asked_for(segmenter, encodings):
    encoded = segmenter.encode(VOLUME, spacing=(2.0, 1.0, 1.0))
    assert not encodings
    encoded.segment([[5, 5, 4, 40, 40, 4]])
    assert len(encodings) == 1
    whole = encoded.segment([[5, 5, 2, 40, 40, 6]], volume="ellipsoid")
    assert len(encodings) == 5
    planes = [[5, 5, 0, 40, 40, 19]]
    prompts = ([[5, 5, 2, 40, 40, 6]], {"volume": "ellipsoid"}), (planes, {}), (planes, {"propagate": True})
    for boxes, method in prompts:
        expected = segmenter.segment(VOLUME, boxes, spacing=(2.0, 1.0, 1.0), **method)
        del encodings[:]
        assert (encoded.segment(boxes, **method) == expected).all()
        del encodings[:]
        assert (encoded.segment(boxes, **method) == expected).all()
        assert not encodings
    assert whole.any()


def test_no_more_is_kept_than_there_is_room_for(segmenter, encodings, monkeypatch):
    monkeypatch.setattr(interactive, "KEPT_EMBEDDINGS", 2)
    encoded = segmenter.encode(VOLUME)
    for position, count in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        encoded.segment([[5, 5, position, 40, 40, position]])
        assert len(encodings) == count


def test_threads_take_turns_and_each_gets_its_own(segmenter):
    encoded = segmenter.encode(IMAGE)
    boxes = [[[x, 10, x + 60, 90]] for x in range(0, 320, 40)]
    expected = [segmenter.segment(IMAGE, one) for one in boxes]
    found = {}

    def ask(number: int) -> None:
        for _ in range(5):
            labels = encoded.segment(boxes[number]) if number % 2 else segmenter.segment(IMAGE, boxes[number])
            found[number] = found.get(number, True) and (labels == expected[number]).all()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(boxes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(len(boxes)), True)


def test_one_that_fails_leaves_it_usable(segmenter):
    encoded = segmenter.encode(IMAGE)
    with pytest.raises(InputError, match="box 1"):
        encoded.segment([[500, 0, 600, 10]])
    with pytest.raises(UsageError, match="merge"):
        encoded.segment([BOXES[0]], merge="mean")
    for wrong in (IMAGE.astype(float), IMAGE[0, 0], IMAGE[None, None]):
        with pytest.raises(InputError, match="image"):
            segmenter.encode(wrong)
    with pytest.raises(InputError, match="spacing"):
        segmenter.encode(VOLUME, spacing=(0.0, 1.0, 1.0))
    assert encoded.segment([BOXES[0]]).any()
    assert isinstance(segmenter.engine, Engine)


def test_the_notebook_runs(capsys):
    path = Path(__file__).resolve().parent.parent / "docs" / "interactive.ipynb"
    names: dict[str, object] = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]), names)  # noqa: S102
    said = capsys.readouterr().out
    assert "of 20 slices" in said
    assert "True" in said


def test_the_caller_may_draw_on_an_image_that_was_encoded(segmenter):
    image = IMAGE.copy()
    encoded = segmenter.encode(image)
    before = encoded.segment(BOXES)
    image[:] = 0
    np.testing.assert_array_equal(encoded.segment(BOXES), before)
