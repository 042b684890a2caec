"""Inference engines: each is imported only when it is opened."""

from __future__ import annotations

import importlib.util

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine
from litemed.runtime.engines.threads import available_threads
from litemed.runtime.errors import UsageError

__all__ = ["BOXES_PER_CALL", "ENGINES", "Cache", "Engine", "available_threads", "open_engine"]

ENGINES = ("onnxruntime", "openvino")
_MAX_THREADS = 1024


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int | None = None,
    *,
    cache: Cache | None = None,
    wait: bool = True,
) -> Engine:
    """Load a bundle's float32 graphs into an engine.

    `name` is "onnxruntime", "openvino" or "auto": OpenVINO where it is installed, for it is the faster one,
    else ONNX Runtime. `threads` is how many it computes with; None takes all that the process may use (see
    `available_threads`).

    In `cache` OpenVINO keeps what it compiled, so that the next start is quicker. For ONNX Runtime it is of
    no use: loading the graphs that it has optimised took 350 ms of CPU time, optimising them anew 392 (once,
    on an AMD EPYC). With `wait` False the graphs are still being loaded when this returns: that they are
    refused is then raised by the engine's `ready`.

    Raises UsageError for an unknown name or number of threads, EngineError if the engine is not installed or
    does not accept the graphs.
    """
    if name not in (*ENGINES, "auto"):
        raise UsageError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}, auto")
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise UsageError(f"{threads} threads; give 1 to {_MAX_THREADS}")
    if name == "auto":
        name = "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"
    count = available_threads() if threads is None else threads
    engine = _begin(name, bundle, count, cache)
    if wait:
        engine.ready()
    return engine


def _begin(name: str, bundle: Bundle, threads: int, cache: Cache | None) -> Engine:
    if name == "openvino":
        from litemed.runtime.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(bundle, threads, cache)
    from litemed.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads)
