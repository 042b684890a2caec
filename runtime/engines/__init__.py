"""Inference engines: each is imported only when it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.choice import (
    EXACT,
    FAST,
    PRECISION_CHOICES,
    Candidate,
    candidates,
    first_that_begins,
    note_on_fast,
)
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine
from litemed.runtime.engines.threads import available_threads
from litemed.runtime.engines.timing import Times, keep_times, kept_times, time_candidates
from litemed.runtime.errors import OutputError, UsageError
from litemed.runtime.precision import ENGINES

__all__ = [
    "BOXES_PER_CALL",
    "ENGINES",
    "PRECISION_CHOICES",
    "Cache",
    "Engine",
    "available_threads",
    "open_engine",
]

_MAX_THREADS = 1024

Tell = Callable[[str], None]


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int | None = None,
    *,
    precision: str = EXACT,
    cache: Cache | None = None,
    wait: bool = True,
    tell: Tell = lambda line: None,
) -> Engine:
    """Load the graphs of one of a bundle's precisions into an engine.

    Args:
        name: "onnxruntime", "openvino" or "auto", the faster one that is installed.
        bundle: whose graphs.
        threads: how many to compute with; None takes as many as the process has cores of its own, see
            `litemed.runtime.engines.threads`.
        precision: "exact": float32; "fast": the fastest that the bundle lists; "auto": the fastest of those
            that passed, see `litemed.runtime.precision`; or the name of one that the bundle lists.
        cache: keeps what was measured and what OpenVINO compiled. What is the fastest is measured if this is
            given, see `litemed.runtime.engines.choice`; else it is presumed. (ONNX Runtime's optimised
            graphs are not kept: loading them took 350 ms of CPU time, optimising them anew 392, once, on an
            AMD EPYC.)
        wait: if False, the graphs are still being loaded when this returns. That they are refused is then
            raised by the engine's `ready`.
        tell: is given a line about what a user may want to know of the choice.

    Raises:
        UsageError: an unknown name, precision or number of threads.
        EngineError: the engine is not installed, or does not accept the precision or, with `wait`, the
            graphs; if several come into question, none of them.
    """
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise UsageError(f"{threads} threads; give 1 to {_MAX_THREADS}")
    count = available_threads() if threads is None else threads
    found, left_out = candidates(bundle.manifest, name, precision)

    def begin(candidate: Candidate, why: str) -> Engine:
        engine = _begin(candidate, bundle, count, why, cache)
        if wait:
            engine.ready()
        return engine

    times = Times({}, {}) if len(found) == 1 or cache is None else _times(found, bundle, count, cache, tell)
    engine = first_that_begins(found, times.seconds, {**left_out, **times.left_out}, begin)
    if precision == FAST and (note := note_on_fast(engine, bundle.manifest)):
        tell(note)
    return engine


def _times(found: Sequence[Candidate], bundle: Bundle, threads: int, cache: Cache, tell: Tell) -> Times:
    """Return how fast the candidates are: from the cache, or timed now and kept there."""
    times = kept_times(cache, bundle, found, threads)
    if times is None:
        tell(f"timing {len(found)} ways to run {bundle.name} on this CPU, once; the cache keeps the outcome")
        times = time_candidates(found, bundle, threads)
        if times.seconds:
            try:
                keep_times(cache, bundle, found, threads, times)
            except OutputError as error:
                tell(f"they are not kept: {error}")
    return times


def _begin(candidate: Candidate, bundle: Bundle, threads: int, why: str, cache: Cache | None) -> Engine:
    if candidate.engine == "openvino":
        from litemed.runtime.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(bundle, threads, candidate.precision, why, cache)
    from litemed.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads, candidate.precision, why)
