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
from litemed.runtime.strict_json import shown

MAX_DEPTH = 32
"""How deep subgraphs may nest; exported models have none or one."""

MAX_FIELDS = 2_000_000
"""How many protobuf fields a model may have; LiteMedSAM's graphs have about 20 thousand."""

# TensorProto.DataType; those that inputs and outputs of a bundle's graphs may have.
_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16"}

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Dims = tuple[int | str, ...]


@dataclass(frozen=True)
class Value:
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
        graph: memoryview | None = None
        for number, kind, payload in self._fields(message):
            match number:
                case 7:  # graph
                    if graph is not None:
                        raise self._malformed("two graphs")
                    graph = self._message(kind, payload)
                case 8:  # opset_import
                    domain, version = self._opset(self._message(kind, payload))
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
                    self._function(self._message(kind, payload))
        if graph is None or opset is None:
            raise self._malformed("no graph or no operator set")
        inputs, outputs = self._graph(graph, depth=0)
        return OnnxHeader(opset=opset, inputs=tuple(inputs), outputs=tuple(outputs))

    def _opset(self, message: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, kind, payload in self._fields(message):
            match number:
                case 1:
                    domain = self._text(kind, payload)
                case 2:
                    version = self._integer(kind, payload)
        return domain, version

    def _graph(self, message: memoryview, depth: int) -> tuple[list[Value], list[Value]]:
        """Walk a graph; inputs and outputs are returned of the outermost only (others may lack a type)."""
        if depth > MAX_DEPTH:
            raise self._malformed(f"subgraphs nest deeper than {MAX_DEPTH}")
        inputs: list[Value] = []
        outputs: list[Value] = []
        for number, kind, payload in self._fields(message):
            match number:
                case 1:  # node
                    self._node(self._message(kind, payload), depth)
                case 5:  # initializer
                    self._tensor(self._message(kind, payload))
                case 15:  # sparse_initializer
                    self._sparse_tensor(self._message(kind, payload))
                case 11 if depth == 0:
                    inputs.append(self._value(self._message(kind, payload)))
                case 12 if depth == 0:
                    outputs.append(self._value(self._message(kind, payload)))
        return inputs, outputs

    def _function(self, message: memoryview) -> None:
        for number, kind, payload in self._fields(message):
            match number:
                case 7:  # node
                    self._node(self._message(kind, payload), depth=1)
                case 11:  # attribute_proto: defaults
                    self._attribute(self._message(kind, payload), depth=1)

    def _node(self, message: memoryview, depth: int) -> None:
        for number, kind, payload in self._fields(message):
            if number == 5:  # attribute
                self._attribute(self._message(kind, payload), depth)

    def _attribute(self, message: memoryview, depth: int) -> None:
        for number, kind, payload in self._fields(message):
            match number:
                case 5 | 10:  # t, tensors
                    self._tensor(self._message(kind, payload))
                case 22 | 23:  # sparse_tensor, sparse_tensors
                    self._sparse_tensor(self._message(kind, payload))
                case 6 | 11:  # g, graphs
                    self._graph(self._message(kind, payload), depth + 1)

    def _sparse_tensor(self, message: memoryview) -> None:
        for number, kind, payload in self._fields(message):
            if number in (1, 2):  # values, indices
                self._tensor(self._message(kind, payload))

    def _tensor(self, message: memoryview) -> None:
        name, external = "", False
        for number, kind, payload in self._fields(message):
            match number:
                case 8:
                    name = self._text(kind, payload)
                case 13:  # external_data
                    external = True
                case 14:  # data_location
                    # Not "== EXTERNAL": parsers keep 32 bits of the number.
                    external |= self._integer(kind, payload) != 0
        if external:
            raise BundleError(
                f"{self._source}: tensor {shown(name)} keeps its data in another file; export it in one piece"
            )

    def _value(self, message: memoryview) -> Value:
        """Read a ValueInfoProto that must be a tensor of known dtype and rank."""
        name, dtype = "", ""
        shape: Dims | None = None
        for number, kind, payload in self._fields(message):
            if number == 1:
                name = self._text(kind, payload)
            elif number == 2:
                tensor_type = self._only(self._message(kind, payload), 1, "is not a tensor")
                for part, part_kind, value in self._fields(tensor_type):
                    if part == 1:
                        code = self._integer(part_kind, value)
                        dtype = _DTYPES.get(code, f"type {code}")
                    elif part == 2:
                        if shape is not None:
                            raise self._malformed("an input or output with two shapes")
                        shape = tuple(self._dims(self._message(part_kind, value)))
        if shape is None:
            raise self._malformed(f"input or output {shown(name)} has no shape")
        return Value(name, dtype, shape)

    def _dims(self, message: memoryview) -> Iterator[int | str]:
        for number, kind, payload in self._fields(message):
            if number == 1:
                found: list[int | str] = []
                for part, part_kind, content in self._fields(self._message(kind, payload)):
                    if part == 1:
                        found.append(self._integer(part_kind, content))
                    elif part == 2:
                        found.append(self._text(part_kind, content))
                if len(found) > 1:
                    raise self._malformed("an axis of two lengths")
                yield found[0] if found else ""

    def _only(self, message: memoryview, wanted: int, otherwise: str) -> memoryview:
        """Return the one field of a message in which exactly one of several may be set."""
        found = list(self._fields(message))
        if [number for number, _, _ in found] != [wanted]:
            raise self._malformed(f"an input or output {otherwise}")
        return self._message(found[0][1], found[0][2])

    def _fields(self, message: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
        """Yield field number, wire type and payload (bytes, or the integer of a varint) of a message."""
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
                yield number, kind, integer
                continue
            if kind == _BYTES:
                length, position = self._varint(message, position)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise self._malformed(f"wire type {kind}")
            if length > end - position:
                raise self._malformed("a field that is longer than the file")
            yield number, kind, message[position : position + length]
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

    def _message(self, kind: int, payload: memoryview | int) -> memoryview:
        if kind != _BYTES or isinstance(payload, int):
            raise self._malformed("a number where a message belongs")
        return payload

    def _text(self, kind: int, payload: memoryview | int) -> str:
        try:
            return bytes(self._message(kind, payload)).decode()
        except UnicodeDecodeError:
            raise self._malformed("a name that is not UTF-8") from None

    def _integer(self, kind: int, payload: memoryview | int) -> int:
        if kind != _VARINT or not isinstance(payload, int):
            raise self._malformed("a message where a number belongs")
        return payload

    def _malformed(self, what: str) -> BundleError:
        return BundleError(f"{self._source}: is not a sound ONNX file ({what}); export it again")
