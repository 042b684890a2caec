"""A sample is the slice as the runtime scales it, its labels in the same place; a batch is its samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.benchmarks.phantoms import draw_image
from litemed.runtime.errors import InputError
from litemed.runtime.preprocess import preprocess
from litemed.train.config import Config
from litemed.train.dataset import Sample, Skipped, TrainingSet, by_source, collate, make_sample, resize_slice
from litemed.train.examples import generator_of, make_examples
from litemed.train.prepare.store import SliceInfo
from litemed.train.prompts import find_boxes
from litemed.train.tables import updated


class Pictures:
    """Slices in memory: `count` drawn images of three objects, of which number `broken` has none."""

    def __init__(self, count: int, broken: int | None = None) -> None:
        drawn = [draw_image(64, 96, 3, seed=seed) for seed in range(count)]
        self._items = [(phantom.image, phantom.labels) for phantom in drawn]
        if broken is not None:
            self._items[broken] = (self._items[broken][0], np.zeros((64, 96), np.uint8))

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._items[i]

    def info(self, i: int) -> SliceInfo:
        return SliceInfo("US", "ab"[i % 2], "train", f"picture{i}", 0, 3)

    def indices_by_modality(self) -> dict[str, np.ndarray]:
        return {"US": np.arange(len(self))}


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    grey=st.booleans(),
    size=st.sampled_from([64, 128]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_a_sample_without_augmentation_is_what_the_runtime_makes_of_the_slice(
    height, width, grey, size, seed
):
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (height, width) if grey else (height, width, 3)).astype(np.uint8)
    sample = make_sample(image, np.ones((height, width), np.uint8), size)
    expected, frame = preprocess(image, size)
    assert sample.extent == (frame.scaled_height, frame.scaled_width)
    still = {"augmentation": {"flip_horizontal": 0.0, "flip_vertical": 0.0}, "prompts": {"jitter_pixels": 0}}
    generator = generator_of(0, 0, 0, 0, torch.device("cpu"))
    made, prompts = make_examples(collate([sample], size), updated(Config(), still, ""), generator)
    assert np.allclose(made.numpy(), expected, atol=1e-6)
    assert prompts.masks[0, : sample.extent[0], : sample.extent[1]].all()
    assert prompts.masks.sum() == sample.extent[0] * sample.extent[1]


@pytest.mark.parametrize("shape", [(256, 256), (256, 180), (100, 256), (256, 31)])
def test_resized_labels_lie_where_the_resized_image_lies(shape):
    """The middle of a disc is the same in both: half a pixel would be seen."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    disc = np.hypot(y - shape[0] * 0.45, x - shape[1] * 0.55) < min(shape) * 0.3
    image, labels = resize_slice((disc * 250).astype(np.uint8), disc.astype(np.uint8), 64)
    assert image.shape == labels.shape
    for axis in np.mgrid[0 : labels.shape[0], 0 : labels.shape[1]]:
        assert np.average(axis, weights=image) == pytest.approx(np.average(axis, weights=labels), abs=0.25)


def test_slices_are_parted_by_their_source():
    parted = by_source(Pictures(5), np.array([4, 1, 2, 3]))
    assert {name: part.tolist() for name, part in parted.items()} == {"a": [4, 2], "b": [1, 3]}


def test_small_objects_are_left_out_and_lines_get_a_box_with_an_area():
    labels = np.zeros((20, 20), np.uint8)
    labels[2, 3:9] = 1
    labels[10, 10] = 2
    labels[15:18, 19] = 5
    assert find_boxes(labels).numbers.tolist() == [1, 2, 5]
    assert find_boxes(labels).xyxy.tolist() == [[3, 2, 8, 3], [10, 10, 11, 11], [19, 15, 20, 17]]
    assert find_boxes(labels, min_pixels=3).numbers.tolist() == [1, 5]
    assert len(find_boxes(np.zeros((5, 5), np.uint8))) == 0


@pytest.mark.parametrize(
    ("image", "labels", "words"),
    [
        (np.zeros((8, 8), np.float32), np.ones((8, 8), np.uint8), "float32"),
        (np.zeros((8, 8, 4), np.uint8), np.ones((8, 8), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((8, 8), np.uint8), np.ones((8, 9), np.uint8), r"labels of shape \(8, 9\)"),
        (np.zeros((8, 8), np.uint8), np.ones((8, 8), np.int16), "int16"),
        (np.zeros((8, 8), np.uint8), np.full((8, 8), 70000, np.uint32), "70000"),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.uint8), "no object"),
        (np.zeros((0, 8), np.uint8), np.zeros((0, 8), np.uint8), "labels of shape"),
    ],
)
def test_a_slice_that_cannot_be_used_says_why(image, labels, words):
    with pytest.raises(InputError, match=words):
        make_sample(image, labels, 64)


def test_objects_that_are_too_small_at_the_networks_size_do_not_count():
    labels = np.zeros((256, 256), np.uint8)
    labels[40:44, 40:44] = 1
    assert make_sample(labels, labels, 64, 1).labels.sum() == 1
    with pytest.raises(InputError, match="no object of at least 2 pixels at size 64"):
        make_sample(labels, labels, 64, 2)


def test_a_bad_slice_is_named_and_takes_its_place_without_an_object():
    data = TrainingSet(Pictures(3, broken=1), 64, 4)
    batch = collate([data[i] for i in range(3)], 64)
    assert batch.skipped == ("US/b/picture1 slice 0: no object of at least 4 pixels at size 64",)
    assert batch.image.shape == (3, 3, 64, 64)
    assert (batch.image.dtype, batch.labels.dtype, batch.extent.dtype) == (
        torch.uint8,
        torch.int32,
        torch.int64,
    )
    assert [int(labels.max()) for labels in batch.labels] == [3, 0, 3]
    for i in (0, 2):
        sample = data[i]
        assert isinstance(sample, Sample)
        assert np.array_equal(batch.image[i], sample.image)
        assert tuple(batch.extent[i].tolist()) == sample.extent
    generator = generator_of(0, 0, 0, 0, torch.device("cpu"))
    image, prompts = make_examples(batch, Config(), generator)
    assert image.isfinite().all()
    assert prompts.image_of_box.tolist() == [0, 0, 0, 2, 2, 2]
    assert prompts.weights.sum() == pytest.approx(2)


def test_a_batch_of_bad_slices_only_weighs_nothing():
    batch = collate([Skipped("a"), Skipped("b")], 64)
    assert batch.skipped == ("a", "b")
    image, prompts = make_examples(batch, Config(), generator_of(0, 0, 0, 0, torch.device("cpu")))
    assert image.shape == (2, 3, 64, 64)
    assert (len(prompts), prompts.weights.tolist()) == (1, [0.0])
    assert prompts.masks.shape == (1, 64, 64)


def test_examples_follow_from_seed_epoch_step_and_process():
    data = TrainingSet(Pictures(3), 64, 4)
    batch = collate([data[i] for i in range(3)], 64)
    strong = {name: 1.0 for name in vars(Config().augmentation)}
    config = updated(Config(), {"augmentation": strong}, "")

    def made(*numbers: int) -> list[torch.Tensor]:
        image, prompts = make_examples(batch, config, generator_of(*numbers, torch.device("cpu")))
        return [image, prompts.boxes]

    one = made(1, 2, 3, 0)
    assert all(torch.equal(a, b) for a, b in zip(one, made(1, 2, 3, 0), strict=True))
    for other in ((2, 2, 3, 0), (1, 3, 3, 0), (1, 2, 4, 0), (1, 2, 3, 1)):
        assert not torch.equal(one[0], made(*other)[0])
