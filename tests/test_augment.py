"""Augmentation keeps image and labels on one another, and does what its name says."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.runtime.preprocess import preprocess
from litemed.train.augment import (
    NONE,
    Chances,
    augment,
    blur,
    chances_of,
    content_of,
    move,
    recolour,
)
from litemed.train.config import Augmentation

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
MOVES = ("flip_horizontal", "flip_vertical", "zoom", "turn", "stretch", "aspect", "elastic", "tiles")
COLOURS = ("grey", "gains", "gamma", "window", "invert", "blur", "bias", "noise")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

extents = st.one_of(
    st.tuples(st.just(SIZE), st.integers(1, SIZE)), st.tuples(st.integers(1, SIZE), st.just(SIZE))
)


def only(**probabilities: float) -> Chances:
    return dataclasses.replace(NONE, **probabilities)


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def scenes(
    seed: int, extent: list[tuple[int, int]], colour: bool = True, size: int = SIZE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images of noise, and labels of three rectangles that may cover one another."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (len(extent), 3 if colour else 1, size, size)).astype(np.uint8)
    labels = np.zeros((len(extent), size, size), np.int32)
    for plane, (height, width) in zip(labels, extent, strict=True):
        for number in (1, 2, 70_000):
            y, x = random.integers(height), random.integers(width)
            plane[y : y + random.integers(3, 30), x : x + random.integers(3, 30)] = number
    sides = torch.tensor(extent)
    content = content_of(sides, size)
    planes = torch.from_numpy(image).expand(-1, 3, -1, -1) * content
    return planes, torch.from_numpy(labels) * content[:, 0], sides


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 10**6), extent=st.lists(extents, min_size=1, max_size=3), flat=st.booleans())
@settings(max_examples=30, deadline=None)
def test_with_all_off_an_image_is_what_the_runtime_makes_of_it(device, seed, extent, flat):
    image, labels, sides = scenes(seed, extent)
    if flat:
        image = torch.full_like(image, 77) * content_of(sides, SIZE)
    out, same, still = augment(
        image.to(device), labels.to(device), sides.to(device), NONE, generator(seed, device)
    )
    assert (out.dtype, same.dtype, still.dtype) == (torch.float32, torch.int32, torch.int64)
    assert torch.equal(same.cpu(), labels)
    assert torch.equal(still.cpu(), sides)
    for one, (height, width), made in zip(image, extent, out.cpu(), strict=True):
        content = one[:, :height, :width].permute(1, 2, 0).contiguous().numpy()
        np.testing.assert_allclose(made.numpy(), preprocess(content, SIZE)[0][0], rtol=0, atol=1e-6)


@given(
    seed=st.integers(0, 10**6),
    extent=st.lists(extents, min_size=1, max_size=4),
    names=st.sets(st.sampled_from(MOVES), min_size=1),
)
@settings(max_examples=50, deadline=None)
def test_every_label_comes_from_the_place_that_the_image_comes_from(seed, extent, names):
    """An image that tells each pixel's place, moved, tells where every moved label has to come from."""
    _, labels, sides = scenes(seed, extent)
    content = content_of(sides, SIZE)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    places = torch.stack([y, x, torch.ones_like(x)]).float() * content  # and what lies within
    chosen = only(**dict.fromkeys(names, 1.0))
    moved, moved_labels, frame = move(places, labels, sides, chosen, generator(seed))
    outside = ~content_of(frame, SIZE)
    assert (moved * outside == 0).all()
    assert (moved_labels * outside[:, 0] == 0).all()
    assert (frame.amax(1) == SIZE).all()
    assert frame.amin() >= 1
    within = moved[:, 2] > 1 - 1e-5  # of all pixels that have a part in the linear interpolation
    image = torch.arange(len(labels))[:, None, None].expand_as(within)[within]
    error = 1e-3  # of float32 where a place lies midway between two pixels
    candidates = torch.stack(
        [
            labels[image, *(moved[:, axis][within].add(step).round().long().clamp(0, SIZE - 1)
                            for axis, step in enumerate(steps))]
            for steps in itertools.product((-error, error), repeat=2)
        ]
    )  # fmt: skip
    assert (candidates == moved_labels[within]).any(0).all()
    for before, after in zip(labels, moved_labels, strict=True):
        assert set(after.unique().tolist()) <= {0, *before.unique().tolist()}


@given(seed=st.integers(0, 10**6), extent=extents, horizontal=st.booleans(), vertical=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_flip_mirrors_the_content_exactly(seed, extent, horizontal, vertical):
    image, labels, sides = scenes(seed, [extent])
    chosen = only(flip_horizontal=float(horizontal), flip_vertical=float(vertical))
    flipped, flipped_labels, same = move(image.float(), labels, sides, chosen, generator(seed))
    height, width = extent
    axes = [axis for axis, flips in ((-2, vertical), (-1, horizontal)) if flips]
    assert torch.equal(flipped[..., :height, :width], image[..., :height, :width].flip(axes).float())
    assert torch.equal(flipped_labels[..., :height, :width], labels[..., :height, :width].flip(axes))
    assert torch.equal(same, sides)


def disc(middle: tuple[float, float], radius: float, size: int = 128) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2)[None].int()


def test_image_and_labels_move_by_the_same_fraction_of_a_pixel():
    """A disc's middle, found in the interpolated image, is that of its label; half a pixel would be seen."""
    labels = disc((60, 50), 20).expand(100, -1, -1)
    image = labels[:, None].float() * 200
    moves = only(zoom=1, turn=1, stretch=1, elastic=1, flip_horizontal=0.5)
    moved, moved_labels, _ = move(image, labels, torch.full((100, 2), 128), moves, generator(0))
    at = torch.arange(128).float()
    apart = []
    for axis in (1, 2):
        middles = [
            (p.float().sum(3 - axis) @ at) / p.float().sum((1, 2)) for p in (moved[:, 0], moved_labels)
        ]
        apart.append(middles[0] - middles[1])
    assert torch.stack(apart).abs().mean() < 0.1


def test_zoom_keeps_the_middle_of_an_object_in_its_place_and_scales_it():
    labels = disc((40, 90), 10).expand(200, -1, -1)
    sides = torch.full((200, 2), 128)
    _, moved, _ = move(labels[:, None].float(), labels, sides, only(zoom=1), generator(0))
    at, area = torch.arange(128).float(), moved.sum((1, 2)).float()
    assert ((moved.float().sum(2) @ at) / area - 40).abs().max() < 0.5
    assert ((moved.float().sum(1) @ at) / area - 90).abs().max() < 0.5
    zoom = (area / labels[0].sum()).sqrt()
    assert 0.6 < zoom.min() < 0.75
    assert 1.9 < zoom.max() < 2.3
    assert zoom.log().mean() == pytest.approx(np.log(0.64 * 2.2) / 2, abs=0.1)


@pytest.mark.parametrize(("side", "small"), [(3, True), (7, True), (8, False)])  # below 16 pixels of 256
def test_tiles_show_small_objects_in_views_of_4_to_16_of_their_sides_and_no_others(side, small):
    labels = torch.zeros(200, 128, 128, dtype=torch.int32)
    labels[:, 40 : 40 + side, 90:92] = 5
    chances = chances_of(Augmentation(kind="none", tiles=0.5))
    _, moved, _ = move(labels[:, None].float(), labels, torch.full((200, 2), 128), chances, generator(0))
    still = (moved == labels).flatten(1).all(1)
    assert still.float().mean() == pytest.approx(0.5 if small else 1, abs=0.1 * small)
    seen = 128 / (moved[~still] > 0).any(2).sum(1)  # in sides of the object
    if small:
        assert 3.5 < seen.min() < 5
        assert 13 < seen.max() < 19
        assert seen.log().mean() == pytest.approx(np.log(8), abs=0.15)


@given(
    seed=st.integers(0, 10**6),
    extent=st.lists(extents, min_size=1, max_size=3),
    names=st.sets(st.sampled_from([*MOVES, *COLOURS])),
)
@settings(max_examples=60, deadline=None)
def test_the_content_always_reaches_from_black_to_white_and_the_padding_is_zero(seed, extent, names):
    image, labels, sides = scenes(seed, extent)
    before = image.clone()
    out, moved, frame = augment(image, labels, sides, only(**dict.fromkeys(names, 1.0)), generator(seed))
    assert torch.equal(image, before)
    assert out.isfinite().all()
    assert (out * ~content_of(frame, SIZE) == 0).all()
    flat = out.flatten(1)
    assert (flat.amin(1) == 0).all()
    assert ((flat.amax(1) == 1) | (flat.amax(1) == 0)).all()
    if not names & set(MOVES):
        assert torch.equal(moved, labels)
        assert torch.equal(frame, sides)


@pytest.mark.parametrize("name", COLOURS)
def test_grey_images_stay_grey(name):
    image, labels, sides = scenes(0, [(SIZE, SIZE)] * 4, colour=False)
    out, _, _ = augment(image, labels, sides, only(**{name: 1.0}), generator(0))
    assert torch.equal(out.amax(1), out.amin(1))
    coloured, _, _ = augment(*scenes(0, [(SIZE, SIZE)] * 4), only(**{name: 1.0}), generator(0))
    assert torch.equal(coloured.amax(1), coloured.amin(1)) == (name == "grey")


@pytest.mark.parametrize("name", [*MOVES[:-1], *COLOURS])
def test_each_happens_as_often_as_its_probability_says(name):
    size, images = (256, 60) if name == "blur" else (SIZE, 240)  # below, a blur is narrower than a pixel
    image, labels, sides = scenes(3, [(size, 48)] * images, size=size)
    out, _, _ = augment(image, labels, sides, only(**{name: 0.3}), generator(0))
    still, _, _ = augment(image, labels, sides, NONE, generator(0))
    changed = (out - still).abs().flatten(1).amax(1) > 1e-4
    assert changed.float().mean() == pytest.approx(0.3, abs=4 * (0.21 / images) ** 0.5)


def test_recolouring_does_what_its_names_say():
    image, content = (
        torch.rand(100, 3, SIZE, SIZE, generator=generator(0)),
        content_of(torch.full((100, 2), SIZE), SIZE),
    )
    luma = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    made = {
        name: recolour(image, content, only(**{name: 1.0}), generator(0))
        for name in ("grey", "gains", "gamma", "window", "invert", "noise")
    }
    torch.testing.assert_close(made["grey"], luma.expand_as(image))
    ratio = made["gains"] / image
    assert ratio.flatten(2).std(2).max() < 1e-5
    assert 0.59 < ratio.amin() < 0.65
    assert torch.equal(made["invert"], 1 - image)
    for name in ("gamma", "window"):
        order = image.flatten(1).argsort(dim=1)
        assert (made[name].flatten(1).gather(1, order).diff(dim=1) >= 0).all()
    spread = (made["noise"] - image)[image > 0.5].std()
    assert 0.04 < spread < 0.06


@given(sigma=st.floats(0.1, 1.5), extent=extents)
@settings(max_examples=20, deadline=None)
def test_blur_keeps_what_is_even_and_smooths_by_its_sigma(sigma, extent):
    content = content_of(torch.tensor([extent]), SIZE)
    even = torch.full((1, 3, SIZE, SIZE), 0.7) * content
    out = blur(even, content, torch.tensor([sigma * SIZE / 256])) * content
    torch.testing.assert_close(out, even)
    dot = torch.zeros(1, 3, 256, 256)
    dot[..., 100, 90] = 1
    spread = blur(dot, torch.ones(1, 1, 256, 256, dtype=torch.bool), torch.tensor([sigma]))[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    variance = (spread.sum(0) * (torch.arange(256) - 90) ** 2).sum()
    if sigma > 0.6:  # below, a pixel is wider than the Gaussian
        assert variance.sqrt() == pytest.approx(sigma, rel=0.03)
