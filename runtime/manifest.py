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
from types import MappingProxyType

from litemed.runtime.onnx_header import Value
from litemed.runtime.precision import ROLES, Precision, read_precisions
from litemed.runtime.strict_json import Section, load_json, shown

SCHEMA = 4
"""The only one that is read and written."""

MAX_BYTES = 1 << 20
"""The most that a manifest may take; real ones take 2 to 10 KB."""

MAX_GRAPH_BYTES = 1 << 29
"""The most that a graph may take; the light encoder takes 52 MB in float32."""

PREPROCESSING = {
    "channels": 3,
    "resize": "longest side, area",
    "normalise": "min-max of the resized image",
    "pad": "zeros right and bottom",
}
"""What `litemed.runtime.preprocess` does, in the manifest's words; nothing else is accepted."""

OPSETS = range(16, 22)
"""Versions of ONNX's operator set that every supported version of the engines runs (ONNX Runtime 1.20 on)."""

EMBEDDING_CHANNELS = 256
BOXES_AXIS = "N"

_SIZES = range(64, 1025, 64)
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\.onnx")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Graph:
    """One graph: its file in the bundle, that file's size in bytes and sha256, operator set and interface."""

    file: str
    sha256: str
    size: int
    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


@dataclass(frozen=True)
class Lora:
    """The adapter that was folded in; `sha256` is that of its file, None if it came in the checkpoint."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    sha256: str | None


@dataclass(frozen=True)
class Weights:
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
class Parity:
    """One measured comparison with PyTorch; `boxes` and `mask_iou` are None for an encoder."""

    graph: str
    stage: str
    engine: str
    boxes: int | None
    max_abs_diff: float
    mask_iou: float | None


@dataclass(frozen=True)
class Manifest:
    """A checked manifest.

    `litemed` is the version that wrote it, `created` the time in ISO 8601, `input_size` the side S of the
    network's square input in pixels; `graphs` by key, `precisions` by name ("float32" always among them).
    """

    name: str
    litemed: str
    created: str
    input_size: int
    graphs: Mapping[str, Graph]
    precisions: Mapping[str, Precision]
    weights: Weights
    parity: tuple[Parity, ...]
    tools: Mapping[str, str]


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
    run: another preprocessing, another interface, an operator set out of range.
    """
    top = Section(load_json(data, source), source)
    schema = top.take("schema")
    if type(schema) is not int or schema != SCHEMA:
        top.refuse(
            f"is of schema {shown(schema)}, not {SCHEMA}; export again, or use the litemed that wrote it"
        )
    size = _input_size(top.section("input"))
    graphs, precisions, tools = top.section("graphs"), top.section("precisions"), top.section("tools")
    manifest = Manifest(
        name=top.text("name"),
        litemed=top.text("litemed"),
        created=top.text("created"),
        input_size=size,
        graphs=MappingProxyType({key: _graph(graphs.section(key)) for key in graphs.names()}),
        precisions=read_precisions(precisions),
        weights=_weights(top.section("weights")),
        parity=tuple(_parity(entry) for entry in top.sections("parity")),
        tools=MappingProxyType({key: tools.text(key) for key in tools.names()}),
    )
    top.nothing_else()
    _check_roles(manifest, top)
    return manifest


def _input_size(section: Section) -> int:
    size = section.integer("size")
    if size not in _SIZES:
        section.refuse(f"size {size} is not a multiple of 64 from 64 to 1024")
    for key, ours in PREPROCESSING.items():
        found = section.take(key)
        if type(found) is not type(ours) or found != ours:
            section.refuse(f"{key} is {shown(found)}; this runtime does {ours!r} only: use a newer litemed")
    section.nothing_else()
    return size


def _graph(section: Section) -> Graph:
    graph = Graph(
        file=section.text("file", _FILE_NAME, "a plain file name ending in .onnx"),
        sha256=section.text("sha256", _SHA256, "64 hexadecimal digits"),
        size=section.integer("bytes"),
        opset=section.integer("opset"),
        inputs=tuple(_value(entry) for entry in section.sections("inputs")),
        outputs=tuple(_value(entry) for entry in section.sections("outputs")),
    )
    section.nothing_else()
    if not 0 < graph.size <= MAX_GRAPH_BYTES:
        section.refuse(f"{graph.size} bytes are not between 1 and {MAX_GRAPH_BYTES}")
    if graph.opset not in OPSETS:
        section.refuse(f"opset {graph.opset} is not one of {OPSETS.start} to {OPSETS.stop - 1}; export again")
    return graph


def _value(section: Section) -> Value:
    name, dtype = section.text("name"), section.text("dtype")
    shape = section.take("shape")
    if not isinstance(shape, list) or not all(type(axis) in (int, str) for axis in shape):
        section.refuse(f"shape {shown(shape)} is not a list of lengths and axis names")
    section.nothing_else()
    return Value(name, dtype, tuple(shape))


def _weights(section: Section) -> Weights:
    lora = None if section.take("lora") is None else section.section("lora")
    return Weights(
        file=section.text("file"),
        sha256=section.text("sha256"),
        layout=section.text("layout"),
        encoder=section.text("encoder"),
        trained=section.flag("trained"),
        lora=None
        if lora is None
        else Lora(
            rank=lora.integer("rank"),
            alpha=lora.number("alpha"),
            targets=lora.texts("targets"),
            sha256=None if lora.take("sha256") is None else lora.text("sha256"),
        ),
    )


def _parity(section: Section) -> Parity:
    return Parity(
        graph=section.text("graph"),
        stage=section.text("stage"),
        engine=section.text("engine"),
        boxes=None if section.take("boxes") is None else section.integer("boxes"),
        max_abs_diff=section.number("max_abs_diff"),
        mask_iou=None if section.take("mask_iou") is None else section.number("mask_iou"),
    )


def _check_roles(manifest: Manifest, top: Section) -> None:
    """Check that precisions and graphs fit each other, and each graph the role that it plays."""
    used = set()
    for name, precision in manifest.precisions.items():
        for role in ROLES:
            key = getattr(precision, role)
            if key not in manifest.graphs:
                top.refuse(f"precision {name!r} needs graph {shown(key)}, which is not there")
            graph = manifest.graphs[key]
            if (graph.inputs, graph.outputs) != interface(role, manifest.input_size):
                top.refuse(f"graph {key!r} has not the inputs and outputs of the {role} that it stands for")
            used.add(key)
    if unused := manifest.graphs.keys() - used:
        top.refuse(f"graph {min(unused)!r} belongs to no precision")
    files = [graph.file.lower() for graph in manifest.graphs.values()]
    if len(set(files)) != len(files):
        top.refuse("two graphs share one file")
