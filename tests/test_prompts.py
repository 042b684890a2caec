"""Boxes are those of the labels, loosened as the settings say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.train.config import Prompts
from litemed.train.prepare.objects import Objects, boxes_of, keep, number
from litemed.train.prompts import Prompted, draw_prompts, loosen

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
TIGHT = Prompts(jitter_pixels=0)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def random_labels(seed: int, images: int = 3) -> torch.Tensor:
    """Return label maps of up to five rectangles that may overlap; the first is empty."""
    random = np.random.default_rng(seed)
    labels = np.zeros((images, SIZE, SIZE), np.int32)
    for plane in labels[1:]:
        for label in random.choice(60_000, 5, replace=False) + 1:
            y, x = random.integers(SIZE, size=2)
            plane[y : y + random.integers(1, 20), x : x + random.integers(1, 20)] = label
    return torch.from_numpy(labels)


def whole(labels: torch.Tensor) -> torch.Tensor:
    return torch.full((len(labels), 2), SIZE)


def objects_of(plane: torch.Tensor, least: int = 1) -> Objects:
    objects = number(plane.numpy().astype(np.uint16))
    return keep(objects, objects.sizes >= least)


def boxes_drawn(prompted: Prompted, image: int) -> set[tuple[float, ...]]:
    return {tuple(box) for box in prompted.boxes[prompted.image_of_box == image].tolist()}


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 10**6), least=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_boxes_without_jitter_are_those_of_validation(device, seed, least):
    labels = random_labels(seed)
    places = labels.to(device), whole(labels).to(device)
    drawn = draw_prompts(*places, TIGHT, generator(seed, device), 100, least)
    for image, plane in enumerate(labels):
        objects = objects_of(plane, least)
        assert boxes_drawn(drawn, image) == {tuple(box) for box in boxes_of(objects).astype(float).tolist()}
        masks = drawn.masks[drawn.image_of_box == image].cpu()
        assert sorted(masks.sum((1, 2)).tolist()) == sorted(objects.sizes.tolist())


@given(seed=st.integers(0, 10**6), per_image=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_what_is_drawn_belongs_together(seed, per_image):
    labels = random_labels(seed)
    drawn = draw_prompts(labels, whole(labels), Prompts(), generator(seed), per_image)
    assert (drawn.boxes.dtype, drawn.masks.dtype) == (torch.float32, torch.uint8)
    assert (drawn.image_of_box.dtype, drawn.weights.dtype) == (torch.int64, torch.float32)
    assert len(drawn.boxes) == len(drawn.masks) == len(drawn.image_of_box) == len(drawn.weights)
    seen = set()
    for mask, image in zip(drawn.masks.bool(), drawn.image_of_box.tolist(), strict=True):
        number = int(labels[image][mask][0])
        assert number > 0
        assert torch.equal(labels[image] == number, mask)
        assert (image, number) not in seen
        seen.add((image, number))
    assert (drawn.image_of_box.diff() >= 0).all()
    counts = torch.bincount(drawn.image_of_box, minlength=len(labels))
    large = [len(objects_of(plane, 4)) for plane in labels]
    assert counts.tolist() == [min(per_image, count) for count in large]
    sums = torch.zeros(len(labels)).index_add_(0, drawn.image_of_box, drawn.weights)
    torch.testing.assert_close(sums, (counts > 0).float())


def test_without_objects_there_is_one_box_of_no_weight():
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.int32)
    drawn = draw_prompts(labels, whole(labels), Prompts(tight=0.3, jittered=0.3), generator(0))
    assert (drawn.boxes.shape, drawn.masks.shape) == ((1, 4), (1, SIZE, SIZE))
    assert (drawn.weights.tolist(), drawn.image_of_box.tolist()) == ([0], [0])


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 256),
    width=st.integers(1, 256),
    tight=st.floats(0, 0.5),
    jittered=st.floats(0, 0.5),
    volume=st.floats(0, 1),
    pixels=st.integers(0, 128),
)
@settings(max_examples=100, deadline=None)
def test_boxes_keep_to_the_content_have_an_area_and_are_whole(
    seed, height, width, tight, jittered, volume, pixels
):
    random = np.random.default_rng(seed)
    low = random.integers(0, (width, height), (20, 2))
    high = np.maximum(random.integers(low, (width, height)), low + 1)
    boxes = torch.from_numpy(np.concatenate([low, high], axis=1))
    rest = 0.999 - tight - jittered if tight + jittered < 0.999 else 0.0
    loose = Prompts(tight, jittered, loose=rest * (1 - volume), volume=rest * volume, jitter_pixels=pixels)
    out = loosen(
        boxes, torch.tensor([[height, width]] * 20), 256, loose, generator(seed), torch.arange(20) % 2 == 0
    )
    assert out.dtype == torch.float32
    assert torch.equal(out, out.round())
    assert (out >= 0).all()
    assert (out <= torch.tensor([width, height, width, height])).all()
    assert (out[:, 2:] > out[:, :2]).all()


def moves(
    prompts: Prompts, size: int = 256, box: tuple[int, ...] = (100, 100, 150, 140), of_volume: bool = True
) -> torch.Tensor:
    """Return by how much the edges of 4,000 boxes move outwards, (4000, 4)."""
    tight, extent = torch.tensor([box] * 4000), torch.full((4000, 2), size)
    moved = loosen(tight, extent, size, prompts, generator(0), torch.full((4000,), of_volume))
    return (moved - tight) * torch.tensor([-1, -1, 1, 1])


def test_the_papers_boxes_grow_by_0_to_5_pixels_alike():
    grown = moves(Prompts())
    for pixels in range(6):
        assert (grown == pixels).float().mean() == pytest.approx(1 / 6, abs=0.02)
    half = moves(Prompts(), size=128, box=(50, 50, 70, 70))  # pixels of half the size
    assert (half.min(), half.max()) == (0, 3)
    assert half.mean() == pytest.approx(1.25, abs=0.05)


def test_tight_boxes_are_tight_or_a_pixel_larger():
    grown = moves(Prompts(tight=1.0))
    assert set(grown.unique().tolist()) == {0, 1}
    assert grown.mean() == pytest.approx(0.2, abs=0.02)  # (1 - 0.6) / 2, of a pixel of 0.6 in the mean


def test_jittered_edges_move_either_way_by_a_share_of_the_side():
    moved = moves(Prompts(jittered=1.0))
    assert moved.mean() == pytest.approx(0, abs=0.1)
    assert moved[:, [0, 2]].abs().amax() == 10  # a fifth of 50
    assert moved[:, [1, 3]].abs().amax() == 8
    assert 0.2 < (moved[:, 0].abs() > 5).float().mean() < 0.3  # half of one half: a tenth is as likely


def test_the_shares_of_the_kinds_are_those_of_the_settings():
    grown = moves(Prompts(tight=0.3, jittered=0.0, jitter_pixels=128))
    assert (grown.amax(1) <= 1).float().mean() == pytest.approx(0.3, abs=0.03)
    mixed = moves(Prompts(tight=0.3, jittered=0.5, jitter_pixels=0))
    assert (mixed.amin(1) < 0).float().mean() == pytest.approx(0.5 * (1 - 0.5**4), abs=0.05)


def test_loose_edges_move_outwards_by_shares_of_a_strength_of_the_boxs_own():
    shares = moves(Prompts(loose=1.0), size=4096, box=(1000, 1000, 2000, 1500)) / torch.tensor(
        [1000, 500, 1000, 500]
    )
    assert (shares.min(), shares.max()) == (0, pytest.approx(0.4, abs=0.02))
    assert shares.mean() == pytest.approx(0.1, abs=0.005)
    assert np.corrcoef(shares.T.numpy())[0, 1:].min() > 0.3  # of one box: its strength


def test_boxes_of_volumes_are_as_far_off_as_measured_and_in_2d_tight():
    """The quartiles of real slices that `litemed.train.prompts` names, each within a twentieth of a side."""
    box = (1500, 1500, 2000, 1900)
    moved = moves(Prompts(volume=1.0), size=4096, box=box) / torch.tensor([500, 400, 500, 400])
    longer = (1 + moved[:, :2] + moved[:, 2:]).log()
    quarters = torch.tensor([0.25, 0.5, 0.75])
    assert longer.flatten().quantile(quarters).tolist() == pytest.approx([0.04, 0.18, 0.43], abs=0.05)
    assert moved.flatten().quantile(quarters).tolist() == pytest.approx([0.0, 0.05, 0.25], abs=0.05)
    assert (moved < -0.1).float().mean() == pytest.approx(0.1, abs=0.03)
    flat = moves(Prompts(volume=1.0), of_volume=False)
    assert torch.equal(flat.unique(), torch.tensor([0.0, 1.0]))


def test_each_image_has_boxes_of_its_own_kind():
    labels = torch.zeros(2, SIZE, SIZE, dtype=torch.int32)
    labels[:, 20:40, 20:40] = 1
    drawn = [
        draw_prompts(labels, whole(labels), Prompts(volume=1.0), generator(seed), of_volume=of_volume)
        for seed in range(20)
        for of_volume in [torch.tensor([False, True])]
    ]
    near = torch.stack([(one.boxes - torch.tensor([20, 20, 39, 39])).abs().amax(1) <= 1 for one in drawn])
    assert near[:, 0].all()
    assert not near[:, 1].all()
