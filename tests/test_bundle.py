"""A bundle that is not what its manifest says is refused, in one line, before anything of it runs."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import onnx
import pytest
from bundle_edits import edit, replace_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from litemed.runtime.bundle import Bundle
from litemed.runtime.errors import BundleError

Json = dict[str, Any]


@pytest.fixture
def folder(box_bundle, tmp_path):
    """A bundle to spoil."""
    return pathlib.Path(shutil.copytree(box_bundle, tmp_path / "bundle"))


def refused(folder: pathlib.Path) -> str:
    """The one line with which a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return message


def test_what_was_verified_is_what_is_run(folder):
    before, manifest = ((folder / name).read_bytes() for name in ("encoder.onnx", "manifest.json"))
    bundle = Bundle.open(str(folder))
    (folder / "encoder.onnx").write_bytes(before[::-1])
    assert bundle.graphs["encoder"] == before
    assert bundle.released().graphs == {}
    assert bundle.digest == hashlib.sha256(manifest).hexdigest()
    assert (bundle.name, bundle.manifest.input_size) == ("boxes", 256)


def test_a_bundle_can_be_moved_and_linked_to_and_say_and_hold_more(folder, tmp_path):
    (folder / "more").mkdir()
    edit(folder, lambda manifest: manifest["weights"].update(licence="Apache-2.0"))
    moved = folder.rename(tmp_path / "elsewhere")
    (tmp_path / "latest").symlink_to(moved)
    assert Bundle.open(tmp_path / "latest").digest == Bundle.open(moved).digest


def test_a_missing_or_unreadable_file_is_named(folder, tmp_path):
    assert "nowhere" in refused(tmp_path / "nowhere")
    assert "Not a directory" in refused(folder / "manifest.json")
    (folder / "decoder.onnx").unlink()
    assert "decoder.onnx: is missing" in refused(folder)
    (folder / "manifest.json").unlink()
    assert "manifest.json: is missing" in refused(folder)


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx"])
def test_links_pipes_and_folders_are_not_read(folder, name):
    original = (folder / name).rename(folder / "original")
    (folder / name).symlink_to(original)
    assert "symbolic link" in refused(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "not a plain file" in refused(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder)


def test_a_changed_graph_is_refused(folder):
    data = (folder / "decoder.onnx").read_bytes()
    for changed in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"\0"):
        (folder / "decoder.onnx").write_bytes(changed)
        assert "decoder.onnx: " in refused(folder)


def test_external_data_is_refused_wherever_it_stands(folder):
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Op", ["x"], ["y"], value=tensor)
    graph = helper.make_graph([], "g", [], [], [tensor])
    subgraph = helper.make_node("Op", ["x"], ["y"], body=graph)
    for model in (
        helper.make_model(graph),
        helper.make_model(helper.make_graph([node], "g", [], [])),
        helper.make_model(helper.make_graph([subgraph], "g", [], [])),
        helper.make_model(
            helper.make_graph([], "g", [], []),
            functions=[helper.make_function("local", "f", ["x"], ["y"], [node], [])],
        ),
    ):
        replace_graph(folder, "decoder", model)
        assert "decoder.onnx: may keep data in another file" in refused(folder)


@pytest.mark.parametrize(
    "data",
    [b"<net name='g' version='11'></net>", b"\x80\x02pickle", b"version https://git-lfs", b"\x14\0\0\0ORTM"],
)
def test_another_format_is_refused(folder, data):
    (folder / "encoder.onnx").write_bytes(data)
    sums = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda manifest: manifest["graphs"]["encoder"].update(sums))
    assert "is not an ONNX file" in refused(folder)


@pytest.mark.parametrize(
    "path",
    ["../encoder.onnx", "/etc/passwd", "a/b.onnx", "a\\b.onnx", "..", "", ".hidden.onnx", "manifest.json",
     "é.onnx", "x.onnx\n", "x\0.onnx", "CON.txt", "~.onnx", "a" * 200 + ".onnx", None, 3],
)  # fmt: skip
def test_names_stay_within_the_folder(folder, path):
    edit(folder, lambda manifest: manifest["graphs"]["decoder"].update(file=path))
    refused(folder)


def with_int8(manifest: Json, name: str = "int8", **fields: Any) -> Json:
    """Add a sound precision to a manifest, with other fields if wanted, and return its CT."""
    ct = {"cases": 4, "dice": 0.995, "dsc_change": -0.001}
    engines = {one: {"modalities": {"CT": ct}} for one in ("onnxruntime", "openvino")}
    agreement = {"images": 5, "merge": "nested", "engines": engines}
    precision = {"encoder": "encoder", "decoder": "decoder", "agreement": agreement} | fields
    manifest["precisions"][name] = precision
    return ct


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.update(schema=6), "schema 6"),
        (lambda m: m.update(schema=3), "export again"),
        (lambda m: m.pop("schema"), "'schema'"),
        (lambda m: m.update(extra=1), "'extra'"),
        (lambda m: m["input"].update(size=250), "250"),
        (lambda m: m["input"].update(channels=1), "channels"),
        (lambda m: m["input"].update(normalise="z-score"), "'z-score'"),
        (lambda m: m.update(name="\x1b[31mred"), "name"),
        (lambda m: m.update(name="n" * 1000), "name"),
        (lambda m: m.update(graphs={}), "'encoder'"),
        (lambda m: m["graphs"].pop("decoder"), "'decoder'"),
        (lambda m: m["graphs"]["decoder"].update(bytes=0), "0 bytes"),
        (lambda m: m.update(precisions={}), "float32"),
        (lambda m: m["precisions"].update(fp16=m["precisions"]["float32"]), "'fp16' is not one of float32"),
        (lambda m: with_int8(m, "float32"), "'agreement'"),
        (lambda m: with_int8(m, encoder="encoder8"), "'encoder8'"),
        (lambda m: with_int8(m, loose_decoder="loose"), "'loose'"),
        (lambda m: with_int8(m, hint="f16"), "'hint'"),
        (lambda m: with_int8(m, bf16=["encoder"]), "'bf16'"),
        (lambda m: with_int8(m, agreement=None), "'agreement'"),
        (lambda m: with_int8(m).update(dsc_change="0"), "dsc_change"),
        (lambda m: with_int8(m).pop("dsc_change"), "'dsc_change'"),
        *((lambda m, roles=roles: with_int8(m, "bf16", bf16=roles), "bf16")
          for roles in ([], ["encoder", "encoder"], ["decoder", "encoder"], ["neck"])),
        (lambda m: m["weights"].pop("trained"), "'trained'"),
        (lambda m: m["weights"].update(trained=1), "trained"),
    ],
)  # fmt: skip
def test_a_manifest_that_its_schema_does_not_allow(folder, change, why):
    edit(folder, change)
    assert why in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"null", b"{", b"{}", b"{}{}", b"\xff\xfe{}", b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}', b'{"schema": 1e999}', b'{"schema": -Infinity}', b"[" * 100_000,
        b'{"a":' * 100_000, b'{"schema": ' + b"9" * 10_000 + b"}", b" " * (1 << 21),
    ],
)  # fmt: skip
def test_a_manifest_that_is_not_sound_json(folder, text):
    (folder / "manifest.json").write_bytes(text)
    refused(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys or indices."""
    found = []
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_value_anywhere_opens_or_ends_in_one_line(folder, data):
    path = folder / "manifest.json"
    sound = path.read_text()
    manifest = json.loads(sound)
    with_int8(manifest)
    container, key = data.draw(st.sampled_from(places(manifest)))
    container[key] = data.draw(JSON)
    path.write_text(json.dumps(manifest))
    with contextlib.suppress(BundleError):
        Bundle.open(folder)
    path.write_text(sound)
