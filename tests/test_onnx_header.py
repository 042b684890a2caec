"""The ONNX reader sees what the onnx package sees, and lets no reference to another file pass."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import _get_all_tensors, uses_external_data

from litemed.runtime import onnx_header
from litemed.runtime.errors import BundleError
from litemed.runtime.onnx_header import OnnxHeader, Value, read_onnx_header


def tensor(external: str | None = None) -> onnx.TensorProto:
    """A tensor of one element: inside the file, or elsewhere in one of two spellings."""
    made = helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0])
    if external == "location":
        made.data_location = TensorProto.EXTERNAL
    elif external == "entries":
        made.external_data.add(key="location", value="/etc/passwd")
    return made


def sparse(part: str | None = None) -> onnx.SparseTensorProto:
    made = onnx.SparseTensorProto(dims=[4])
    made.values.CopyFrom(tensor("location" if part == "values" else None))
    made.indices.CopyFrom(tensor("location" if part == "indices" else None))
    return made


def graph(*nodes: onnx.NodeProto, **lists: Any) -> onnx.GraphProto:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, None]),
        helper.make_tensor_value_info("y", TensorProto.INT64, []),
    ]
    return helper.make_graph(list(nodes), "g", ends[:1], ends[1:], **lists)


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Op", ["x"], ["y"], **attributes)


def model(main: onnx.GraphProto, functions: list | None = None, opset: int = 17) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(main, functions=functions or [], opset_imports=imports)


def function(inner: onnx.NodeProto, defaults: list[onnx.AttributeProto]) -> onnx.FunctionProto:
    return helper.make_function(
        "local", "f", ["x"], ["y"], [inner], [helper.make_opsetid("", 17)], [], defaults
    )


def test_reads_what_the_onnx_package_reads() -> None:
    header = read_onnx_header(model(graph(node()), opset=19).SerializeToString())
    assert header == OnnxHeader(19, (Value("x", "float32", ("N", 4, "")),), (Value("y", "int64", ()),))


def test_operators_that_are_not_onnx_s_own_are_refused(box_bundle: pathlib.Path) -> None:
    sound = onnx.load(box_bundle / "encoder.onnx")
    assert [value.name for value in read_onnx_header(sound.SerializeToString()).inputs] == ["image"]
    sound.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(BundleError, match=r"operators of 'com\.microsoft'"):
        read_onnx_header(sound.SerializeToString())


EXTERNAL: dict[str, Callable[[], onnx.ModelProto]] = {
    "initializer": lambda: model(graph(initializer=[tensor(), tensor("location")])),
    "initializer, entries only": lambda: model(graph(initializer=[tensor("entries")])),
    "sparse initializer, values": lambda: model(graph(sparse_initializer=[sparse("values")])),
    "sparse initializer, indices": lambda: model(graph(sparse_initializer=[sparse("indices")])),
    "attribute": lambda: model(graph(node(value=tensor("entries")))),
    "list attribute": lambda: model(graph(node(values=[tensor(), tensor("location")]))),
    "sparse attribute": lambda: model(graph(node(value=sparse("values")))),
    "sparse list attribute": lambda: model(graph(node(values=[sparse(), sparse("indices")]))),
    "subgraph": lambda: model(graph(node(body=graph(initializer=[tensor("location")])))),
    "list of subgraphs": lambda: model(graph(node(bodies=[graph(), graph(node(value=tensor("location")))]))),
    "subgraph of a subgraph": lambda: model(
        graph(node(body=graph(node(body=graph(initializer=[tensor("location")])))))
    ),
    "function": lambda: model(graph(), [function(node(value=tensor("location")), [])]),
    "function's default": lambda: model(
        graph(), [function(node(), [helper.make_attribute("value", tensor("location"))])]
    ),
}


@pytest.mark.parametrize("place", EXTERNAL)
def test_external_data_is_refused_wherever_it_stands(place: str) -> None:
    with pytest.raises(BundleError, match="another file"):
        read_onnx_header(EXTERNAL[place]().SerializeToString())


def test_the_same_places_without_external_data_are_accepted() -> None:
    body = graph(node(value=tensor(), values=[tensor()]), initializer=[tensor()])
    everything = model(
        graph(
            node(body=body, bodies=[body, body], value=sparse(), values=[sparse()]),
            initializer=[tensor()],
            sparse_initializer=[sparse()],
        ),
        [function(node(value=tensor()), [helper.make_attribute("value", tensor())])],
    )
    assert read_onnx_header(everything.SerializeToString()).opset == 17


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


OPSET = field(8, field(2, 17))


def with_initializer(content: bytes) -> bytes:
    """A model whose only initializer has these bytes."""
    return OPSET + field(7, field(5, content))


@pytest.mark.parametrize(
    "content",
    [
        field(14, 1 + (1 << 32)),  # data_location, of which parsers keep 32 bits
        varint((13 << 3 | 2) + (1 << 32)) + varint(0),  # external_data, likewise
        field(14, 1) + field(14, 0),  # the last one counts for parsers
        field(14, b"\x01"),  # packed
    ],
)
def test_spellings_that_parsers_take_for_external_data_are_refused(content: bytes) -> None:
    assert read_onnx_header(with_initializer(field(14, 0))).opset == 17
    with pytest.raises(BundleError):
        read_onnx_header(with_initializer(content))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no graph"),
        (b"\x80\x02pickle", "not a sound ONNX file"),
        (b"PK\x03\x04", "not a sound ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a sound ONNX file"),
        (OPSET, "no graph"),
        (field(7, b""), "no graph or no operator set"),
        (OPSET + field(7, b"") * 2, "two graphs"),
        (OPSET * 2 + field(7, b""), "two versions"),
        (field(8, field(1, b"evil") + field(2, 1)) + field(7, b""), "'evil'"),
        (field(20, b"") + OPSET + field(7, b""), "training"),
        (b"\x0b" + OPSET, "wire type 3"),
        (b"\xff" * 20, "does not end"),
        (b"\x00\x00", "impossible"),
        (OPSET + field(7, b"\x0a\x7f"), "longer than"),
        (OPSET + field(7, 3), "where a message belongs"),
        (field(8, field(2, b"17")) + field(7, b""), "where a number belongs"),
        (OPSET + field(7, field(11, field(1, b"\xff"))), "UTF-8"),
        (OPSET + field(7, field(11, field(1, b"x"))), "no shape"),
        (OPSET + field(7, field(11, field(2, field(4, b"")))), "not a tensor"),
        (OPSET + field(7, field(11, field(2, field(1, field(2, b"") * 2)))), "two shapes"),
        (
            OPSET + field(7, field(11, field(2, field(1, field(2, field(1, field(1, 4) + field(2, b"N"))))))),
            "two lengths",
        ),
    ],
)
def test_what_is_not_an_onnx_model_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why) as caught:
        read_onnx_header(data, "some.onnx")
    assert "some.onnx" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_deep_nesting_ends_in_an_error_not_in_a_crash() -> None:
    inner = field(1, b"")
    for _ in range(5000):
        inner = field(1, field(5, field(6, inner)))  # node, attribute, graph
    with pytest.raises(BundleError, match="deeper"):
        read_onnx_header(OPSET + field(7, inner))


def test_a_file_of_too_many_fields_is_left_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_header, "MAX_FIELDS", 100)
    with pytest.raises(BundleError, match="more than 100 fields"):
        read_onnx_header(OPSET + field(7, field(3, b"") * 101))


FULL = model(
    graph(node(body=graph(initializer=[tensor()]), value=sparse()), initializer=[tensor()])
).SerializeToString()


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_ends_in_the_project_s_own_error(data: st.DataObject) -> None:
    damaged = bytearray(FULL)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["set", "cut", "insert"])):
            case "set":
                damaged[place] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[place : place + data.draw(st.integers(1, 8))]
            case _:
                damaged[place:place] = data.draw(st.binary(max_size=6))
        if not damaged:
            break
    with contextlib.suppress(BundleError, DecodeError):
        read_onnx_header(bytes(damaged))
        theirs = onnx.load_model_from_string(bytes(damaged))
        assert not any(map(uses_external_data, _get_all_tensors(theirs)))


@given(data=st.binary(max_size=200))
def test_noise_ends_in_the_project_s_own_error(data: bytes) -> None:
    with pytest.raises(BundleError):
        read_onnx_header(data)
