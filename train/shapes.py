"""Draw images of organ-like shapes: material without end for training where real slices are few.

Every image has a textured ground, perhaps a body with a bright rim, and shapes with an outline of random
waves: round, long and thin, rings; and winding tubes. Or it is of layers across the picture, some of them
objects, and of thin pockets between them. The objects' grey levels may be close to what surrounds them,
edges soft; some touch one another, some are of several parts that look alike, and some things are drawn that
are not objects: spots, lines, shapes without a label. They look like no organ in particular. What can be
learnt from them is what a box asks for: the thing in it.
"""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Labels = NDArray[np.uint16]
Grey = NDArray[np.float32]

MOST_OBJECTS = 48
_FEW = 12  # in most images at most so many, of any size; in the others many small ones, as cells
_MIN_SHARE = 0.00015  # of the image; smaller shapes get no label
_POINTS = 72  # of an outline
_LAYERED = 0.2  # of the images
_LAYER_IS_OBJECT, _MOST_POCKETS = 0.15, 8
_ANOTHER_PART, _ANOTHER_POCKET = 0.08, 0.4  # chance that a shape belongs to the object drawn before it
_SUBPIXEL_BITS = 4


def draw_shapes(size: int, random: np.random.Generator) -> tuple[Image, Labels]:
    """Draw an image and its objects.

    Args:
        size: side in pixels, at least 32.
        random: everything is drawn from it.

    Returns:
        image uint8 (size, size, 3), and labels uint16 (size, size): objects are numbered from 1, each of
        them covers at least 0.015 % of the image.
    """
    while True:
        image, labels = _draw(size, random)
        _drop_small(labels)
        if labels.any():
            return image, labels


def draw_over(image: Image, random: np.random.Generator) -> tuple[Image, Labels]:
    """Draw objects over a picture: what is round them is then as cluttered as real pictures are.

    Args:
        image: uint8 (S, S) or (S, S, 3), S at least 32.
        random: everything is drawn from it.

    Returns:
        as `draw_shapes`, the image as many channels as it had.
    """
    ground = np.ascontiguousarray(image if image.ndim == 2 else image.mean(2), np.float32)
    while True:
        grey, labels = ground.copy(), np.zeros(ground.shape, np.uint16)
        _draw_objects(grey, labels, random)
        _drop_small(labels)
        if labels.any():
            change = grey - ground
            if image.ndim == 3:
                change = change[..., None] * random.uniform(0.3, 1, 3).astype(np.float32)
            return np.clip(np.rint(image + change), 0, 255).astype(np.uint8), labels


def _drop_small(labels: Labels) -> None:
    numbers, counts = np.unique(labels, return_counts=True)
    labels[np.isin(labels, numbers[counts < _MIN_SHARE * labels.size])] = 0


def texture(size: int, random: np.random.Generator) -> Grey:
    """Return noise of several scales (size, size), mean 0 and standard deviation 1."""
    field = np.zeros((size, size), np.float32)
    for cells in (3, 8, 24, size // 2):
        noise = random.standard_normal((cells, cells), np.float32)
        field += random.uniform(0, 1) * cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    field -= field.mean()
    return field / max(float(field.std()), 1e-6)


def outline(
    centre: tuple[float, float], radius: float, stretch: float, roughness: float, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return a closed outline of random waves, (72, 2) x y in pixels.

    Args:
        centre: x, y in pixels.
        radius: in pixels, the geometric mean of the two half axes.
        stretch: their ratio, at least 1.
        roughness: amplitude of the waves, as a share of the radius.
        random: draws waves and direction.
    """
    angle = np.linspace(0, 2 * math.pi, _POINTS, endpoint=False)
    waves = np.arange(2, 7)[:, None]
    amplitude = roughness * random.standard_normal((5, 1)) / waves
    distance = 1 + (amplitude * np.cos(waves * angle + random.uniform(0, 2 * math.pi, (5, 1)))).sum(0)
    distance = radius * np.maximum(distance, 0.2)
    x, y = distance * np.cos(angle) * stretch**0.5, distance * np.sin(angle) / stretch**0.5
    turn = random.uniform(0, 2 * math.pi)
    turned = [x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)]
    return np.array(centre) + np.stack(turned, axis=1)


def tube(start: tuple[float, float], size: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask of a winding line that gets thinner, such as a vessel, bool (size, size).

    Args:
        start: x, y in pixels where it begins.
        size: side in pixels; the line is up to nine tenths of it long, up to a twenty-fifth of it thick.
        random: draws all else.
    """
    turns = random.uniform(0, 2 * math.pi) + np.cumsum(random.normal(0, 0.12, _POINTS))
    step = size * random.uniform(0.2, 0.9) / _POINTS
    line = np.array(start) + step * np.cumsum(np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)
    half = size * random.uniform(0.006, 0.02) * np.linspace(1, random.uniform(0.3, 1), _POINTS)[:, None]
    across = half * np.stack([-np.sin(turns), np.cos(turns)], axis=1)
    return _fill(np.concatenate([line + across, (line - across)[::-1]]), size)


def _draw(size: int, random: np.random.Generator) -> tuple[Image, Labels]:
    ground = random.uniform(0, 160)
    grey = ground + random.uniform(2, 25) * texture(size, random)
    if random.random() < 0.5:
        _draw_body(grey, random)
    labels = np.zeros((size, size), np.uint16)
    if random.random() < _LAYERED:
        _draw_layers(grey, labels, random)
    else:
        _draw_objects(grey, labels, random)
    _draw_lines(grey, random)
    grey *= 1 + 0.25 * random.random() * cv2.resize(
        random.uniform(-1, 1, (3, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC
    )
    if random.random() < 0.5:
        cv2.GaussianBlur(grey, (0, 0), random.uniform(0.4, 1.5) * size / 256 + 0.1, dst=grey)
    grey += random.uniform(0, 12) * random.standard_normal(grey.shape, np.float32)
    tint = random.uniform(0.5, 1, 3) if random.random() < 0.4 else np.ones(3)
    image = np.clip(np.rint(grey[..., None] * tint), 0, 255).astype(np.uint8)
    return image, labels


def _draw_objects(grey: Grey, labels: Labels, random: np.random.Generator) -> None:
    """Draw shapes without a label, then objects over them."""
    size = len(grey)
    for _ in range(int(random.integers(0, 6))):
        _paint(grey, _random_shape(size, random), random)  # a distractor, which a later object may cover
    crowd = random.random() < 0.4
    count = int(random.integers(_FEW, MOST_OBJECTS + 1)) if crowd else 1 + int(_FEW * random.random() ** 2)
    most = 0.08 if crowd else 0.28
    centre: tuple[float, float] | None = None
    alike = random.random() < 0.3  # cells in a picture look alike; organs do not
    level = _contrast(random)
    number = 0
    for _ in range(count):
        mask, centre = _object(size, most, centre if random.random() < 0.3 else None, random)
        mask &= labels == 0
        if not number or random.random() >= _ANOTHER_PART:
            number += 1
            level = level if alike else _contrast(random)
        _paint(grey, mask, random, level)
        labels[mask] = number


def _draw_layers(grey: Grey, labels: Labels, random: np.random.Generator) -> None:
    """Draw curved layers from side to side, as of a retina or a skin, some of them objects; and pockets.

    A pocket is a thin lens along one of the borders, mostly darker than what is round it.
    """
    size = len(grey)
    column, row = np.arange(size), np.arange(size)[:, None]
    # As pictures of layers are: dark above, fading below.
    border = size * (random.uniform(0.1, 0.6) + random.uniform(0, 0.06) * _wave(size, random))
    border = border + random.uniform(-0.15, 0.15) * (column - size / 2)
    grey[row < border] *= random.uniform(0, 0.4)
    borders = []
    for _ in range(int(random.integers(3, 10))):
        borders.append(border)
        thickness = size * math.exp(random.uniform(math.log(0.008), math.log(0.09)))
        border = border + np.maximum(thickness * (1 + 0.4 * _wave(size, random)), 1)
    fade = np.exp(-np.maximum(row - border, 0) / (size * random.uniform(0.05, 0.4)))
    grey *= np.where(row >= border, fade, 1).astype(np.float32)
    number = 0
    for above, below in itertools.pairwise([*borders, border]):
        layer = (row >= above) & (row < below)
        level = random.uniform(40, 220)
        grey[layer] = level + random.uniform(1, 15) * texture(size, random)[layer]
        if random.random() < _LAYER_IS_OBJECT:
            number += 1
            labels[layer] = number
    along = borders[0]
    for pockets in range(int(random.integers(1, _MOST_POCKETS + 1))):
        if not pockets or random.random() < 0.6:
            along = borders[int(random.integers(len(borders)))] + size * random.normal(0, 0.01)
        half = size * math.exp(random.uniform(math.log(0.012), math.log(0.25)))
        height = max(1.0, min(half * math.exp(random.uniform(math.log(0.06), 0)), 0.05 * size))
        bump = 1 - np.square((column - random.uniform(0, size)) / half)
        bump = height * np.sqrt(np.maximum(bump, 0)) * np.maximum(1 + 0.3 * _wave(size, random), 0.2)
        if not pockets or random.random() >= _ANOTHER_POCKET:
            number += 1
            level = -random.uniform(20, 120) if random.random() < 0.8 else _contrast(random)
        pocket = (np.abs(row - along) < bump) & (bump > 0)
        _paint(grey, pocket, random, level)
        labels[pocket] = number
    grey *= 1 + random.uniform(0, 0.3) * random.standard_normal(grey.shape, np.float32)
    if random.random() < 0.2:
        grey[:], labels[:] = grey.T.copy(), labels.T.copy()


def _wave(length: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth random curve (length,), of about -1 to 1."""
    nodes = random.uniform(-1, 1, (1, int(random.integers(3, 12)))).astype(np.float32)
    return cv2.resize(nodes, (length, 1), interpolation=cv2.INTER_CUBIC)[0]


def _draw_body(grey: Grey, random: np.random.Generator) -> None:
    """Darken what lies outside of a large ellipse, and draw a rim round it."""
    size = len(grey)
    shape = outline(
        (size / 2, size / 2), size * random.uniform(0.35, 0.5), random.uniform(1, 1.5), 0.1, random
    )
    inside = _fill(shape, size)
    grey[~inside] = random.uniform(0, 20)
    rim = inside & ~_fill(size / 2 + 0.93 * (shape - size / 2), size)
    grey[rim] += random.uniform(0, 90)


def _object(
    size: int, most: float, beside: tuple[float, float] | None, random: np.random.Generator
) -> tuple[NDArray[np.bool_], tuple[float, float]]:
    """Return an object's mask and centre.

    most: its largest radius, as a share of the image. beside: begin where another object is.
    """
    radius = size * math.exp(random.uniform(math.log(most / 9), math.log(most)))
    if beside is None:
        x, y = random.uniform(0.1 * size, 0.9 * size, 2)
        if random.random() < 0.1:
            return tube((x, y), size, random), (x, y)
    else:
        direction = random.uniform(0, 2 * math.pi)
        x, y = beside[0] + radius * math.cos(direction), beside[1] + radius * math.sin(direction)
    shape = outline((x, y), radius, _stretch(random), random.uniform(0, 0.5), random)
    mask = _fill(shape, size)
    if random.random() < 0.1:  # a ring, such as a wall round its lumen; the whole of it is one object
        mask &= ~_fill(np.array([x, y]) + random.uniform(0.4, 0.8) * (shape - np.array([x, y])), size)
    return mask, (x, y)


def _random_shape(size: int, random: np.random.Generator) -> NDArray[np.bool_]:
    centre = (random.uniform(0, size), random.uniform(0, size))
    radius = size * math.exp(random.uniform(math.log(0.01), math.log(0.2)))
    return _fill(outline(centre, radius, _stretch(random), random.uniform(0, 0.6), random), size)


def _stretch(random: np.random.Generator) -> float:
    return random.uniform(1, 2) if random.random() < 0.8 else random.uniform(2, 8)


def _fill(shape: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
    mask = np.zeros((size, size), np.uint8)
    points = np.rint(shape * (1 << _SUBPIXEL_BITS)).astype(np.int32)[:, None]
    cv2.fillPoly(mask, [points], 1, shift=_SUBPIXEL_BITS)
    return mask.astype(bool)


def _paint(
    grey: Grey, mask: NDArray[np.bool_], random: np.random.Generator, step: float | None = None
) -> None:
    """Give what is within a mask a grey level of its own, at least a little off its surroundings."""
    if not mask.any():
        return
    if step is None:
        step = _contrast(random)
    if float(grey[mask].mean()) + step < 0:
        step = abs(step)  # darker than black would not be seen
    own = random.uniform(1, 20) * texture(len(grey), random)
    edge = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), random.uniform(0.2, 2.0) * len(grey) / 256 + 0.1)
    keep = random.uniform(0, 1)  # how much of the ground's own pattern shines through
    level = float(grey[mask].mean()) + step
    inside = keep * (grey + step) + (1 - keep) * (level + own)
    grey += edge * (inside - grey)


def _contrast(random: np.random.Generator) -> float:
    """Return a step of the grey level: little is as likely as much."""
    return float(random.choice([-1.0, 1.0])) * math.exp(random.uniform(math.log(8), math.log(110)))


def _draw_lines(grey: Grey, random: np.random.Generator) -> None:
    """Draw vessels, hairs or scratches across everything."""
    size = len(grey)
    for _ in range(int(random.integers(0, 4) * (random.random() < 0.4))):
        points = np.cumsum(random.normal(0, size / 8, (6, 2)), axis=0) + random.uniform(0, size, 2)
        line = np.zeros((size, size), np.uint8)
        width = max(1, round(random.uniform(0.5, 3) * size / 256))
        cv2.polylines(
            line, [np.rint(points).astype(np.int32)[:, None]], isClosed=False, color=1, thickness=width
        )
        grey[line > 0] += random.uniform(-80, 80)
