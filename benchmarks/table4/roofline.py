"""How near each engine comes to what the machine can do.

The limit of a graph is the longer of two times: its operations at the peak rate of matrix products in its
precision, and its bytes (weights, inputs and outputs, each moved once) at the rate of copying memory. What an
engine needs beyond that goes into everything that is not matrix products, and into moving tensors in between.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litemed.benchmarks.table4.flops import Work, decoder_work, encoder_work
from litemed.benchmarks.table4.machine import Machine, load_average
from litemed.benchmarks.table4.peaks import Peak, measure_peaks
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import ENGINES, Engine, available_threads, open_engine
from litemed.runtime.files import atomic_write

PEAKS = {"float32": "float32", "bf16": "bfloat16", "int8": "int8", "int8-bf16": "int8"}
"""Which peak a precision of a bundle is held to."""


@dataclass(frozen=True)
class Reached:
    """One graph in one engine.

    Attributes:
        engine, precision: what ran it.
        graph: encoder or decoder.
        boxes: decoded at once; None of the encoder.
        seconds: median of one call.
        limit: seconds that the machine's peaks allow.
    """

    engine: str
    precision: str
    graph: str
    boxes: int | None
    seconds: float
    limit: float

    @property
    def fraction(self) -> float:
        """Share of the limit's speed that is reached; above 1 the graph does less work than counted."""
        return self.limit / self.seconds


def limit(work: Work, peaks: dict[str, Peak], precision: str) -> float:
    """Return the seconds below which no engine can come, by the peaks measured."""
    return max(work.flops / peaks[precision].rate, work.bytes / peaks["memory"].rate)


def report(
    model: Path,
    engines: tuple[str, ...],
    threads: int | None,
    boxes: int,
    repeats: int,
    json_path: Path | None,
) -> str:
    """Measure, write the JSON if asked, and return the tables in Markdown.

    Raises:
        BundleError, EngineError, UsageError: the bundle or an engine cannot be used.
    """
    count = available_threads() if threads is None else threads
    bundle = Bundle.open(model)
    names = engines or tuple(name for name in ENGINES if importlib.util.find_spec(name))
    machine, load = Machine.current(), load_average()
    works = {None: encoder_work(bundle.manifest.input_size), **_decoders(bundle.manifest.input_size, boxes)}
    # Before the engines are loaded: their threads may go on spinning for a while.
    found, missing = measure_peaks(machine, count, repeats)
    peaks = {peak.name: peak for peak in found}
    loaded = []
    for name in names:
        for precision, listed in bundle.manifest.precisions.items():
            needed = {PEAKS[precision], *(["bfloat16"] if listed.bf16 else [])}
            if needed <= peaks.keys() and name in listed.runs_on:
                loaded.append(open_engine(name, bundle, count, precision=precision))
    seconds = _measure(loaded, bundle.manifest.input_size, list(works), repeats)
    reached = []
    for (engine, precision, n), value in seconds.items():
        in_bf16 = "decoder" in bundle.manifest.precisions[precision].bf16
        peak = PEAKS[precision] if n is None else "bfloat16" if in_bf16 else "float32"
        graph = "encoder" if n is None else "decoder"
        reached.append(Reached(engine, precision, graph, n, value, limit(works[n], peaks, peak)))
    if json_path is not None:
        content = {
            "machine": dataclasses.asdict(machine),
            "threads": count,
            "load_average": load,
            "bundle_sha256": bundle.digest,
            "peaks": [dataclasses.asdict(peak) for peak in found],
            "not_measured": missing,
            "work": [{"boxes": n, **dataclasses.asdict(work)} for n, work in works.items()],
            "reached": [dataclasses.asdict(one) | {"fraction": one.fraction} for one in reached],
        }
        with atomic_write(json_path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    return _markdown(machine, load, count, bundle, found, missing, works, reached)


def _decoders(size: int, boxes: int) -> dict[int | None, Work]:
    return {n: decoder_work(n, size) for n in sorted({1, boxes})}


def _measure(
    engines: list[Engine], size: int, graphs: list[int | None], repeats: int
) -> dict[tuple[str, str, int | None], float]:
    """Return the median seconds by engine, precision and graph (None: encoder, else the decoder's boxes).

    The engines take turns, so that what else the machine does falls on all of them.
    """
    rng = np.random.default_rng(0)
    image = rng.random((1, 3, size, size), np.float32)
    corners = rng.integers(0, size // 2, (max(n or 1 for n in graphs), 2))
    prompts = np.concatenate([corners, corners + size // 3], axis=1).astype(np.float32)
    embeddings = [engine.encode(image) for engine in engines]
    seconds: dict[tuple[str, str, int | None], list[float]] = {}
    for n in graphs:
        for repeat in range(repeats + 1):
            for engine, embedding in zip(engines, embeddings, strict=True):
                if n is None:
                    taken = _time(lambda engine=engine: engine.encode(image))  # type: ignore[misc]
                else:
                    taken = _time(lambda e=engine, m=embedding, n=n: e.decode(m, prompts[:n]))  # type: ignore[misc]
                if repeat:  # the first of each only warms it up
                    seconds.setdefault((engine.name, engine.precision, n), []).append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _markdown(
    machine: Machine,
    load: float,
    threads: int,
    bundle: Bundle,
    peaks: list[Peak],
    missing: list[str],
    works: dict[int | None, Work],
    reached: list[Reached],
) -> str:
    lines = [
        "# Roofline",
        "",
        f"- Machine: {machine.line()}.",
        f"- {threads} threads; load average before: {load:.2f}; bundle {bundle.digest[:12]}.",
        *(f"- {line}." for line in missing),
        "",
        "| Peak | Rate | Reached by |",
        "| --- | ---: | --- |",
    ]
    for peak in peaks:
        unit = "GB/s" if peak.name == "memory" else "GOP/s" if peak.name == "int8" else "GFLOP/s"
        lines.append(f"| {peak.name} | {peak.rate / 1e9:.1f} {unit} | {peak.by} |")
    lines += [
        "",
        "| Graph | Engine | Precision | GFLOP | Limit, ms | Measured, ms | Share of the limit |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for one in reached:
        name = one.graph + (
            "" if one.boxes is None else f", {one.boxes} boxes" if one.boxes > 1 else ", 1 box"
        )
        flops = works[one.boxes].flops / 1e9
        lines.append(
            f"| {name} | {one.engine} | {one.precision} | {flops:.1f} | {one.limit * 1e3:.1f} | "
            f"{one.seconds * 1e3:.1f} | {one.fraction:.0%} |"
        )
    lines += [
        "",
        "Operations are those of the published network. The bundle's decoder is an exact rewrite that needs "
        "fewer, so its share may exceed 100 %. In int8 the share is that of a graph wholly in int8.",
    ]
    return "\n".join(lines) + "\n"
