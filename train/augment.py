"""Augmentation of whole batches of images with their labels, on the device that they lie on.

What moves pixels is composed into one sampling grid for each image, at which the image is interpolated and
the labels are taken from the nearest pixel: both at the same positions, and each only once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from litemed.runtime.zoom import SMALL
from litemed.train.config import Augmentation
from litemed.train.prompts import REFERENCE_SIZE

_ZOOM = (0.64, 2.2)
_TILE_SIDES = (4.0, 16.0)  # of the object that it is for, as `litemed.runtime.zoom` makes tiles
_TURN_DEGREES = 30.0
_STRETCH = 1.3
_ASPECT = 2.0
_ELASTIC_KNOTS, _ELASTIC_SHARE = 5, 0.03
_GAIN = 0.6
_GAMMA = 2.0
_WINDOW_SHARE = 0.25
_BLUR_SIGMA, _BLUR_REACH = (0.3, 1.5), 3  # pixels of a 256-pixel input; reach in sigmas
_BIAS_KNOTS, _BIAS_LOG = 4, 0.5
_NOISE_SIGMA = (0.01, 0.08)
_LUMA = (0.299, 0.587, 0.114)
_LEAST_RANGE = 1e-8  # as in `litemed.runtime.preprocess`
_LOTS = 1024  # objects whose numbers differ by a multiple of this share a lot


@dataclass(frozen=True)
class Chances:
    """The probability of each augmentation of an image; those of the recipes by default."""

    flip_horizontal: float = 0.5
    flip_vertical: float = 0.5
    zoom: float = 0.7  # by 0.64 to 2.2, towards an object
    turn: float = 0.4  # by up to 30 degrees, either way
    stretch: float = 0.4  # by up to 1.3 along one axis
    aspect: float = 0.2  # another ratio of the image's sides, by up to 2, either way; crops or pads
    elastic: float = 0.2  # smooth random deformation by up to about 3 % of the longest side
    grey: float = 0.1  # colours to grey
    gains: float = 0.3  # each colour times 0.6 to 1
    gamma: float = 0.4  # of 0.5 to 2
    window: float = 0.3  # clip up to a quarter of the range at either end
    invert: float = 0.05  # dark to bright
    blur: float = 0.15  # Gaussian of 0.3 to 1.5 pixels of a 256-pixel input
    bias: float = 0.2  # times a smooth random field of about 0.6 to 1.6
    noise: float = 0.25  # normal, standard deviation of 0.01 to 0.08 of the range
    tiles: float = 0.0  # if the object is small, zoom to a view of 4 to 16 of its sides instead


NONE: Final = Chances(*[0.0] * len(dataclasses.fields(Chances)))
CHANCES: Final = {
    "none": NONE,
    "flips": dataclasses.replace(NONE, flip_horizontal=0.5, flip_vertical=0.5),
    "strong": Chances(),
}
"""By `litemed.train.config.Augmentation.kind`; the paper's is "flips"."""


def chances_of(settings: Augmentation) -> Chances:
    """Return the chances that the settings ask for."""
    return dataclasses.replace(CHANCES[settings.kind], tiles=settings.tiles)


def augment(
    image: Tensor, labels: Tensor, extent: Tensor, chances: Chances, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a batch after augmentation, with the intensities that the runtime gives a resized image.

    image: uint8 (B, 3, S, S); the content lies at the upper left, zeros on the right and below. labels: int32
    (B, S, S), 0 is background and padding. extent: int64 (B, 2), height and width of the content; the longest
    side is S. generator: of the same device. The image returned is float32 in [0, 1], 0 in the padding.
    """
    moved, labels, extent = move(image.to(torch.float32), labels, extent, chances, generator)
    content = content_of(extent, image.shape[-1])
    recoloured = recolour(stretch_range(moved, content), content, chances, generator)
    return stretch_range(recoloured, content), labels, extent


def content_of(extent: Tensor, size: int) -> Tensor:
    """Return where an image of `extent`, int64 (B, 2), has its content: bool (B, 1, size, size)."""
    pixel = torch.arange(size, device=extent.device)
    inside = pixel < extent[:, :, None]  # (B, 2, size), rows and columns
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def stretch_range(image: Tensor, content: Tensor) -> Tensor:
    """Return float32 (B, 3, S, S) whose content reaches from 0 to 1, as the runtime has it; 0 elsewhere."""
    low = torch.where(content, image, math.inf).amin((1, 2, 3), keepdim=True)
    high = torch.where(content, image, -math.inf).amax((1, 2, 3), keepdim=True)
    return torch.where(content, (image - low) / (high - low).clamp(min=_LEAST_RANGE), 0)


class _Lots:
    """Random numbers for each image, in the shape (images, 1, ...) of `axes` axes."""

    def __init__(self, images: int, axes: int, generator: torch.Generator) -> None:
        self._shape = (images,) + (1,) * (axes - 1)
        self._generator = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return numbers from low to high, of `shape` for each image, else one."""
        shape = (self._shape[0], *shape) if shape else self._shape
        return low + (high - low) * torch.rand(
            shape, generator=self._generator, device=self._generator.device
        )

    def happens(self, probability: float) -> Tensor:
        """Return a bool for each image."""
        return self.uniform(0, 1) < probability

    def factor(self, low: float, high: float, probability: float) -> Tensor:
        """Return 1, or with `probability` a number whose logarithm lies anywhere from low's to high's."""
        return torch.where(self.happens(probability), self.uniform(math.log(low), math.log(high)).exp(), 1.0)


def move(
    image: Tensor, labels: Tensor, extent: Tensor, chances: Chances, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch after those augmentations that move pixels; what comes from outside is 0.

    image: float32 (B, C, S, S); the others as in `augment`.
    """
    size = image.shape[-1]
    lots = _Lots(len(image), 3, generator)
    focus = extent / 2
    if chances.zoom or chances.turn or chances.tiles:
        focus, side = _focus(labels, extent, lots)
    frame = _other_aspect(extent, size, chances.aspect, lots)

    # From the new image to the old one; (B, 1, 1) each. Zoom, turn and stretch leave the focus in its place.
    zoom = lots.factor(*_ZOOM, chances.zoom)
    if chances.tiles:
        small = (side > 0) & (side < SMALL * size / REFERENCE_SIZE) & lots.happens(chances.tiles)
        zoom = torch.where(small, size / (side.clamp(min=1) * lots.factor(*_TILE_SIDES, 1.0)), zoom)
    stretch = lots.factor(1 / _STRETCH, _STRETCH, chances.stretch).sqrt()
    angle = lots.happens(chances.turn) * lots.uniform(-_TURN_DEGREES, _TURN_DEGREES).deg2rad()
    flip_x, flip_y = (
        1 - 2 * lots.happens(chance).float() for chance in (chances.flip_horizontal, chances.flip_vertical)
    )
    # Of the middles of pixels, from the middle of the content: y (B, S, 1) and x (B, 1, S).
    from_middle = torch.arange(size, device=frame.device) + 0.5 - frame[:, :, None] / 2
    y, x = from_middle[:, 0, :, None], from_middle[:, 1, None, :]
    if chances.elastic:
        knots = lots.uniform(-1, 1, 2, _ELASTIC_KNOTS, _ELASTIC_KNOTS) * (_ELASTIC_SHARE * size)
        knots = knots * lots.happens(chances.elastic)[..., None]
        field = F.interpolate(knots, (size, size), mode="bicubic", align_corners=True)
        y, x = y + field[:, 0], x + field[:, 1]
    # Of the focus from the middle, in the new image before flips, and in the old one.
    off_y, off_x = ((focus / extent - 0.5) * frame)[:, :, None, None].unbind(1)
    focus_y, focus_x = focus[:, :, None, None].unbind(1)
    y, x = flip_y * y - off_y, flip_x * x - off_x
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    y, x = (
        (cosine * y + sine * x) / stretch + focus_y,
        (cosine * x - sine * y) * stretch + focus_x,
    )

    inside = content_of(frame, size)
    # Positions are those of corners now, 0 to S; grid_sample wants -1 to 1.
    grid = torch.stack([x, y], dim=3) * (2 / size) - 1
    moved = F.grid_sample(image, grid, align_corners=False)
    if chances.zoom or chances.stretch:
        # Where an image shrinks, partly from one of half the size: what is finer would come out as noise.
        coarse = F.grid_sample(F.avg_pool2d(image, 2), grid, align_corners=False)
        share = (torch.maximum(stretch, 1 / stretch) / zoom).log2().clamp(0, 1)[..., None]
        moved = torch.where(share > 0, moved + share * (coarse - moved), moved)
    as_float = labels[:, None].to(torch.float32)  # exact up to 2^24
    nearest = F.grid_sample(as_float, grid, mode="nearest", align_corners=False)
    return torch.where(inside, moved, 0), torch.where(inside, nearest, 0)[:, 0].to(labels.dtype), frame


def _focus(labels: Tensor, extent: Tensor, lots: _Lots) -> tuple[Tensor, Tensor]:
    """Return one object of each image, all alike: its middle (B, 2), y and x, and longest side (B, 1, 1).

    Without an object it is a place anywhere, and 0.
    """
    images, size = len(labels), labels.shape[-1]
    lot = lots.uniform(0, 1, _LOTS).gather(1, labels.flatten(1).long() % _LOTS)
    first = torch.where(labels.flatten(1) > 0, lot, -1).argmax(1, keepdim=True)
    number = labels.flatten(1).gather(1, first)
    held = (labels == number[:, :, None]).to(torch.float32)
    middles = torch.arange(size, device=labels.device) + 0.5
    place = torch.stack([held.sum(2) @ middles, held.sum(1) @ middles], dim=1) / held.sum((1, 2))[:, None]
    side = torch.maximum(held.amax(1).sum(1), held.amax(2).sum(1)) * (number[:, 0] > 0)
    place = torch.where(number > 0, place, lots.uniform(0, 1, 2) * extent).view(images, 2)
    return place, side[:, None, None]


def _other_aspect(extent: Tensor, size: int, probability: float, lots: _Lots) -> Tensor:
    """Return the height and width of the new images, int64 (B, 2), the longest side `size`."""
    ratio = extent[:, 0] / extent[:, 1] * lots.factor(1 / _ASPECT, _ASPECT, 1.0)[:, 0, 0]
    sides = torch.stack([ratio.clamp(max=1), (1 / ratio).clamp(max=1)], dim=1) * size
    return torch.where(lots.happens(probability)[:, :, 0], sides.round().clamp(min=1).long(), extent)


def recolour(image: Tensor, content: Tensor, chances: Chances, generator: torch.Generator) -> Tensor:
    """Return images, float32 (B, 3, S, S), after those augmentations that leave pixels in their places.

    image: its content, bool (B, 1, S, S), is in [0, 1]; what is returned need not be.
    """
    lots = _Lots(len(image), 4, generator)
    if chances.grey:
        grey = sum(weight * image[:, i : i + 1] for i, weight in enumerate(_LUMA))
        image = torch.where(lots.happens(chances.grey), grey, image)
    if chances.gains or chances.noise:  # which leave grey images grey
        coloured = (image.amax(1) > image.amin(1)).flatten(1).any(1)[:, None, None, None]
    if chances.gains:
        gains = lots.uniform(_GAIN, 1, 3, 1, 1)
        image = torch.where(lots.happens(chances.gains) & coloured, image * gains, image)
    if chances.gamma:
        gamma = lots.factor(1 / _GAMMA, _GAMMA, 1.0)
        image = torch.where(lots.happens(chances.gamma), image.clamp(0, 1).pow(gamma), image)
    if chances.window:
        low, high = lots.uniform(0, _WINDOW_SHARE), lots.uniform(1 - _WINDOW_SHARE, 1)
        clipped = (torch.minimum(torch.maximum(image, low), high) - low) / (high - low)
        image = torch.where(lots.happens(chances.window), clipped, image)
    if chances.invert:
        image = torch.where(lots.happens(chances.invert), 1 - image, image)
    if chances.blur:
        sigma = lots.uniform(*_BLUR_SIGMA)[:, 0, 0, 0] * (image.shape[-1] / REFERENCE_SIZE)
        image = torch.where(lots.happens(chances.blur), blur(image, content, sigma), image)
    if chances.bias:
        knots = lots.uniform(-_BIAS_LOG, _BIAS_LOG, 1, _BIAS_KNOTS, _BIAS_KNOTS)
        field = F.interpolate(knots, image.shape[2:], mode="bicubic", align_corners=True)
        image = torch.where(lots.happens(chances.bias), image * field.exp(), image)
    if chances.noise:
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        noise = torch.where(coloured, noise, noise[:, :1]) * lots.uniform(*_NOISE_SIGMA)
        # Values below the darkest one are cut off, as they are in most images.
        image = torch.where(lots.happens(chances.noise), (image + noise).clamp(min=0), image)
    return image


def blur(image: Tensor, content: Tensor, sigma: Tensor) -> Tensor:
    """Smooth the content of each image by a Gaussian of its `sigma`, float32 (B,) in pixels.

    Padding has no part in the means. At most 1.5 pixels of a 256-pixel input.
    """
    images, channels, height, width = image.shape
    reach = math.ceil(_BLUR_REACH * _BLUR_SIGMA[1] * width / REFERENCE_SIZE)
    at = torch.arange(-reach, reach + 1, device=image.device)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]).square())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels + 1, 0)[:, None, :, None]
    planes = torch.cat([image * content, content.to(image.dtype)], dim=1).view(1, -1, height, width)
    for turned in (kernel, kernel.transpose(2, 3)):
        planes = F.conv2d(planes, turned, padding="same", groups=len(kernel))
    planes = planes.view(images, channels + 1, height, width)
    return planes[:, :channels] / planes[:, channels:].clamp(min=_LEAST_RANGE)
