"""The precisions beside float32 that a bundle is to offer: what they need, and which of them are kept.

One is kept if it passes on one engine at least: the runtime judges each engine by itself.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from litemed.export.agreement import MeasuredCase, find_measured_cases
from litemed.export.calibration import Image, calibration_images
from litemed.export.manifest import FLOAT32
from litemed.export.quantise import KEY, KEY_BF16
from litemed.runtime.engines.openvino_engine import computes_bf16
from litemed.runtime.errors import UsageError
from litemed.runtime.precision import ROLES, Agreement, EngineAgreement, Precision


@dataclass(frozen=True)
class PrecisionOptions:
    """Which precisions a bundle is to offer beside float32, and what to make and measure them with.

    Attributes:
        int8: quantise the encoder.
        calibration: folder of images to quantise it with, see `litemed.export.calibration`.
        agreement: folder of cases to measure agreement on; bf16 is measured too if the CPU computes in it.
        ground_truth: folder of their ground truth.
    """

    int8: bool = False
    calibration: pathlib.Path | None = None
    agreement: pathlib.Path | None = None
    ground_truth: pathlib.Path | None = None


Measure = Callable[[Mapping[str, Precision]], Mapping[str, Agreement]]
"""Measures precisions by name, which have an agreement that covers no engine."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What `PrecisionOptions` come to.

    Attributes:
        attempts: by name what to try one after the other, until one passes.
        images: to calibrate int8 on.
        cases: to measure on.
    """

    attempts: Mapping[str, Sequence[Precision]]
    images: list[Image]
    cases: list[MeasuredCase]

    def passing(self, measure: Measure, progress: Callable[[str], None]) -> dict[str, Precision]:
        """Return float32 and, of each name, the first attempt that passes on an engine; tell about each."""
        kept = dict(FLOAT32)
        nothing = Agreement(len(self.cases), {})
        for turn in range(max(map(len, self.attempts.values()))):
            tried = {
                name: replace(attempts[turn], agreement=nothing)
                for name, attempts in self.attempts.items()
                if name not in kept and turn < len(attempts)
            }
            for name, agreement in (measure(tried) if tried else {}).items():
                precision = replace(tried[name], agreement=agreement)
                shown = name + (f" in {' and '.join(precision.bf16)}" if precision.bf16 else "")
                for engine, found in agreement.engines.items():
                    progress(f"{shown} on {engine}: {_outcome(found)}")
                if any(precision.shortcoming(engine) is None for engine in agreement.engines):
                    kept[name] = precision
                elif turn == len(self.attempts[name]) - 1:
                    progress(f"{name} is left out of the bundle: it passes on no engine")
        return kept


def plan(options: PrecisionOptions) -> Plan:
    """Check what precisions need, and read the images for them, before anything long is begun.

    Raises:
        UsageError: images or cases are missing or too few, or serve nothing.
        InputError: one of them cannot be read.
    """
    if options.int8 and options.calibration is None:
        raise UsageError("int8 needs real images to calibrate on; name a folder of them with --calibration")
    if options.int8 and options.agreement is None:
        raise UsageError("int8 needs real cases to measure agreement on; name a folder with --agreement")
    if options.calibration is not None and not options.int8:
        raise UsageError("--calibration serves int8 only; pass --int8 as well")
    if options.agreement is None:
        if options.ground_truth is not None:
            raise UsageError("--ground-truth is that of cases; name their folder with --agreement")
        return Plan({}, [], [])
    attempts: dict[str, list[Precision]] = {}
    if options.int8:
        attempts["int8"] = [Precision(KEY, "decoder")]
    if computes_bf16():
        # The decoder is the delicate part: where it does not bear bf16, the encoder still may.
        encoders = {"bf16": "encoder"} | ({"int8-bf16": KEY_BF16} if options.int8 else {})
        for name, encoder in encoders.items():
            attempts[name] = [Precision(encoder, "decoder", bf16=roles) for roles in (ROLES, ROLES[:1])]
    if not attempts:
        raise UsageError("--agreement has nothing to measure: this CPU computes no bf16; pass --int8 as well")
    cases = find_measured_cases(options.agreement, options.ground_truth)
    images = [] if options.calibration is None else calibration_images(options.calibration)
    return Plan(attempts, images, cases)


def _outcome(found: EngineAgreement) -> str:
    lowest = found.modalities[found.lowest]
    text = f"masks agree with float32's to {lowest.dice:.4f} in {found.lowest} at worst"
    changes = [(m.dsc_change, name) for name, m in found.modalities.items() if m.dsc_change is not None]
    if changes:
        change, modality = min(changes)
        text += f", DSC changes by {change:+.4f} in {modality}"
    return f"{text}: {found.shortcoming() or 'passes'}"
