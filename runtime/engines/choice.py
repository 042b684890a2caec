"""Which engine and precision to run a bundle with, where the user leaves it open.

What is asked for gives the candidates, each an engine with a precision. Which of them is the fastest differs
between CPUs and cannot be told beforehand. So it is timed, once, if the user names a folder to keep the
outcome in (see `litemed.runtime.engines.timing`); otherwise the one is taken that is presumed the fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.cpu import cpu_instructions
from litemed.runtime.engines.protocol import Engine
from litemed.runtime.errors import UsageError
from litemed.runtime.manifest import Manifest
from litemed.runtime.precision import ENGINES, REFERENCE

EXACT, FAST, AUTO = "exact", "fast", "auto"
PRECISION_CHOICES = (EXACT, FAST, AUTO)

# Instructions that multiply such numbers and add up the products at once.
_INT8_INSTRUCTIONS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Candidate:
    """An engine with a precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        """Return both names."""
        return f"{self.engine} {self.precision}"


Reasons = dict[Candidate, str]


def candidates(manifest: Manifest, engine: str, precision: str) -> tuple[tuple[Candidate, ...], Reasons]:
    """Return what may be run, what is presumed the fastest first, and why the rest of what is listed may not.

    Args:
        manifest: of the bundle.
        engine: one's name or "auto".
        precision: "exact": float32; "fast": any that the bundle lists; "auto": those of them that pass (see
            `litemed.runtime.precision`); or the name of one.

    Raises:
        UsageError: an unknown engine or precision, or a precision that the bundle does not list.
    """
    if engine not in (*ENGINES, AUTO):
        raise UsageError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}, {AUTO}")
    listed = manifest.precisions
    if precision not in (*PRECISION_CHOICES, *listed):
        raise UsageError(
            f"the bundle {manifest.name!r} has no precision {precision!r}; choose one of "
            f"{', '.join((*PRECISION_CHOICES, *listed))}"
        )
    names = listed if precision in (FAST, AUTO) else (REFERENCE if precision == EXACT else precision,)
    every = [Candidate(one, name) for name in names for one in (ENGINES if engine == AUTO else (engine,))]
    if len(every) > 1:
        every = [one for one in every if one.engine in listed[one.precision].runs_on]
    left_out = {}
    if precision == AUTO:
        short = {one: listed[one.precision].shortcoming(one.engine) for one in every}
        left_out = {candidate: why for candidate, why in short.items() if why is not None}
    found = (candidate for candidate in every if candidate not in left_out)
    return tuple(sorted(found, key=_presumed_order().index)), left_out


def begin(
    candidate: Candidate, bundle: Bundle, threads: int, why: str = "", cache: Cache | None = None
) -> Engine:
    """Begin to load a candidate's graphs. Raises EngineError if it is not installed or cannot compute so."""
    if candidate.engine == "openvino":
        from litemed.runtime.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine(bundle, threads, candidate.precision, why, cache)
    from litemed.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, threads, candidate.precision, why)


def note_on_fast(engine: Engine, manifest: Manifest) -> str | None:
    """Return what to tell who asked for "fast" and got nothing faster, or a precision that did not pass."""
    if engine.precision == REFERENCE:
        return f"nothing faster than {REFERENCE} on this CPU in this bundle ({engine.choice or engine.name})"
    shortcoming = manifest.precisions[engine.precision].shortcoming(engine.name)
    return shortcoming and f"{engine.precision} on {engine.name} changes the masks: {shortcoming}"


def why_first(found: Sequence[Candidate], seconds: Mapping[Candidate, float], left_out: Reasons) -> str:
    """Return why the first candidate is taken of those timed or found; empty if nothing was left open."""
    if seconds:
        ordered = sorted(seconds, key=lambda one: seconds[one])
        why = "timed on this CPU: " + ", ".join(f"{one} {1000 * seconds[one]:.0f} ms" for one in ordered)
    elif len(found) > 1:
        why = "presumed the fastest; name a cache folder to have it timed"
    else:
        why = "the only candidate" if left_out else ""
    return why + left_out_of(left_out)


def left_out_of(reasons: Reasons) -> str:
    """Return what was left out and why, as the end of a line."""
    if not reasons:
        return ""
    return "; left out: " + ", ".join(f"{candidate} ({why})" for candidate, why in reasons.items())


def _presumed_order() -> list[Candidate]:
    """Return every candidate there can be, what is presumed the fastest on this CPU first.

    Measured of encoders, on two cores, in ms. AMX: OpenVINO bf16 147, int8 155, float32 260, ONNX Runtime
    float32 376. AVX-512 with bf16 and int8 (AMD EPYC 9004): OpenVINO int8-bf16 196, int8 240, bf16 275,
    float32 520, ONNX Runtime int8 359, float32 618. AVX2 only (AMD EPYC 7003), one thread, in seconds of CPU
    time: ONNX Runtime int8 1.18, float32 1.61, OpenVINO float32 1.47, int8 1.61.
    """
    instructions = cpu_instructions()
    order = [
        Candidate("onnxruntime", "int8"),
        Candidate("openvino", "float32"),
        Candidate("onnxruntime", "float32"),
    ]
    has_int8, has_bf16 = instructions & _INT8_INSTRUCTIONS, instructions & _BF16_INSTRUCTIONS
    order.insert(0 if has_int8 else len(order), Candidate("openvino", "int8"))
    for precision in ("bf16", "int8-bf16"):
        order.insert(0 if has_bf16 else len(order), Candidate("openvino", precision))
    return order + [Candidate("onnxruntime", precision) for precision in ("bf16", "int8-bf16")]
