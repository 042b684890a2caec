"""Reads JSON from strangers: nothing double, nothing unknown, every value of the type asked for."""

import dataclasses
import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from litemed.runtime.errors import BundleError

_SCALARS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a line of at most 200 printable characters",
}


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises ValueError, in one line, for damage, and for double keys and infinite numbers, which `json` allows.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:20]} is not a finite number")
        return number

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Record:
    """A dataclass that `read` makes of a JSON object, whose keys are its fields.

    A field with a default need not be there. With `further_keys` there may be others, which are not read.
    """

    further_keys = False

    def check(self) -> None:
        """Raise ValueError, which says what is wrong, for contents that the types alone do not rule out."""


def read(kind: Any, value: Any, source: str, place: str = "") -> Any:
    """Return a JSON value as `kind`, from which nothing may differ.

    `kind` is a `Record`, `Mapping[str, X]`, `tuple[X, ...]`, `X | None`, str, int, float, bool, or object for
    anything. Raises BundleError, which names `source`, the file, and `place`, where in it the value stands.
    """

    def refuse(why: str) -> NoReturn:
        raise BundleError(f"{source}: {place}{': ' if place else ''}{why}")

    def inside(kind: Any, key: str) -> Any:
        return read(kind, value[key], source, f"{place}.{key}" if place else key)

    if kind is object:
        return value
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            refuse(f"is {shown(value)}, not a list")
        return tuple(read(parts[0], item, source, f"{place}[{i}]") for i, item in enumerate(value))
    if parts and origin is not Mapping:  # X | None
        return None if value is None else read(parts[0], value, source, place)
    if kind in _SCALARS:
        if kind is float and type(value) is int and abs(value) < 1e300:
            value = float(value)
        if type(value) is not kind or (kind is str and not (len(value) <= 200 and value.isprintable())):
            refuse(f"is {shown(value)}, not {_SCALARS[kind]}")
        return value
    if not isinstance(value, dict):
        refuse(f"is {shown(value)}, not an object")
    if origin is Mapping:
        names = [read(str, key, source, f"{place}: a key") for key in value]
        return MappingProxyType({key: inside(parts[1], key) for key in names})
    types = get_type_hints(kind)
    required = {one.name for one in dataclasses.fields(kind) if one.default is dataclasses.MISSING}
    if not kind.further_keys and (unknown := value.keys() - types):
        refuse(f"has a key that is not known here: {shown(min(unknown))}")
    if missing := required - value.keys():
        refuse(f"has no {min(missing)!r}; export the bundle again")
    found = kind(**{key: inside(types[key], key) for key in types if key in value})
    try:
        found.check()
    except ValueError as error:
        refuse(str(error))
    return found


def shown(value: Any) -> str:
    """Return an untrusted value for a message: one line, not too long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
