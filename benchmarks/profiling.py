"""Where the time of a graph goes, node by node, in each engine.

Both engines time their own operators. What an engine fuses is one node under the name of its last or first
part; what it adds, such as changes of layout, has names of its own. Timing costs a little itself, so that the
sum is for shares, not for speed; `litemed.benchmarks.ratios` is for speed.
"""

from __future__ import annotations

import collections
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.ratios.worker import sample_boxes, sample_input
from litemed.benchmarks.table4.machine import Machine, load_average
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES, available_threads
from litemed.runtime.engines.openvino_engine import shared_core
from litemed.runtime.files import atomic_write
from litemed.runtime.network import silence_onnxruntime
from litemed.runtime.precision import ROLES

Feed = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class NodeTime:
    """One node of a graph as an engine runs it: operator, implementation or shape, median milliseconds."""

    name: str
    operator: str
    implementation: str
    milliseconds: float


def profile(
    graph: bytes, engine: str, feed: Feed, threads: int, repeats: int, *, bf16: bool = False
) -> list[NodeTime]:
    """Run a graph and return what its nodes took, longest first.

    Args:
        graph: an ONNX file's bytes.
        engine: "onnxruntime" or "openvino".
        feed: its inputs.
        threads: to compute with.
        repeats: runs that count; one more before them does not.
        bf16: let OpenVINO compute float32 operators in bf16.
    """
    hint = "bf16" if bf16 else "f32"
    run = partial(_profile_openvino, hint=hint) if engine == "openvino" else _profile_onnxruntime
    taken: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
    for node, milliseconds in run(graph, feed, threads, repeats):
        taken[node].append(milliseconds)
    nodes = [NodeTime(*node, statistics.median(times)) for node, times in taken.items()]
    return sorted(nodes, key=lambda node: -node.milliseconds)


def _profile_openvino(
    graph: bytes, feed: Feed, threads: int, repeats: int, hint: str
) -> list[tuple[tuple[str, str, str], float]]:
    core = shared_core()
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "PERF_COUNT": True,
    }
    request = core.compile_model(core.read_model(graph), "CPU", options).create_infer_request()
    found = []
    for repeat in range(repeats + 1):
        request.infer(dict(feed))
        if repeat:
            for node in request.get_profiling_info():
                milliseconds = node.real_time.total_seconds() * 1e3
                if milliseconds > 0:
                    found.append(((node.node_name, node.node_type, node.exec_type), milliseconds))
    return found


def _profile_onnxruntime(
    graph: bytes, feed: Feed, threads: int, repeats: int
) -> list[tuple[tuple[str, str, str], float]]:
    silence_onnxruntime()
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="litemed-bench-") as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats + 1):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text())
    found = []
    seen: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            seen[name] += 1
            if seen[name] > 1:  # the first run only warms up
                operator = event["args"]["op_name"]
                shapes = event["args"].get("output_type_shape", [])
                shape = "x".join(str(d) for out in shapes[:1] for dims in out.values() for d in dims)
                found.append(((name, operator, shape), event["dur"] / 1e3))
    return found


def by_operator(nodes: Sequence[NodeTime]) -> dict[str, float]:
    """Return milliseconds by operator, longest first."""
    sums: dict[str, float] = collections.defaultdict(float)
    for node in nodes:
        sums[node.operator] += node.milliseconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def report(
    model: Path,
    engines: Sequence[str],
    graphs: Sequence[str],
    boxes: int,
    threads: int | None,
    repeats: int,
    top: int,
    json_path: Path | None,
) -> str:
    """Profile graphs of a bundle, write the JSON if asked, and return tables in Markdown.

    Args:
        model: bundle folder.
        engines: names; none means both.
        graphs: keys of the bundle's graphs; none means all.
        boxes: that a decoder gets at once.
        threads: None takes all.
        repeats: runs that count.
        top: nodes listed for each.
        json_path: gets all nodes.

    Raises:
        BundleError: the bundle cannot be used, or has no such graph.
    """
    bundle, count = Bundle.open(model), threads or available_threads()
    size = bundle.manifest.input_size
    machine, load = Machine.current(), load_average()
    lines = [
        "# Profile",
        "",
        f"- Machine: {machine.line()}.",
        f"- {count} threads; load average before: {load:.2f}; bundle {bundle.digest[:12]}; "
        f"{boxes} boxes at once.",
    ]
    content = []
    for key, bf16 in _rounded_graphs(bundle):
        if graphs and key not in graphs:
            continue
        inputs = {value.name for value in bundle.manifest.graphs[key].inputs}
        feed = (
            {"image": sample_input(size)}
            if "image" in inputs
            else {
                "image_embedding": np.random.default_rng(0).standard_normal(
                    (1, 256, size // 4, size // 4), np.float32
                ),
                "boxes": sample_boxes(boxes, size),
            }
        )
        for engine in engines or ENGINES:
            if bf16 and engine != "openvino":
                continue
            nodes = profile(bundle.graph_bytes(key), engine, feed, count, repeats, bf16=bf16)
            shown = [asdict(node) for node in nodes]
            content.append({"graph": key, "engine": engine, "bf16": bf16, "nodes": shown})
            lines += _tables(f"{key}{' in bf16' * bf16}", engine, nodes, top)
    if json_path is not None:
        document = {"machine": asdict(machine), "threads": count, "boxes": boxes, "profiles": content}
        with atomic_write(json_path) as file:
            file.write((json.dumps(document, indent=1) + "\n").encode())
    return "\n".join(lines) + "\n"


def _rounded_graphs(bundle: Bundle) -> list[tuple[str, bool]]:
    """Return key and whether it is computed in bf16 of all graphs of all precisions, each pair once."""
    precisions = bundle.manifest.precisions.values()
    pairs = [(getattr(one, role), role in one.bf16) for one in precisions for role in ROLES]
    return list(dict.fromkeys(pairs))


def _tables(key: str, engine: str, nodes: Sequence[NodeTime], top: int) -> list[str]:
    total = sum(node.milliseconds for node in nodes)
    lines = [
        "",
        f"## {key}, {engine}: {total:.0f} ms",
        "",
        "| Operator | ms | share |",
        "| --- | ---: | ---: |",
    ]
    for operator, milliseconds in by_operator(nodes).items():
        if milliseconds >= 0.005 * total:
            lines.append(f"| {operator} | {milliseconds:.1f} | {milliseconds / total:.0%} |")
    lines += ["", "| Node | Operator | Implementation or shape | ms |", "| --- | --- | --- | ---: |"]
    for node in nodes[:top]:
        lines.append(f"| {node.name} | {node.operator} | {node.implementation} | {node.milliseconds:.1f} |")
    return lines
