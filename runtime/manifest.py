"""The description that a bundle carries of itself: `manifest.json`, schema 4.

Read strictly: a key that is missing, double, unknown or of another type, a number that is not finite and a
text that would not print on one line are refused, but for what only records where a bundle came from. A
change that a reader must know of raises the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from litemed.runtime.errors import BundleError
from litemed.runtime.precision import REFERENCE, ROLES, Precision
from litemed.runtime.strict_json import Record, parse_json, read, shown

SCHEMA = 4  # the only one that is read and written
MAX_BYTES = 1 << 20  # of a manifest
MAX_GRAPH_BYTES = 1 << 29  # the light encoder takes 52 MB in float32

PREPROCESSING = {
    "channels": 3,
    "resize": "longest side, area",
    "normalise": "min-max of the resized image",
    "pad": "zeros right and bottom",
}
"""What `litemed.runtime.preprocess` does, in the manifest's words; nothing else is accepted."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\.onnx")


@dataclass(frozen=True)
class Input(Record):
    """The network's input: the side of its square in pixels, and `PREPROCESSING`."""

    size: int
    channels: int
    resize: str
    normalise: str
    pad: str

    def check(self) -> None:
        """Refuse what this runtime does not do."""
        if self.size not in range(64, 1025, 64):
            raise ValueError(f"size {self.size} is not a multiple of 64 from 64 to 1024")
        for key, ours in PREPROCESSING.items():
            if (found := getattr(self, key)) != ours:
                raise ValueError(f"{key} is {shown(found)}; this runtime does {ours!r} only")


@dataclass(frozen=True)
class Graph(Record, open=True):
    """One graph: its file in the bundle, that file's sha256 and size in bytes, and its operator set."""

    file: str
    sha256: str
    bytes: int
    opset: int

    def check(self) -> None:
        """Refuse a file that lies elsewhere or is too large."""
        if not _FILE_NAME.fullmatch(self.file):
            raise ValueError(f"file {shown(self.file)} is not a plain file name ending in .onnx")
        if not 0 < self.bytes <= MAX_GRAPH_BYTES:
            raise ValueError(f"{self.bytes} bytes are not between 1 and {MAX_GRAPH_BYTES}")


@dataclass(frozen=True)
class Weights(Record, open=True):
    """Where the weights came from; `trained` is False for random ones, whose masks mean nothing."""

    file: str
    sha256: str
    layout: str
    encoder: str
    trained: bool
    lora: object


@dataclass(frozen=True)
class Manifest(Record):
    """A checked manifest.

    `litemed` is the version that wrote it, `created` the time in ISO 8601; `graphs` by key, `precisions` by
    name ("float32" always among them). What an `object` is may be any JSON, for people to read.
    """

    schema: int
    name: str
    litemed: str
    created: str
    input: Input
    graphs: Mapping[str, Graph]
    precisions: Mapping[str, Precision]
    weights: Weights
    parity: object
    tools: object

    @property
    def input_size(self) -> int:
        """The side S of the network's square input in pixels."""
        return self.input.size

    def check(self) -> None:
        """Check that all precisions are known and have their graphs."""
        if REFERENCE not in self.precisions:
            raise ValueError(f"precisions: there is no {REFERENCE}; export the bundle again")
        for name, precision in self.precisions.items():
            precision.check_as(name)
            for key in (getattr(precision, role) for role in ROLES):
                if key not in self.graphs:
                    raise ValueError(f"precision {name!r} needs graph {shown(key)}, which is not there")


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Return the manifest in `data` (UTF-8 JSON); `source` names it in messages.

    Raises BundleError for anything that its schema does not allow, and for another preprocessing.
    """
    try:
        content = parse_json(data.decode())
    except ValueError as error:
        raise BundleError(f"{source}: is not sound JSON ({error}); export the bundle again") from None
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if schema is True or schema != SCHEMA:
        raise BundleError(f"{source}: is of schema {shown(schema)}, not {SCHEMA}; export again")
    return cast(Manifest, read(Manifest, content, source))
