"""Reads what a bundle must know of an ONNX file, without the onnx package and before an engine sees it.

A reader of the protobuf wire format that walks an ONNX model (onnx.proto of ONNX 1.23; field numbers never
change) and returns its operator set, inputs and outputs. It refuses every reference to data outside the file,
wherever a tensor can stand: initializers, attributes, sparse tensors, subgraphs and functions. It is stricter
than protobuf: what a parser would merge, skip or guess is refused too, so that nothing here can mean
something else to an engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from litemed.runtime.errors import BundleError
from litemed.runtime.strict_json import Record, shown

MAX_DEPTH = 32
"""How deep subgraphs may nest; exported models have none or one."""

MAX_FIELDS = 2_000_000
"""How many protobuf fields a model may have; LiteMedSAM's graphs have about 20 thousand."""

# TensorProto.DataType; those that inputs and outputs of a bundle's graphs may have.
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Of each message the fields that hold messages in which a tensor can stand, and what those are.
_PARTS: dict[str, dict[int, str]] = {
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse tensor",
        23: "sparse tensor",
    },
    "sparse tensor": {1: "tensor", 2: "tensor"},
}

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Value(Record):
    """An input or output: its name, dtype (as numpy names it) and shape; a text is a dynamic axis."""

    name: str
    dtype: str
    shape: Dims


@dataclass(frozen=True)
class OnnxHeader:
    """What a model says of itself: version of ONNX's operator set, inputs and outputs in order."""

    opset: int
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def read_onnx_header(model: bytes, source: str = "graph") -> OnnxHeader:
    """Return the header of a serialised ONNX model; `source` names it in error messages.

    Raises BundleError if it is malformed, refers to data outside the file, holds training information, or
    needs an operator set other than ONNX's own.
    """
    return _Walker(source).model(memoryview(model))


class _Walker:
    """One walk over one model; counts fields so that no file can keep it busy for long."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._fields_left = MAX_FIELDS

    def model(self, message: memoryview) -> OnnxHeader:
        opset: int | None = None
        ends: tuple[list[Value], list[Value]] | None = None
        for number, payload in self._fields(message):
            match number:
                case 7:  # graph
                    if ends is not None:
                        raise self._malformed("two graphs")
                    ends = self._graph(self._message(payload))
                case 8:  # opset_import
                    found = dict(self._fields(self._message(payload)))
                    domain, version = (
                        self._text(found.get(1, memoryview(b""))),
                        self._integer(found.get(2, 0)),
                    )
                    if domain not in ("", "ai.onnx"):
                        raise BundleError(
                            f"{self._source}: needs operators of {shown(domain)}; only ONNX's own are allowed"
                        )
                    if opset is not None:
                        raise self._malformed("two versions of one operator set")
                    opset = version
                case 20:  # training_info
                    raise BundleError(f"{self._source}: holds training information; export it for inference")
                case 25:  # functions
                    self._walk("function", self._message(payload), depth=1)
        if ends is None or opset is None:
            raise self._malformed("no graph or no operator set")
        return OnnxHeader(opset, tuple(ends[0]), tuple(ends[1]))

    def _graph(self, message: memoryview) -> tuple[list[Value], list[Value]]:
        """Walk the outermost graph and return its inputs and outputs; those of others may lack a type."""
        self._walk("graph", message, depth=0)
        ends: tuple[list[Value], list[Value]] = [], []
        for number, payload in self._fields(message):
            if number in (11, 12):
                ends[number - 11].append(self._value(self._message(payload)))
        return ends

    def _walk(self, kind: str, message: memoryview, depth: int) -> None:
        """Look at all tensors in a message; `depth` is that of the graph in which it stands."""
        if depth > MAX_DEPTH:
            raise self._malformed(f"subgraphs nest deeper than {MAX_DEPTH}")
        if kind == "tensor":
            self._tensor(message)
            return
        for number, payload in self._fields(message):
            if part := _PARTS[kind].get(number):
                self._walk(part, self._message(payload), depth + (part == "graph"))

    def _tensor(self, message: memoryview) -> None:
        name, external = "", False
        for number, payload in self._fields(message):
            match number:
                case 8:
                    name = self._text(payload)
                case 13:  # external_data
                    external = True
                case 14:  # data_location; not "== EXTERNAL", for parsers keep 32 bits of the number
                    external |= self._integer(payload) != 0
        if external:
            raise BundleError(
                f"{self._source}: tensor {shown(name)} keeps its data in another file; export it in one piece"
            )

    def _value(self, message: memoryview) -> Value:
        """Read a ValueInfoProto that must be a tensor of known dtype and rank."""
        name, dtype = "", ""
        shape: Dims | None = None
        for number, payload in self._fields(message):
            if number == 1:
                name = self._text(payload)
            elif number == 2:
                types = list(self._fields(self._message(payload)))
                if [kind for kind, _ in types] != [1]:
                    raise self._malformed("an input or output is not a tensor")
                for part, value in self._fields(self._message(types[0][1])):
                    if part == 1:
                        code = self._integer(value)
                        dtype = _DTYPES.get(code, f"type {code}")
                    elif part == 2:
                        if shape is not None:
                            raise self._malformed("an input or output with two shapes")
                        axes = self._fields(self._message(value))
                        shape = tuple(self._axis(self._message(axis)) for field, axis in axes if field == 1)
        if shape is None:
            raise self._malformed(f"input or output {shown(name)} has no shape")
        return Value(name, dtype, shape)

    def _axis(self, message: memoryview) -> int | str:
        found: list[int | str] = []
        for number, payload in self._fields(message):
            if number in (1, 2):
                found.append(self._integer(payload) if number == 1 else self._text(payload))
        if len(found) > 1:
            raise self._malformed("an axis of two lengths")
        return found[0] if found else ""

    def _fields(self, message: memoryview) -> Iterator[tuple[int, memoryview | int | None]]:
        """Yield numbers and payloads of fields: bytes, a varint's integer, None for other kinds of number."""
        position, end = 0, len(message)
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self._malformed(f"more than {MAX_FIELDS} fields")
            key, position = self._varint(message, position)
            number, kind = key >> 3, key & 7
            if number == 0 or key >= 1 << 32:  # parsers keep 32 bits of it: it might be another field to them
                raise self._malformed("a field of an impossible number")
            if kind == _VARINT:
                integer, position = self._varint(message, position)
                yield number, integer
                continue
            if kind == _BYTES:
                length, position = self._varint(message, position)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise self._malformed(f"wire type {kind}")
            if length > end - position:
                raise self._malformed("a field that is longer than the file")
            yield number, message[position : position + length] if kind == _BYTES else None
            position += length

    def _varint(self, message: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(message):
                break
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise self._malformed("a number that does not end")

    def _message(self, payload: memoryview | int | None) -> memoryview:
        if not isinstance(payload, memoryview):
            raise self._malformed("a number where a message belongs")
        return payload

    def _text(self, payload: memoryview | int | None) -> str:
        try:
            return bytes(self._message(payload)).decode()
        except UnicodeDecodeError:
            raise self._malformed("a name that is not UTF-8") from None

    def _integer(self, payload: memoryview | int | None) -> int:
        if not isinstance(payload, int):
            raise self._malformed("a message where a number belongs")
        return payload

    def _malformed(self, what: str) -> BundleError:
        return BundleError(f"{self._source}: is not a sound ONNX file ({what}); export it again")
