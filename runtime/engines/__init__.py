"""Inference engines: each is imported only when it is opened."""

from __future__ import annotations

from collections.abc import Callable

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.choice import (
    EXACT,
    FAST,
    PRECISION_CHOICES,
    begin,
    candidates,
    left_out_of,
    note_on_fast,
    why_first,
)
from litemed.runtime.engines.cpu import available_threads
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine
from litemed.runtime.errors import EngineError, UsageError
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


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int | None = None,
    *,
    precision: str = EXACT,
    cache: Cache | None = None,
    wait: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Load the graphs of one of a bundle's precisions into an engine.

    Args:
        name: "onnxruntime", "openvino" or "auto", the faster one that is installed.
        bundle: whose graphs.
        threads: how many to compute with; None takes as many as the process has cores of its own, see
            `litemed.runtime.engines.cpu`.
        precision: "exact": float32; "fast": the fastest that the bundle lists; "auto": the fastest of those
            that passed, see `litemed.runtime.precision`; or the name of one that the bundle lists.
        cache: keeps what was measured and what OpenVINO compiled. What is the fastest is measured if this is
            given, see `litemed.runtime.engines.timing`; else it is presumed. (ONNX Runtime's optimised
            graphs are not kept: loading them took 350 ms of CPU time, optimising them anew 392, once, on an
            AMD EPYC.)
        wait: if False, the graphs are still being loaded when this returns. That they are refused is then
            raised by the engine's `ready`.
        tell: is given a line about what a user may want to know of the choice.

    Raises:
        UsageError: an unknown name, precision or number of threads.
        EngineError: the engine is not installed, or does not accept the precision or, with `wait`, the
            graphs; of several candidates, none does.
    """
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise UsageError(f"{threads} threads; give 1 to {_MAX_THREADS}")
    count = available_threads() if threads is None else threads
    found, left_out = candidates(bundle.manifest, name, precision)
    seconds = {}
    if cache is not None and len(found) > 1:
        from litemed.runtime.engines.timing import times_of

        for candidate, outcome in times_of(found, bundle, count, cache, tell).items():
            if isinstance(outcome, str):
                left_out[candidate] = outcome
            else:
                seconds[candidate] = outcome
    for candidate in sorted(seconds, key=lambda one: seconds[one]) or found:
        try:
            engine = begin(candidate, bundle, count, why_first(found, seconds, left_out), cache)
            if wait:
                engine.ready()
        except EngineError as error:
            if len(found) == 1:
                raise
            left_out[candidate] = str(error)
            continue
        if precision == FAST and (note := note_on_fast(engine, bundle.manifest)):
            tell(note)
        return engine
    raise EngineError("nothing runs this bundle" + left_out_of(left_out))
