"""Inference engines, and which of them runs a bundle; what each needs is imported when it is opened."""

from collections.abc import Callable

from litemed.runtime.bundle import Bundle, Manifest
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.cpu import available_threads, cpu_instructions
from litemed.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from litemed.runtime.engines.openvino_engine import OpenVinoEngine
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine
from litemed.runtime.errors import EngineError, UsageError
from litemed.runtime.precision import ENGINES, REFERENCE

__all__ = ["BOXES_PER_CALL", "ENGINES", "Cache", "Engine", "available_threads", "open_engine"]

EXACT, FAST, AUTO = "exact", "fast", "auto"

_MAX_THREADS = 1024
_CLASSES: dict[str, type[Engine]] = {one.name: one for one in (OnnxRuntimeEngine, OpenVinoEngine)}
# Instructions that multiply such numbers and add up the products at once.
_INT8_INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}

Candidate = tuple[str, str]  # names of an engine and a precision


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int | None = None,
    *,
    precision: str = EXACT,
    cache: Cache | None = None,
    wait: bool = True,
    later: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Load the graphs of one of a bundle's precisions into an engine.

    Args:
        name: "onnxruntime", "openvino" or "auto", the one that is installed and presumed the faster.
        bundle: whose graphs.
        threads: how many to compute with; None takes one for each core, see `litemed.runtime.engines.cpu`.
        precision: "exact", "fast", "auto" or the name of one in the bundle, see `litemed.runtime.load`.
        cache: keeps what OpenVINO compiled; ONNX Runtime is hardly slower without.
        wait: if False, graphs are still being loaded when this returns; `Engine.ready` says if that failed.
        later: without `wait`, graphs are loaded no earlier than `Engine.ready` is called.
        tell: is given a line if the masks of "fast" were not measured to agree.

    Raises:
        UsageError: an unknown name, precision or number of threads.
        EngineError: no candidate is installed and accepts the precision and, with `wait`, the graphs.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= _MAX_THREADS):
        raise UsageError(f"{threads!r} threads; give 1 to {_MAX_THREADS}")
    threads = threads or available_threads()
    found, left_out = candidates(bundle.manifest, name, precision)
    open_choice = len(found) + len(left_out) > 1
    for candidate in found:
        choice = "; left out: ".join(["presumed the fastest", *left_out]) if open_choice else ""
        try:
            engine = _CLASSES[candidate[0]](bundle, threads, candidate[1], choice, cache, later)
            if wait:
                engine.ready()
        except EngineError as error:
            if len(found) == 1:
                raise
            left_out.append(f"{' '.join(candidate)} ({error})")
            continue
        shortcoming = bundle.manifest.precisions[engine.precision].shortcoming(engine.name)
        if precision == FAST and shortcoming:
            tell(f"{engine.precision} on {engine.name} changes the masks: {shortcoming}")
        return engine
    raise EngineError("; left out: ".join(["nothing runs this bundle", *left_out]))


def candidates(manifest: Manifest, engine: str, precision: str) -> tuple[list[Candidate], list[str]]:
    """Return what may be run, what is presumed the fastest first, and what of the rest does not pass and why.

    Raises UsageError as `open_engine`, which has the arguments.
    """
    if engine not in (*ENGINES, AUTO):
        raise UsageError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}, {AUTO}")
    listed = manifest.precisions
    choices = (EXACT, FAST, AUTO, *listed)
    if precision not in choices:
        raise UsageError(
            f"the bundle {manifest.name!r} has no precision {precision!r}; choose one of {', '.join(choices)}"
        )
    names = listed if precision in (FAST, AUTO) else (REFERENCE if precision == EXACT else precision,)
    every = [(one, name) for name in names for one in (ENGINES if engine == AUTO else (engine,))]
    if len(every) > 1:
        every = [(one, name) for one, name in every if one in listed[name].runs_on]
    found, left_out = [], []
    for one, name in sorted(every, key=_presumed_order().index):
        shortcoming = listed[name].shortcoming(one) if precision == AUTO else None
        if shortcoming:
            left_out.append(f"{one} {name} ({shortcoming})")
        else:
            found.append((one, name))
    return found, left_out


def _presumed_order() -> list[Candidate]:
    """Return every candidate there can be, what is presumed the fastest on this CPU first.

    Measured of encoders, on two cores, in ms. AMX: OpenVINO bf16 147, int8 155, float32 260, ONNX Runtime
    float32 376. AVX-512 with bf16 and int8 (AMD EPYC 9004): OpenVINO int8-bf16 196, int8 240, bf16 275,
    float32 520, ONNX Runtime int8 359, float32 618. AVX2 only (AMD EPYC 7003), one thread, in seconds of CPU
    time: ONNX Runtime int8 1.18, float32 1.61, OpenVINO float32 1.47, int8 1.61.
    """
    instructions = cpu_instructions()
    has_int8, has_bf16 = instructions & _INT8_INSTRUCTIONS, instructions & _BF16_INSTRUCTIONS
    order = [("onnxruntime", "int8"), ("openvino", "float32"), ("onnxruntime", "float32")]
    order.insert(0 if has_int8 else len(order), ("openvino", "int8"))
    for precision in ("bf16", "int8-bf16"):
        order.insert(0 if has_bf16 else len(order), ("openvino", precision))
    return order + [("onnxruntime", precision) for precision in ("bf16", "int8-bf16")]
