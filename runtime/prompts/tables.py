"""Boxes of many cases in one table: CSV, or JSON lines."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from litemed.runtime.boxes import MAX_BOXES
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.prompts.extents import Given
from litemed.runtime.strict_json import parse_json

MAX_TABLE_BYTES: Final = 64 * 2**20
MAX_ROWS: Final = 2**20  # boxes of one file, or lines of a CSV
# Free names that nobody means to be free.
_NEAR: Final = {"unit": "units", "slice": "z", "box": "boxes", "cases": "case"}
_UNITS: Final = {"px": "index", "RAS": "RAS", "LPS": "LPS"}


def read_csv(path: Path) -> dict[str, list[Given]]:
    """Return the boxes of each case, in the order of the rows.

    Columns are case, x0, y0, x1, y1 and, of volumes, z0 and z1 or, of a box on one slice, z; units is px,
    the default, RAS or LPS. Others are free. Raises InputError, which names file and line.
    """
    found: dict[str, list[Given]] = {}
    try:
        reader = csv.reader(_lines(path), strict=True)
        head = [name.strip().lower() for name in next(reader, [])]
        if len(set(head)) != len(head) or not {"case", "x0", "y0", "x1", "y1"} <= set(head):
            raise InputError(f"{path}: the first line must name case, x0, y0, x1, y1, each once")
        if near := [name for name in head if name in _NEAR]:
            raise InputError(f"{path}: a column {near[0]}; {_NEAR[near[0]]} is what it must be called")
        if ("z0" in head) != ("z1" in head):
            raise InputError(f"{path}: has only one of z0 and z1")
        for row in reader:
            if not any(row):
                continue
            place = f"line {reader.line_num}"
            if reader.line_num > MAX_ROWS:
                raise InputError(f"{path}: more than {MAX_ROWS} lines; split it")
            if len(row) != len(head):
                raise InputError(f"{path}: {place} has {len(row)} values, the first line {len(head)}")
            cells = {name: cell.strip() for name, cell in zip(head, row, strict=True)}
            try:
                given = _given(cells, place)
            except ValueError as error:
                raise InputError(f"{path}: {place}: {error}") from None
            if not cells["case"]:
                raise InputError(f"{path}: {place} names no case")
            found.setdefault(cells["case"], []).append(given)
    except csv.Error as error:
        raise InputError(f"{path}: is no sound CSV ({error})") from None
    return found


def _given(cells: dict[str, str], place: str) -> Given:
    third = [name for name in ("z0", "z1") if cells.get(name)]
    if cells.get("z") and third:
        raise ValueError("both a slice z and z0 or z1 are given")
    if len(third) == 1:
        raise ValueError("only one of z0 and z1 is given")
    names = ("x0", "y0", "z0", "x1", "y1", "z1") if third else ("x0", "y0", "x1", "y1")
    try:
        numbers = [float(cells[name]) for name in names]
        z = _slice(float(cells["z"])) if cells.get("z") else None
    except (ValueError, OverflowError):
        shown = ", ".join(f"{name} {cells[name][:20]!a}" for name in (*names, *["z"] * ("z" in cells)))
        raise ValueError(f"not all are numbers, of z a whole one: {shown}") from None
    return given_box(numbers, cells.get("units") or "px", z, place)


def read_json_lines(path: Path) -> dict[str, list[Given]]:
    """Return the boxes of each case: one object a line, with case, boxes and, if need be, units and z.

    Boxes are lists of four numbers or six, `units` and `z` as in `read_csv`. Raises InputError, which names
    file and line.
    """
    found: dict[str, list[Given]] = {}
    count = 0
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            case, boxes = _parse_line(parse_json(line), f"line {number}")
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from None
        if case in found:
            raise InputError(f"{path}: line {number}: a second one of case {case!a}; give one for each case")
        found[case], count = boxes, count + len(boxes)
        if count > MAX_ROWS:
            raise InputError(f"{path}: more than {MAX_ROWS} boxes; split it")
    return found


def _parse_line(content: Any, place: str) -> tuple[str, list[Given]]:
    if not isinstance(content, dict) or not isinstance(content.get("case"), str) or not content["case"]:
        raise ValueError('is no object with a case; write {"case": "NAME", "boxes": [[x0, y0, x1, y1], ...]}')
    return content["case"], boxes_of_object(content, place)


def boxes_of_object(content: dict[str, Any], place: str) -> list[Given]:
    """Return the boxes of a JSON object; raises ValueError."""
    if near := [name for name in content if name in _NEAR]:
        raise ValueError(f"has {near[0]}; {_NEAR[near[0]]} is what it must be called")
    rows, units, z = content.get("boxes"), content.get("units", "px"), content.get("z")
    if not isinstance(rows, list) or not rows:
        raise ValueError("has no list of boxes")
    if len(rows) > MAX_BOXES:
        raise ValueError(f"has {len(rows)} boxes; the most is {MAX_BOXES}")
    if z is not None:
        if type(z) is not int:
            raise ValueError(f"z is {str(z)[:20]!a}, not a whole number")
        z = _slice(z)
    for number, row in enumerate(rows, 1):
        # By type, because True is an int to isinstance.
        if not isinstance(row, list) or len(row) not in (4, 6) or {type(one) for one in row} - {int, float}:
            raise ValueError(f"box {number} is not a list of four or six numbers")
        if len(row) == 6 and z is not None:
            raise ValueError(f"box {number} has six numbers beside a slice z")
    return [given_box(row, units, z, f"box {number} of {place}") for number, row in enumerate(rows, 1)]


def given_box(numbers: list[float], units: object, z: int | None, place: str) -> Given:
    """Return a box of x0 y0 x1 y1, or x0 y0 z0 x1 y1 z1; raises ValueError if it is inverted."""
    if not isinstance(units, str) or units not in _UNITS:
        raise ValueError(f"units {str(units)[:20]!a}; give {', '.join(_UNITS)}")
    try:
        ends = np.array(numbers, np.float64).reshape(2, -1)
    except OverflowError:
        raise ValueError("a number is too large") from None
    if units == "px" and not (ends[0] <= ends[1]).all():  # which of NaN is not so either
        raise ValueError(f"{numbers} needs x0 <= x1, y0 <= y1 and z0 <= z1")
    if units != "px":  # all corners: where axes run obliquely two do not tell the others
        choice = np.indices((2,) * ends.shape[1]).reshape(ends.shape[1], -1).T
        ends = np.take_along_axis(ends, choice, axis=0)
    return Given(ends, _UNITS[units], place, z)


def _slice(number: float) -> int:
    """Return the number of a slice; raises ValueError where it can be none."""
    if not abs(number) < 2**31 or number != int(number):
        raise ValueError("z is no number of a slice")
    return int(number)


def _lines(path: Path) -> io.StringIO:
    """Return the lines of a file, whose ends may be any system's, and not what Unicode takes for one, too."""
    try:
        return io.StringIO(read_bytes(path, MAX_TABLE_BYTES).decode("utf-8-sig"), newline=None)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason})") from None
