"""Settings as plain tables: read from TOML and the command line, made a Config, written back, compared."""

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
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key or not value:
        raise UsageError(f"setting {text!r}: write TABLE.KEY=VALUE, such as optimizer.lr=1e-4")
    for candidate in (value, f'"{value}"'):
        try:
            return tomllib.loads(f"{key} = {candidate}")
        except tomllib.TOMLDecodeError:
            continue
    raise UsageError(f"setting {text!r}: write TABLE.KEY=VALUE, such as optimizer.lr=1e-4")


def updated(config: AnyConfig, tables: Mapping[str, Any], source: str) -> AnyConfig:
    """Return `config` with the keys in `tables` replaced.

    tables: {table: {key: value}} as TOML reads them. source: what an error names.
    Raises UsageError for unknown tables and keys, wrong types and values out of range.
    """
    _known(tables, type(config), source, "table")
    parts: dict[str, Any] = {}
    for table, values in tables.items():
        if not isinstance(values, Mapping):
            raise UsageError(f"{source}: {table} is a table: write {table}.KEY or [{table}]")
        current = getattr(config, table)
        _known(values, type(current), source, f"key in [{table}]")
        kinds = typing.get_type_hints(type(current))
        converted = {k: _convert(v, kinds[k], f"{source}: {table}.{k}") for k, v in values.items()}
        try:
            parts[table] = dataclasses.replace(current, **converted)
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from None
    return dataclasses.replace(config, **parts)


def as_tables(config: Config) -> dict[str, dict[str, Any]]:
    """Return `config` as plain containers: {table: {key: value}}; `updated` reads them back."""
    return {
        table.name: {
            key: list(value)
            if isinstance(value, tuple)
            else dict(value)
            if isinstance(value, Mapping)
            else value
            for key, value in vars(getattr(config, table.name)).items()
        }
        for table in dataclasses.fields(config)
    }


def differences(a: Config, b: Config) -> list[str]:
    """Return the settings in which two configurations differ, as `table.key`, `hardware` aside."""
    first, second = as_tables(a), as_tables(b)
    return [
        f"{table}.{key}"
        for table, values in first.items()
        for key, value in values.items()
        if table != "hardware" and value != second[table][key]
    ]


def _known(given: Mapping[str, Any], kind: type, source: str, what: str) -> None:
    names = [item.name for item in dataclasses.fields(kind)]
    for name in given:
        if name not in names:
            raise UsageError(f"{source}: unknown {what} {name!r}; known: {', '.join(names)}")


def _convert(value: Any, kind: Any, name: str) -> Any:
    """Return `value` as the field's type; integers serve as floats, nothing else is converted."""
    origin = typing.get_origin(kind)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(item, typing.get_args(kind)[0], name) for item in value)
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {k: _convert(v, typing.get_args(kind)[1], f"{name}.{k}") for k, v in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    wanted = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        tuple: "a list of text",
    }
    raise UsageError(f"{name} = {value!r}: must be {wanted.get(origin or kind, 'a table of numbers')}")
