"""Augmentation of an image and its label map together.

Images are uint8, (H, W) or (H, W, 3); label maps are uint8 or uint16, (H, W). Every function returns arrays
of the same shape and dtype, C-contiguous, and leaves its arguments alone. What moves pixels moves those of
image and labels alike and makes no new label; boxes are drawn from the labels afterwards, so that they cannot
be misaligned.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from litemed.train.config import Augmentation

Image = NDArray[np.uint8]
Labels = NDArray[Any]

_CURVE_KNOTS = 5
_ELASTIC_GRID = 5


def augment(
    image: Image, labels: Labels, settings: Augmentation, random: np.random.Generator
) -> tuple[Image, Labels]:
    """Return image and labels after each augmentation with its probability, geometry first."""
    if random.random() < settings.flip_horizontal:
        image, labels = flip(image, labels, horizontal=True)
    if random.random() < settings.flip_vertical:
        image, labels = flip(image, labels, horizontal=False)
    if random.random() < settings.affine:
        degrees = random.uniform(-settings.rotation_degrees, settings.rotation_degrees)
        scale = settings.scale_factor ** random.uniform(-1, 1)
        image, labels = rotate_and_scale(image, labels, degrees, scale)
    if random.random() < settings.elastic:
        image, labels = warp(image, labels, settings.elastic_share, random)
    return recolour(image, settings, random), labels


def recolour(image: Image, settings: Augmentation, random: np.random.Generator) -> Image:
    """Return the image after those augmentations that leave every pixel in its place."""
    if random.random() < settings.mix_channels:
        image = mix_channels(image, random)
    if random.random() < settings.intensity_curve:
        image = bend_intensity(image, random)
    if random.random() < settings.invert:
        image = invert(image)
    if random.random() < settings.blur:
        image = blur(image, random.uniform(0.3, 1.5))
    if random.random() < settings.noise:
        image = add_noise(image, random.uniform(2, 20), random)
    return image


def flip(image: Image, labels: Labels, horizontal: bool) -> tuple[Image, Labels]:
    """Mirror left to right (`horizontal`) or top to bottom."""
    axis = 1 if horizontal else 0
    return np.ascontiguousarray(np.flip(image, axis)), np.ascontiguousarray(np.flip(labels, axis))


def rotate_and_scale(image: Image, labels: Labels, degrees: float, scale: float) -> tuple[Image, Labels]:
    """Turn about the middle, counter-clockwise, and enlarge; what comes in from outside is 0."""
    height, width = labels.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    # The same positions for both, so that an interpolated image and nearest labels stay aligned.
    inverse = cv2.invertAffineTransform(matrix)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    map_x = (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(np.float32)
    map_y = (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(np.float32)
    return _remap(image, labels, map_x, map_y)


def warp(image: Image, labels: Labels, share: float, random: np.random.Generator) -> tuple[Image, Labels]:
    """Shift every pixel by a smooth random field whose standard deviation is `share` of the longest side."""
    height, width = labels.shape
    reach = share * max(height, width)
    coarse = random.normal(0, reach, (2, _ELASTIC_GRID, _ELASTIC_GRID)).astype(np.float32)
    dx, dy = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return _remap(image, labels, x + dx, y + dy)


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


def _remap(
    image: Image, labels: Labels, map_x: NDArray[np.float32], map_y: NDArray[np.float32]
) -> tuple[Image, Labels]:
    """Return both with output pixel (y, x) taken from (map_y, map_x)."""
    moved = cv2.remap(image, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    nearest = cv2.remap(
        labels, map_x, map_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return moved.astype(np.uint8, copy=False), nearest.astype(labels.dtype, copy=False)
