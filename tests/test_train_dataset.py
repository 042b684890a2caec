"""A sample is the slice as the runtime scales it, its labels in the same place; a batch is its samples."""

from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.benchmarks.phantoms import draw_image
from litemed.runtime.preprocess import preprocess
from litemed.train.config import Config, updated
from litemed.train.dataset import Batch, generator_of, load_batch, make_examples
from litemed.train.prepare.store import SliceInfo


class Pictures:
    """Slices in memory."""

    def __init__(self, items: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._items[i]

    def info(self, i: int) -> SliceInfo:
        return SliceInfo("US", "ab"[i % 2], "train", f"picture{i}", 0, 3)

    def indices_by_modality(self) -> dict[str, np.ndarray]:
        return {"US": np.arange(len(self))}


def drawn(count: int) -> Pictures:
    """Return drawn images of three objects; number 1 has none."""
    phantoms = [draw_image(64, 96, 3, seed=seed) for seed in range(count)]
    return Pictures([(one.image, one.labels * (i != 1)) for i, one in enumerate(phantoms)])


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
    batch = load_batch([0], Pictures([(image, np.ones((height, width), np.uint8))]), size)
    expected, frame = preprocess(image, size)
    extent = (frame.scaled_height, frame.scaled_width)
    assert batch.extent.tolist() == [list(extent)]
    still = {"augmentation": {"kind": "none"}, "prompts": {"jitter_pixels": 0}}
    generator = generator_of(0, 0, 0, torch.device("cpu"))
    made, prompts = make_examples(batch, updated(Config(), still, ""), generator)
    assert np.allclose(made.numpy(), expected, atol=1e-6)
    assert prompts.masks[0, : extent[0], : extent[1]].all()
    assert prompts.masks.sum() == extent[0] * extent[1]


def test_a_bad_slice_is_named_and_takes_its_place_without_an_object():
    data = drawn(3)
    batch = load_batch([0, 1, 2], data, 64, 4)
    assert batch.skipped == ["US/b/picture1 slice 0: no object of at least 4 pixels at size 64"]
    assert batch.image.shape == (3, 3, 64, 64)
    assert (batch.image.dtype, batch.labels.dtype, batch.extent.dtype) == (
        torch.uint8,
        torch.int32,
        torch.int64,
    )
    assert [int(labels.max()) for labels in batch.labels] == [3, 0, 3]
    for i in (0, 2):
        alone = load_batch([i], data, 64, 4)
        assert torch.equal(batch.image[i], alone.image[0])
        assert torch.equal(batch.extent[i], alone.extent[0])
    generator = generator_of(0, 0, 0, torch.device("cpu"))
    image, prompts = make_examples(batch, Config(), generator)
    assert image.isfinite().all()
    assert prompts.image_of_box.tolist() == [0, 0, 0, 2, 2, 2]
    assert prompts.weights.sum() == pytest.approx(2)


def test_examples_follow_from_seed_epoch_and_step():
    batch = load_batch([0, 1, 2], drawn(3), 64, 4)
    config = updated(Config(), {"augmentation": {"kind": "strong"}}, "")

    def made(*numbers: int) -> list[torch.Tensor]:
        image, prompts = make_examples(batch, config, generator_of(*numbers, torch.device("cpu")))
        return [image, prompts.boxes]

    one = made(1, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(one, made(1, 2, 3), strict=True))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(one[0], made(*other)[0])


def test_batches_take_no_shared_memory_from_process_to_process():
    """As pickles they hold their bytes, where those of tensors name files in /dev/shm."""
    batch = load_batch([0, 1], drawn(2), 64)
    pickled = ForkingPickler.dumps(batch)
    assert len(pickled) > batch.image.numpy().nbytes + batch.labels.numpy().nbytes
    back = ForkingPickler.loads(pickled)
    assert isinstance(back, Batch)
    assert all(torch.equal(one, other) for one, other in zip(back[:4], batch[:4], strict=True))
    assert back.skipped == batch.skipped
