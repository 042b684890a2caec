"""The profile of a bundle's graphs, by both engines."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from litemed.benchmarks.profiling import report
from litemed.runtime.engines.openvino_engine import computes_bf16


def profiled(folder: pathlib.Path, tmp_path: pathlib.Path) -> list[tuple[str, str, bool]]:
    path = tmp_path / "profile.json"
    text = report(folder, (), (), boxes=2, threads=1, repeats=1, top=3, json_path=path)
    found = json.loads(path.read_text())["profiles"]
    for one in found:
        assert one["nodes"]
        assert all(node["milliseconds"] > 0 for node in one["nodes"])
        assert f"## {one['graph']}{' in bf16' * one['bf16']}, {one['engine']}: " in text
    return [(one["graph"], one["engine"], one["bf16"]) for one in found]


def test_each_graph_is_profiled_once_by_each_engine_that_runs_it(
    box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    engines = ("onnxruntime", "openvino")
    float32 = [(graph, engine, False) for graph in ("encoder", "decoder") for engine in engines]
    assert profiled(box_bundle, tmp_path) == float32
    if not computes_bf16():
        pytest.skip("this CPU computes no bf16")
    folder = pathlib.Path(shutil.copytree(box_bundle, tmp_path / "bundle"))
    manifest = json.loads((folder / "manifest.json").read_text())
    graphs = manifest["precisions"]["float32"]
    agreement = {"images": 1, "merge": "nested", "engines": {}}
    manifest["precisions"]["bf16"] = graphs | {"bf16": ["encoder"], "agreement": agreement}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert profiled(folder, tmp_path) == [*float32, ("encoder", "openvino", True)]
