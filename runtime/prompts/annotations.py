"""Boxes in the JSON files of other tools: COCO, labelme, Slicer's ROI, and our own sidecars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import InputError
from litemed.runtime.inputs.files import case_name, read_bytes
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


def _stem(name: object) -> str:
    """Return the name of an image as a file of it gives it, without folders and suffix, of any system."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"an image's name is {str(name)[:40]!a}")
    return case_name(Path(name.replace("\\", "/").rsplit("/", 1)[-1]))


def _coco(content: dict[str, Any]) -> Iterator[tuple[str, list[Given]]]:
    """x, y, width, height of each annotation, in the order of the file."""
    names: dict[object, str] = {}
    for image in content["images"]:
        if image["id"] in names or not _stem(name := image["file_name"]):
            raise ValueError(f"two images of id {image['id']!a}, or one without a name")
        names[image["id"]] = name
    found: dict[str, list[Given]] = {name: [] for name in names.values()}
    if len(found) != len(names):
        raise ValueError("two images of one file_name")
    if len(content["annotations"]) > MAX_ROWS:
        raise ValueError(f"more than {MAX_ROWS} annotations; split it")
    for number, one in enumerate(content["annotations"], 1):
        x, y, width, height = _numbers(one["bbox"], (4,))
        if width < 0 or height < 0:
            raise ValueError(f"annotation {number} has a negative side")
        if one["image_id"] not in names:
            raise ValueError(f"annotation {number} is of image {one['image_id']!a}, which is not listed")
        corners = np.array([[x, y], [x + width, y + height]])
        found[names[one["image_id"]]].append(Given(corners, "edge", f"annotation {number}"))
    yield from found.items()


def _labelme(content: dict[str, Any]) -> Iterator[tuple[str, list[Given]]]:
    """Rectangles, whose two points come in any order, and polygons, by the box round them."""
    boxes = []
    for number, shape in enumerate(content["shapes"], 1):
        if (kind := shape.get("shape_type")) not in _LABELME_SHAPES:
            raise ValueError(f"shape {number} is a {kind!a}; give {' or '.join(_LABELME_SHAPES)}")
        points = _numbers(shape["points"], (len(shape["points"]), 2))
        if len(points) < 2:
            raise ValueError(f"shape {number} has {len(points)} points")
        boxes.append(Given(points, "edge", f"shape {number}"))
    yield _stem(content["imagePath"]), boxes


def _slicer(content: dict[str, Any]) -> Iterator[tuple[None, list[Given]]]:
    """ROIs: the eight corners of each, turned as it is, in mm of the patient."""
    boxes = []
    for number, markup in enumerate(content["markups"], 1):
        if markup.get("type") != "ROI":
            raise ValueError(f"markup {number} is a {markup.get('type')!a}; give ROI")
        if (system := str(markup.get("coordinateSystem", "LPS"))) not in _SYSTEMS:
            raise ValueError(f"markup {number} has the coordinate system {system[:20]!a}")
        if (unit := markup.get("coordinateUnits", "mm")) not in ("mm", ["mm", "UCUM", "millimeter"]):
            raise ValueError(f"markup {number} is in {str(unit)[:20]!a}, not mm")
        centre, size = _numbers(markup["center"], (3,)), _numbers(markup["size"], (3,))
        turned = _numbers(markup.get("orientation", np.eye(3).ravel().tolist()), (9,)).reshape(3, 3)
        if not (size > 0).all() or not np.allclose(turned.T @ turned, np.eye(3), atol=1e-3):
            raise ValueError(f"markup {number} has no size, or an orientation that is no rotation")
        halves = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T * size
        boxes.append(Given(centre + halves @ turned.T, _SYSTEMS[system], f"markup {number}"))
    yield None, boxes


def _sidecar(content: dict[str, Any]) -> Iterator[tuple[None, list[Given]]]:
    yield None, boxes_of_object(content, "the file")


def _numbers(values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a list of numbers, or of lists of them; raises ValueError."""
    flat = [one for row in values for one in (row if isinstance(row, list) else [row])]
    if {type(one) for one in flat} - {int, float}:
        raise ValueError("a coordinate is no number")
    return np.array(values, np.float64).reshape(shape)
