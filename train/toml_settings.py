"""Settings from TOML and the command line: read, made a Config, written back, compared."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from litemed.runtime.errors import UsageError
from litemed.train.config import Config

AnyConfig = TypeVar("AnyConfig", bound=Config)
Changes = tuple[Mapping[str, Any], str]
"""Tables of settings, {table: {key: value}}, and what errors call the place they come from."""

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises UsageError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error


def parse_setting(text: str) -> dict[str, Any]:
    """Return the tables of one `TABLE.KEY=VALUE`; a VALUE that is not TOML is taken as text.

    Raises UsageError for anything else.
    """
    key, _, value = (part.strip() for part in text.partition("="))
    for candidate in (value, f'"{value}"') if key and value else ():
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise UsageError(f"setting {text!r}: write TABLE.KEY=VALUE, such as optimizer.lr=1e-4")


def updated(
    config: AnyConfig, tables: Mapping[str, Any], source: str, others: tuple[str, ...] = ()
) -> AnyConfig:
    """Return `config` with the settings in `tables` replaced.

    tables, source: see `Changes`. others: names of tables that are read elsewhere.
    Raises UsageError for unknown tables and keys, wrong types and values out of range.
    """
    _known(tables, [*_names(config), *others], source, "table")
    parts: dict[str, Any] = {}
    for table, values in tables.items():
        if table in others:
            continue
        if not isinstance(values, Mapping):
            raise UsageError(f"{source}: {table} is a table: write {table}.KEY or [{table}]")
        current = getattr(config, table)
        _known(values, _names(current), source, f"key in [{table}]")
        kinds = typing.get_type_hints(type(current))
        converted = {k: _convert(v, kinds[k], f"{source}: {table}.{k}") for k, v in values.items()}
        try:
            parts[table] = dataclasses.replace(current, **converted)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None
    return dataclasses.replace(config, **parts)


def as_tables(config: Config) -> dict[str, dict[str, Any]]:
    """Return `config` as plain containers: {table: {key: value}}; `updated` reads them back."""
    return dataclasses.asdict(config)


def differences(a: Config, b: Config) -> list[str]:
    """Return the settings in which two configurations differ, as `table.key`, `hardware` aside."""
    first, second = as_tables(a), as_tables(b)
    return [
        f"{table}.{key}"
        for table, values in first.items()
        for key, value in values.items()
        if table != "hardware" and value != second[table][key]
    ]


def _names(table: Any) -> list[str]:
    return [item.name for item in dataclasses.fields(table)]


def _known(given: Mapping[str, Any], names: list[str], source: str, what: str) -> None:
    for name in given:
        if name not in names:
            raise UsageError(f"{source}: unknown {what} {name!r}; known: {', '.join(names)}")


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Return `value` as the field's type; integers serve as floats, nothing else is converted."""
    if kind not in _KINDS:  # the one mapping, of numbers
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} = {value!r}: must be a table of numbers")
        return {key: _convert(one, float, f"{name}.{key}") for key, one in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise UsageError(f"{name} = {value!r}: must be {_KINDS[kind]}")
    return value
