"""Reads JSON from strangers: nothing double, nothing unknown, every value of the type asked for."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from litemed.runtime.errors import BundleError

_MAX_TEXT = 200


def load_json(data: bytes, source: str) -> Any:
    """Return the value of UTF-8 JSON; `source` names the file in error messages.

    Raises BundleError if it is damaged, or a key stands twice or a number is infinite (`json` allows both).
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
        return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BundleError(f"{source}: is not sound JSON ({why}); export the bundle again") from None


class Section:
    """One JSON object, read key by key; every BundleError names the file, the place and what was found."""

    def __init__(self, data: Any, source: str, place: str = "") -> None:
        self._source, self._place = source, place
        if not isinstance(data, dict):
            self.refuse(f"is {shown(data)}, not an object")
        self._data: dict[str, Any] = data
        self._known: set[str] = set()

    def refuse(self, why: str) -> NoReturn:
        """Raise a BundleError about this object."""
        raise BundleError(f"{self._source}: {self._place}{': ' if self._place else ''}{why}")

    def names(self) -> list[str]:
        """Return all keys, of an object whose keys are names."""
        for key in self._data:
            self._printable(key)
        return list(self._data)

    def take(self, key: str) -> Any:
        """Return a value of any type."""
        if key not in self._data:
            self.refuse(f"has no {key!r}; export the bundle again")
        self._known.add(key)
        return self._data[key]

    def section(self, key: str) -> Section:
        """Return an object."""
        return Section(self.take(key), self._source, self._inside(key))

    def sections(self, key: str) -> list[Section]:
        """Return a list of objects."""
        entries = self._list(key)
        return [Section(entry, self._source, self._inside(f"{key}[{i}]")) for i, entry in enumerate(entries)]

    def text(self, key: str, pattern: re.Pattern[str] | None = None, what: str = "") -> str:
        """Return one line of printable text, all of which must match `pattern`, described by `what`."""
        text = self._printable(self.take(key), key)
        if pattern is not None and not pattern.fullmatch(text):
            self.refuse(f"{key} {shown(text)} is not {what}")
        return text

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts."""
        return tuple(self._printable(entry, key) for entry in self._list(key))

    def integer(self, key: str) -> int:
        """Return a whole number, which true and false are not."""
        value = self.take(key)
        if type(value) is not int:
            self.refuse(f"{key} is {shown(value)}, not a whole number")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.take(key)
        if type(value) not in (int, float):
            self.refuse(f"{key} is {shown(value)}, not a number")
        try:
            return float(value)
        except OverflowError:
            self.refuse(f"{key} is too large")

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self.take(key)
        if type(value) is not bool:
            self.refuse(f"{key} is {shown(value)}, not true or false")
        return value

    def nothing_else(self) -> None:
        """Refuse keys that nobody asked for."""
        if unknown := self._data.keys() - self._known:
            self.refuse(f"has a key that is not known here: {shown(min(unknown))}")

    def _list(self, key: str) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list):
            self.refuse(f"{key} is {shown(value)}, not a list")
        return value

    def _printable(self, value: Any, key: str = "a key") -> str:
        if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
            self.refuse(f"{key} is {shown(value)}, not a line of at most {_MAX_TEXT} printable characters")
        return value

    def _inside(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key


def shown(value: Any) -> str:
    """Return an untrusted value for a message: one line, not too long."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
