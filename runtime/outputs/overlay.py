"""Pictures of results: label map and boxes drawn over the image."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from litemed.runtime.case import Case
from litemed.runtime.plan import covered

Picture = npt.NDArray[np.uint8]
"""uint8 (height, width, 3), R G B."""

# Longest side of a picture in pixels, least and most: lines are thin on small images, huge files are avoided.
_LONGEST = (768, 1600)
_TILE_LONGEST = 448
_MAX_TILES = 12
_GAP = 6
_BACKGROUND = 24
_FILL = 0.27
_MAX_NUMBERED = 40
_LUMA = (0.299, 0.587, 0.114)
_LEAST_LUMA = 0.42
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_case(case: Case, labels: npt.NDArray[np.unsignedinteger]) -> Picture:
    """Draw the label map and the boxes of a case over its image.

    Objects are tinted and outlined, their boxes drawn and numbered, in the label's colour (`colours`).
    A volume gives a contact sheet of up to 12 slices in their order: the middle one of each box, or as many
    of these evenly chosen; where there is room left, others that a box covers, evenly chosen too.

    Args:
        case: the case.
        labels: label map of the case's spatial shape; label i belongs to box i.
    """
    xyxy, z = case.boxes.xyxy, case.boxes.z
    palette = colours(len(xyxy))
    if z is None:
        low, high = _LONGEST
        longest = min(max(*case.shape, low), high)
        return _draw_slice(case.image, labels, xyxy, np.arange(1, len(xyxy) + 1), palette, longest)
    tiles = []
    for index in (shown := _slices_to_show(z)):
        here = np.flatnonzero((z[:, 0] <= index) & (index <= z[:, 1]))
        longest = _TILE_LONGEST if len(shown) > 1 else _LONGEST[0]
        tile = _draw_slice(case.image[index], labels[index], xyxy[here], here + 1, palette, longest)
        _tag(tile, f"slice {index}", (6, tile.shape[0] - 6), (200, 200, 200))
        tiles.append(tile)
    return _montage(tiles)


def _slices_to_show(z: npt.NDArray[np.int64]) -> list[int]:
    """Return, ascending, the slices of a contact sheet of boxes (N, 2), first and last slice."""
    middles = np.unique(z.sum(axis=1) // 2)
    others = np.setdiff1d(covered(*z.T), middles)
    return sorted([*_evenly(middles, _MAX_TILES), *_evenly(others, _MAX_TILES - len(middles))])


def _evenly(numbers: npt.NDArray[np.int64], most: int) -> list[int]:
    """Return all of some numbers or, evenly chosen, at most so many of them, the ends among them."""
    if len(numbers) <= most:
        return numbers.tolist()
    return numbers[np.linspace(0, len(numbers) - 1, max(most, 0)).round().astype(int)].tolist()


def _montage(pictures: Sequence[Picture]) -> Picture:
    """Arrange pictures on a dark ground, up to three in a row, then as many as make it about square."""
    columns = max(min(len(pictures), 3), math.ceil(math.sqrt(len(pictures))))
    rows = math.ceil(len(pictures) / columns)
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    shape = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    ground = np.full(shape, _BACKGROUND, np.uint8)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        top = row * (height + _GAP) + (height - picture.shape[0]) // 2
        left = column * (width + _GAP) + (width - picture.shape[1]) // 2
        ground[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return ground


def encode_png(picture: Picture) -> bytes:
    """Return a picture as a PNG file."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def colours(count: int) -> Picture:
    """Return the colours of labels 0 to ``count``, uint8 (count + 1, 1, 3); that of the background is black.

    Hues advance by the golden angle, so that neighbours differ most and no hue returns soon; saturation and
    brightness take turns besides. Dark colours are lightened: images are dark where there is nothing.
    """
    number = np.arange(count)
    hsv = np.empty((count, 1, 3), np.float32)
    hsv[:, 0, 0] = (60 + 137.508 * number) % 360
    # After eight hues the next tone: of the first 24 colours any two are then 20 apart in CIELAB.
    hsv[:, 0, 1] = np.choose(number // 8 % 3, (0.85, 0.45, 1.0))
    hsv[:, 0, 2] = np.choose(number // 8 % 3, (1.0, 1.0, 0.7))
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) if count else hsv
    luma = np.dot(rgb, np.array(_LUMA, np.float32))
    rgb += (1 - rgb) * np.clip((_LEAST_LUMA - luma) / (1 - luma + 1e-6), 0, 1)[..., None]
    return np.concatenate([np.zeros((1, 1, 3), np.uint8), np.rint(rgb * 255).astype(np.uint8)])


def _draw_slice(
    image: Picture,
    labels: npt.NDArray[np.unsignedinteger],
    xyxy: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    palette: Picture,
    longest: int,
) -> np.ndarray:
    """Draw one slice with the boxes that cover it; ``longest`` is the picture's longest side."""
    scale = longest / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    if picture.ndim == 2:  # not before: it may be far larger
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    rim = 2 if longest > _TILE_LONGEST else 1
    _tint(picture, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT), palette, rim)
    line = 2 if longest > _LONGEST[0] else 1
    corners = np.rint(xyxy * scale).astype(int).reshape(-1, 2, 2)
    inks = [tuple(palette[number, 0].tolist()) for number in numbers]
    for (start, end), ink in zip(corners.tolist(), inks, strict=True):
        # A dark line beneath keeps the box visible on a bright ground.
        cv2.rectangle(picture, start, end, (0, 0, 0), line + 2)
        cv2.rectangle(picture, start, end, ink, line)
    if len(numbers) <= _MAX_NUMBERED:
        for (start, _), ink, number in zip(corners.tolist(), inks, numbers.tolist(), strict=True):
            _tag(picture, str(number), start, ink)
    return picture


def _tint(picture: np.ndarray, labels: np.ndarray, palette: Picture, rim: int) -> None:
    """Tint every object and draw its rim of some pixels, in place."""
    inks = palette[labels, 0]
    objects = labels > 0
    picture[objects] = cv2.addWeighted(picture, 1 - _FILL, inks, _FILL, 0)[objects]
    kernel = np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)
    outline = (cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)) & objects
    picture[outline] = inks[outline]


def _tag(picture: np.ndarray, text: str, corner: Sequence[int], ink: tuple[int, ...]) -> None:
    """Write on a filled ground above a corner, x y, or below it if there is no room."""
    (width, height), _ = cv2.getTextSize(text, _FONT, 0.45, 1)
    left = min(max(corner[0] - 1, 0), picture.shape[1] - width - 6)
    top = corner[1] - height - 7 if corner[1] >= height + 7 else max(corner[1], 0)
    cv2.rectangle(picture, (left, top), (left + width + 5, top + height + 6), ink, cv2.FILLED)
    cv2.putText(picture, text, (left + 3, top + height + 3), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
