"""Augmentation of an image and its label map together.

Images are uint8, (H, W) or (H, W, 3); label maps are uint8 or uint16, (H, W). Every function returns arrays
of the same shape and dtype, C-contiguous, and leaves its arguments alone. What moves pixels moves those of
image and labels alike and makes no new label; boxes are drawn from the labels afterwards, so that they cannot
be misaligned.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.train.config import Augmentation
from litemed.train.prompts import find_boxes

Image = NDArray[np.uint8]
Labels = NDArray[Any]
Positions = NDArray[np.float32]
"""(2, H, W), y and x: from where in the old image each pixel of the new one is taken."""

_CURVE_KNOTS = 5
_ELASTIC_KNOTS = 5
_SHRUNK_SHARES = (0.2, 0.42)  # of the image's longest side; a window has 0.44 of it


def move(
    image: Image, labels: Labels, settings: Augmentation, random: np.random.Generator
) -> tuple[Image, Labels]:
    """Return image and labels after those augmentations that move pixels, each with its probability."""
    if random.random() < settings.flip_horizontal:
        image, labels = flip(image, labels, horizontal=True)
    if random.random() < settings.flip_vertical:
        image, labels = flip(image, labels, horizontal=False)
    position = positions(labels.shape)
    elastic, affine = random.random() < settings.elastic, random.random() < settings.affine
    if elastic:
        position = shift(position, settings.elastic_share, random)
    shrinks = settings.shrink > 0 and random.random() < settings.shrink
    scale = shrinking(labels, random) if shrinks else 1.0
    if affine:
        degrees = random.uniform(-settings.rotation_degrees, settings.rotation_degrees)
        position = turn(position, degrees, scale * settings.scale_factor ** random.uniform(-1, 1))
    elif scale < 1:
        position = turn(position, 0.0, scale)
    if scale < 1:
        image = blur(image, 0.4 / scale)  # or what is finer than a new pixel would come out as noise
    if elastic or affine or scale < 1:
        # Once for all: each interpolation blurs the image, each rounding frays the labels.
        image, labels = sample_at(image, labels, position)
    return image, labels


def recolour(image: Image, settings: Augmentation, random: np.random.Generator, scale: float = 1.0) -> Image:
    """Return the image after those augmentations that leave every pixel in its place.

    scale: the side of the network's input by that of the reference, 256: pixels of blur are of the latter.
    """
    if random.random() < settings.mix_channels:
        image = mix_channels(image, random)
    if random.random() < settings.intensity_curve:
        image = bend_intensity(image, random)
    if random.random() < settings.invert:
        image = invert(image)
    if random.random() < settings.blur:
        image = blur(image, scale * random.uniform(0.3, 1.5))
    if random.random() < settings.noise:
        image = add_noise(image, random.uniform(2, 20), random)
    return image


def flip(image: Image, labels: Labels, horizontal: bool) -> tuple[Image, Labels]:
    """Mirror left to right (`horizontal`) or top to bottom."""
    axis = 1 if horizontal else 0
    return np.ascontiguousarray(np.flip(image, axis)), np.ascontiguousarray(np.flip(labels, axis))


def positions(shape: tuple[int, int]) -> Positions:
    """Return the position of every pixel of an image of `shape` (height, width)."""
    return np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)


def turn(position: Positions, degrees: float, scale: float) -> Positions:
    """Return where the pixels come from that are turned counter-clockwise about the middle and enlarged."""
    height, width = position.shape[1:]
    middle = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)[:, None, None]
    cosine, sine = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    y, x = position - middle
    return np.stack([cosine * y + sine * x, cosine * x - sine * y]).astype(np.float32) + middle


def shift(position: Positions, share: float, random: np.random.Generator) -> Positions:
    """Return positions moved by a smooth random field of up to about `share` of the longest side."""
    height, width = position.shape[1:]
    reach = share * max(height, width)
    knots = random.uniform(-reach, reach, (2, _ELASTIC_KNOTS, _ELASTIC_KNOTS))
    field = [cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC) for part in knots]
    return position + np.stack(field).astype(np.float32)


def sample_at(image: Image, labels: Labels, position: Positions) -> tuple[Image, Labels]:
    """Take the image by linear interpolation and labels by nearest pixel; what lies outside is 0."""
    y, x = position
    moved = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    nearest = cv2.remap(labels, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return moved.astype(np.uint8, copy=False), nearest.astype(labels.dtype, copy=False)


def shrinking(labels: Labels, random: np.random.Generator) -> float:
    """Return a scale, at most 1, at which one of the objects of `labels`, drawn by lot, fits in a window."""
    boxes = find_boxes(labels).xyxy
    if not len(boxes):
        return 1.0
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).max(1)
    side = int(sides[int(random.integers(len(sides)))])
    share = side / max(labels.shape)
    low, high = _SHRUNK_SHARES
    return math.exp(random.uniform(math.log(low), math.log(high))) / share if share > high else 1.0


def bend_intensity(image: Image, random: np.random.Generator) -> Image:
    """Map intensities by a random curve that rises from 0 to 255 and bends at a few knots."""
    rises = random.exponential(size=_CURVE_KNOTS) + 0.1
    knots = np.concatenate([[0.0], np.cumsum(rises) / rises.sum()])
    curve = np.interp(np.arange(256), np.linspace(0, 255, _CURVE_KNOTS + 1), 255 * knots)
    return np.rint(curve).astype(np.uint8)[image]


def invert(image: Image) -> Image:
    """Turn dark to bright."""
    return 255 - image


def mix_channels(image: Image, random: np.random.Generator) -> Image:
    """Replace each channel by a random weighted mean of all three; a grey image stays as it is."""
    if image.ndim == 2:
        return image
    weights = random.dirichlet((0.5, 0.5, 0.5), size=3)
    return cv2.transform(image, weights).astype(np.uint8, copy=False)


def blur(image: Image, sigma: float) -> Image:
    """Smooth by a Gaussian of `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma).astype(np.uint8, copy=False)


def add_noise(image: Image, sigma: float, random: np.random.Generator) -> Image:
    """Add normal noise of standard deviation `sigma`, of 255, to every value."""
    noise = random.standard_normal(image.shape, np.float32)
    noise *= sigma
    noise += image
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)
