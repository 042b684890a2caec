"""Augmentation keeps image and labels on one another, and does what its name says."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from litemed.runtime.preprocess import preprocess
from litemed.train.augment import (
    CHANCES,
    NONE,
    Chances,
    augment,
    blur,
    content_of,
    move,
    recolour,
    stretch_range,
)
from litemed.train.config import Augmentation

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
MOVES = ("flip_horizontal", "flip_vertical", "zoom", "turn", "stretch", "aspect", "elastic")
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


def test_zoom_goes_to_all_objects_alike_however_small():
    labels = disc((90, 90), 30) + 5 * disc((20, 20), 3)
    labels = labels.expand(400, -1, -1)
    sides = torch.full((400, 2), 128)
    zoomed = only(zoom=1, turn=1)
    _, moved, _ = move(labels[:, None].float(), labels, sides, zoomed, generator(0))
    at, small = torch.arange(128).float(), (moved == 5).float()
    place = torch.stack([small.sum(2) @ at, small.sum(1) @ at], 1) / small.sum((1, 2))[:, None]
    assert 0.4 < ((place - 20).abs().amax(1) < 0.5).float().mean() < 0.6  # nan where it has left the image


def test_without_objects_an_image_moves_all_the_same():
    image, labels, sides = scenes(1, [(SIZE, 40)])
    moved, none, frame = move(
        image.float(), torch.zeros_like(labels), sides, only(zoom=1, turn=1), generator(3)
    )
    assert not torch.equal(moved, image.float())
    assert moved.isfinite().all()
    assert not none.any()
    assert torch.equal(frame, sides)


def test_a_turn_is_of_at_most_thirty_degrees_and_keeps_sizes():
    labels = torch.zeros(1, 128, 128, dtype=torch.int32)
    labels[0, 60:68, 30:98] = 1
    labels = labels.expand(100, -1, -1)
    _, moved, _ = move(labels[:, None].float(), labels, torch.full((100, 2), 128), only(turn=1), generator(0))
    y, x = np.indices((128, 128))
    slopes = [np.polyfit(x[m > 0], y[m > 0], 1)[0] for m in moved.numpy()]
    degrees = np.degrees(np.arctan(slopes))
    assert -31 < degrees.min() < -25
    assert 25 < degrees.max() < 31
    assert moved.sum((1, 2)).float().mean() == pytest.approx(8 * 68, rel=0.02)


def test_what_is_shrunk_does_not_alias():
    """Stripes finer than a new pixel become grey, not coarser stripes."""
    stripes = (torch.arange(128) % 2 * 200.0).expand(100, 3, 128, 128)
    labels = torch.zeros(100, 128, 128, dtype=torch.int32)
    moved, _, _ = move(stripes, labels, torch.full((100, 2), 128), only(zoom=1), generator(0))
    white = move(
        torch.full_like(stripes, 200), labels, torch.full((100, 2), 128), only(zoom=1), generator(0)
    )[0]
    share = (white > 199).float().mean((1, 2, 3))
    smallest = share.argmin()
    assert share[smallest] < 0.5
    inner = moved[smallest][white[smallest] > 199]
    assert inner.mean() == pytest.approx(100, abs=5)
    assert inner.std() < 50  # of 100 in the image itself


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


@pytest.mark.parametrize("name", [*MOVES, *COLOURS])
def test_each_happens_as_often_as_its_probability_says(name):
    size, images = (256, 60) if name == "blur" else (SIZE, 240)  # below, a blur is narrower than a pixel
    image, labels, sides = scenes(3, [(size, 48)] * images, size=size)
    out, _, _ = augment(image, labels, sides, only(**{name: 0.3}), generator(0))
    still, _, _ = augment(image, labels, sides, NONE, generator(0))
    changed = (out - still).abs().flatten(1).amax(1) > 1e-4
    assert changed.float().mean() == pytest.approx(0.3, abs=4 * (0.21 / images) ** 0.5)


def test_the_same_seed_gives_the_same_batch_and_another_another():
    scene = scenes(0, [(SIZE, 50)] * 3)
    strong = only(**dict.fromkeys((*MOVES, *COLOURS), 0.7))
    first, again, other = (augment(*scene, strong, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def ramp(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images that rise from 0 to 1 from left to right, and their content."""
    image = torch.linspace(0, 1, SIZE).expand(count, 3, SIZE, SIZE)
    return image, torch.ones(count, 1, SIZE, SIZE, dtype=torch.bool)


@pytest.mark.parametrize("name", ["gamma", "window"])
def test_gamma_and_window_keep_the_order_of_intensities(name):
    image, content = ramp()
    out = recolour(image, content, only(**{name: 1.0}), generator(0))[:, 0, 0]
    assert (out.diff(dim=1) >= 0).all()
    assert (out[:, 0] == 0).all()
    assert (out[:, -1] == 1).all()
    assert out[:, SIZE // 2].std() > 0.05


def test_inversion_turns_dark_to_bright():
    image, content = ramp(1)
    assert torch.equal(recolour(image, content, only(invert=1), generator(0)), 1 - image)


def test_grey_is_the_luma_and_gains_scale_channels():
    image, content = torch.rand(50, 3, SIZE, SIZE, generator=generator(0)), ramp(50)[1]
    grey = recolour(image, content, only(grey=1), generator(0))
    expected = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(grey, expected.expand_as(image))
    ratio = recolour(image, content, only(gains=1), generator(0)) / image
    assert ratio.flatten(2).std(2).max() < 1e-5
    assert 0.59 < ratio.amin() < 0.65
    assert 0.95 < ratio.amax() < 1.01


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


def test_noise_has_its_spread_and_a_field_of_bias_is_smooth():
    image, content = torch.full((100, 3, SIZE, SIZE), 0.5), ramp(100)[1]
    spread = (recolour(image, content, only(noise=1), generator(0)) - image).flatten(1).std(1)
    assert 0.009 < spread.min() < 0.02
    assert 0.07 < spread.max() < 0.085
    field = recolour(image, content, only(bias=1), generator(0)) / image
    assert 1.3 < field.amax() < 2
    assert field.diff(dim=3).abs().max() < 0.15
    assert torch.equal(field.amax(1), field.amin(1))


@given(seed=st.integers(0, 10**6), extent=extents)
@settings(max_examples=20, deadline=None)
def test_stretching_the_range_twice_is_stretching_it_once(seed, extent):
    image, _, sides = scenes(seed, [extent])
    content = content_of(sides, SIZE)
    once = stretch_range(image.float(), content)
    assert torch.equal(stretch_range(once, content), once)


def test_every_kind_of_the_settings_has_its_chances():
    for kind, chances in CHANCES.items():
        assert Augmentation(kind).kind == kind
        assert all(0 <= chance <= 1 for chance in vars(chances).values())
    assert all(chance > 0 for chance in vars(CHANCES["strong"]).values())
    assert [name for name, chance in vars(CHANCES["flips"]).items() if chance] == list(MOVES[:2])
