"""The description that a bundle carries of itself: `manifest.json`, schema 4.

Read strictly: a key that is missing, double, unknown or of another type, a number that is not finite and a
text that would not print on one line are refused. Only the sections that record where a bundle came from
(weights, parity, tools) may hold more keys than are known here. A change that a reader must know of raises
the schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from litemed.runtime.errors import BundleError
from litemed.runtime.precision import REFERENCE, ROLES, Precision
from litemed.runtime.strict_json import Record, parse_json, read, shown

SCHEMA = 4
"""The only one that is read and written."""

MAX_BYTES = 1 << 20
"""The most that a manifest may take."""

MAX_GRAPH_BYTES = 1 << 29
"""The most that a graph may take; the light encoder takes 52 MB in float32."""

PREPROCESSING = {
    "channels": 3,
    "resize": "longest side, area",
    "normalise": "min-max of the resized image",
    "pad": "zeros right and bottom",
}
"""What `litemed.runtime.preprocess` does, in the manifest's words; nothing else is accepted."""

EMBEDDING_CHANNELS = 256
BOXES_AXIS = "N"

_SIZES = range(64, 1025, 64)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\.onnx")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        if self.size not in _SIZES:
            raise ValueError(f"size {self.size} is not a multiple of 64 from 64 to 1024")
        for key, ours in PREPROCESSING.items():
            if (found := getattr(self, key)) != ours:
                raise ValueError(f"{key} is {shown(found)}; this runtime does {ours!r} only")


@dataclass(frozen=True)
class Value(Record):
    """An input or output: its name, dtype (as numpy names it) and shape; a text is a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph(Record):
    """One graph: its file in the bundle, that file's sha256 and size in bytes, operator set and interface."""

    file: str
    sha256: str
    bytes: int
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def check(self) -> None:
        """Refuse a file that lies elsewhere or is too large."""
        if not _FILE_NAME.fullmatch(self.file):
            raise ValueError(f"file {shown(self.file)} is not a plain file name ending in .onnx")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {shown(self.sha256)} is not 64 hexadecimal digits")
        if not 0 < self.bytes <= MAX_GRAPH_BYTES:
            raise ValueError(f"{self.bytes} bytes are not between 1 and {MAX_GRAPH_BYTES}")


@dataclass(frozen=True)
class Lora(Record, open=True):
    """The adapter that was folded in; `sha256` is that of its file, None if it came in the checkpoint."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    sha256: str | None


@dataclass(frozen=True)
class Weights(Record, open=True):
    """Where the weights came from, and the kind of their `encoder`.

    `trained` is False for random ones, whose masks mean nothing.
    """

    file: str
    sha256: str
    layout: str
    encoder: str
    trained: bool
    lora: Lora | None


@dataclass(frozen=True)
class Parity(Record, open=True):
    """One measured comparison with PyTorch; `boxes` and `mask_iou` are None for an encoder."""

    graph: str
    stage: str
    engine: str
    boxes: int | None
    max_abs_diff: float
    mask_iou: float | None


@dataclass(frozen=True)
class Manifest(Record):
    """A checked manifest.

    `litemed` is the version that wrote it, `created` the time in ISO 8601; `graphs` by key, `precisions` by
    name ("float32" always among them).
    """

    schema: int
    name: str
    litemed: str
    created: str
    input: Input
    graphs: Mapping[str, Graph]
    precisions: Mapping[str, Precision]
    weights: Weights
    parity: tuple[Parity, ...]
    tools: Mapping[str, str]

    @property
    def input_size(self) -> int:
        """The side S of the network's square input in pixels."""
        return self.input.size

    def check(self) -> None:
        """Check that precisions and graphs fit each other, and each graph the role that it plays."""
        if REFERENCE not in self.precisions:
            raise ValueError(f"precisions: there is no {REFERENCE}; export the bundle again")
        used = set()
        for name, precision in self.precisions.items():
            precision.check_as(name)
            for role in ROLES:
                key = getattr(precision, role)
                if key not in self.graphs:
                    raise ValueError(f"precision {name!r} needs graph {shown(key)}, which is not there")
                graph = self.graphs[key]
                if (graph.inputs, graph.outputs) != interface(role, self.input_size):
                    raise ValueError(
                        f"graph {key!r} has not the inputs and outputs of the {role} it stands for"
                    )
                used.add(key)
        if unused := self.graphs.keys() - used:
            raise ValueError(f"graph {min(unused)!r} belongs to no precision")
        if len({graph.file.lower() for graph in self.graphs.values()}) != len(self.graphs):
            raise ValueError("two graphs share one file")


def interface(role: str, size: int) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """Return the inputs and outputs of a graph in the role "encoder" or "decoder" at input side `size`."""
    embedding = Value("image_embedding", "float32", (1, EMBEDDING_CHANNELS, size // 4, size // 4))
    if role == "encoder":
        return (Value("image", "float32", (1, 3, size, size)),), (embedding,)
    return (
        (embedding, Value("boxes", "float32", (BOXES_AXIS, 4))),
        (Value("logits", "float32", (BOXES_AXIS, size, size)), Value("iou", "float32", (BOXES_AXIS,))),
    )


def parse_manifest(data: bytes, source: str) -> Manifest:
    """Return the manifest in `data` (UTF-8 JSON); `source` names it in messages.

    Raises BundleError for anything that its schema does not allow, and for a model that this runtime cannot
    run: another preprocessing or interface.
    """
    try:
        content = parse_json(data.decode())
    except ValueError as error:
        raise BundleError(f"{source}: is not sound JSON ({error}); export the bundle again") from None
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if schema is True or schema != SCHEMA:
        raise BundleError(
            f"{source}: is of schema {shown(schema)}, not {SCHEMA}; export again, or use the litemed that "
            "wrote it"
        )
    manifest: Manifest = read(Manifest, content, source)
    return manifest
