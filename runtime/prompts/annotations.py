"""Boxes in the JSON files of other tools: COCO, labelme, Slicer's ROI, and our own sidecars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.prompts.extents import Given
from litemed.runtime.prompts.tables import MAX_ROWS, MAX_TABLE_BYTES, boxes_of_object
from litemed.runtime.strict_json import parse_json

_LABELME_SHAPES: Final = ("rectangle", "polygon")
_SYSTEMS: Final = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}  # the numbers are of older versions


def read_json(path: Path) -> dict[str | None, list[Given]]:
    """Return the boxes of each image that a JSON file names; under None those of one that it does not name.

    Raises InputError for what is of none of the kinds known, or damaged.
    """
    try:
        content = parse_json(read_bytes(path, MAX_TABLE_BYTES).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error}); correct it") from None
    readers = {"annotations": _coco, "shapes": _labelme, "markups": _slicer, "boxes": _sidecar}
    kinds = [key for key in readers if isinstance(content, dict) and key in content]
    if len(kinds) != 1:
        raise InputError(f"{path}: is none of COCO, labelme, Slicer markups and litemed's boxes, or several")
    try:
        return dict(readers[kinds[0]](content))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        known = {"annotations": "COCO", "shapes": "labelme", "markups": "Slicer markups", "boxes": "boxes"}
        fault = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: is no sound file of {known[kinds[0]]} ({fault[:200]})") from None


def _named(name: object) -> str:
    """Return the name of an image; raises ValueError if it is none."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"an image's name is {str(name)[:40]!a}")
    return name


def _coco(content: dict[str, Any]) -> Iterator[tuple[str, list[Given]]]:
    """x, y, width, height of each annotation, in the order of the file."""
    names: dict[object, str] = {}
    for place, image in _entries(content, "images", "image"):
        if isinstance(number := image["id"], (bool, list, dict)) or number in names:
            raise ValueError(f"{place} has the id {str(number)[:40]!a}, as another has, or which is none")
        names[number] = _named(image["file_name"])
    found: dict[str, list[Given]] = {name: [] for name in names.values()}
    if len(found) != len(names):
        raise ValueError("two images of one file_name")
    if len(content["annotations"]) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} annotations; split it")
    for place, one in _entries(content, "annotations", "annotation"):
        x, y, width, height = _numbers(one["bbox"], (4,), f"bbox of {place}")
        if width < 0 or height < 0:
            raise ValueError(f"{place} has a negative side")
        if isinstance(of := one["image_id"], (bool, list, dict)) or of not in names:
            raise ValueError(f"{place} is of image {str(of)[:40]!a}, which is not listed")
        corners = np.array([[x, y], [x + width, y + height]])
        found[names[of]].append(Given(corners, "edge", place))
    yield from found.items()


def _labelme(content: dict[str, Any]) -> Iterator[tuple[str, list[Given]]]:
    """Rectangles, whose two points come in any order, and polygons, by the box round them."""
    boxes = []
    for place, shape in _entries(content, "shapes", "shape"):
        if (kind := shape.get("shape_type")) not in _LABELME_SHAPES:
            raise ValueError(f"{place} is a {str(kind)[:40]!a}; give {' or '.join(_LABELME_SHAPES)}")
        points = _numbers(shape["points"], (-1, 2), f"points of {place}")
        if len(points) < 2:
            raise ValueError(f"{place} has {len(points)} points")
        boxes.append(Given(points, "edge", place))
    yield _named(content["imagePath"]), boxes


def _slicer(content: dict[str, Any]) -> Iterator[tuple[None, list[Given]]]:
    """ROIs: the eight corners of each, turned as it is, in mm of the patient."""
    boxes = []
    for place, markup in _entries(content, "markups", "markup"):
        if (kind := markup.get("type")) != "ROI":
            raise ValueError(f"{place} is a {str(kind)[:40]!a}; give ROI")
        if (system := str(markup.get("coordinateSystem", "LPS"))) not in _SYSTEMS:
            raise ValueError(f"{place} has the coordinate system {system[:20]!a}")
        if (unit := markup.get("coordinateUnits", "mm")) not in ("mm", ["mm", "UCUM", "millimeter"]):
            raise ValueError(f"{place} is in {str(unit)[:20]!a}, not mm")
        centre, size = (_numbers(markup[name], (3,), f"{name} of {place}") for name in ("center", "size"))
        straight = np.eye(3).ravel().tolist()
        turned = _numbers(markup.get("orientation", straight), (9,), f"orientation of {place}").reshape(3, 3)
        if not (size > 0).all() or not np.allclose(turned.T @ turned, np.eye(3), atol=1e-3):
            raise ValueError(f"{place} has no size, or an orientation that is no rotation")
        halves = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T * size
        boxes.append(Given(centre + halves @ turned.T, _SYSTEMS[system], place))
    yield None, boxes


def _sidecar(content: dict[str, Any]) -> Iterator[tuple[None, list[Given]]]:
    yield None, boxes_of_object(content, "the file")


class _Entry(dict[str, Any]):
    """An object of a list, which says itself what it lacks."""

    def __init__(self, entry: dict[str, Any], place: str) -> None:
        super().__init__(entry)
        self._place = place

    def __missing__(self, key: str) -> NoReturn:
        raise ValueError(f"{self._place} has no {key}")


def _entries(content: dict[str, Any], key: str, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a list, and what to call each; raises ValueError, which names the one at fault."""
    if not isinstance(entries := content[key], list):
        raise ValueError(f"{key} is no list")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"{what} {number} is no object")
        yield (place := f"{what} {number}"), _Entry(entry, place)


def _numbers(values: Any, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    """Return numbers in a shape, of which the first side may be -1, any; raises ValueError."""
    rows = values if isinstance(values, list) and len(shape) > 1 else [values]
    sound = all(isinstance(row, list) and len(row) == shape[-1] for row in rows)
    if not sound or {type(one) for row in rows for one in row} - {int, float}:
        wanted = f"{shape[-1]} numbers" if len(shape) == 1 else f"points of {shape[-1]} numbers"
        raise ValueError(f"{what} is not {wanted}")
    return np.array(values, np.float64).reshape(shape)
