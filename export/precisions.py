"""The precisions beside float32 that a bundle is to offer: what they need, and which of them are kept.

A precision is written into a bundle only with its measured agreement, and only if it passes on one engine at
least. It need not pass on all: the runtime judges each engine by itself.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from litemed.export.agreement import MeasuredCase, find_measured_cases
from litemed.export.calibration import Image, calibration_images
from litemed.export.quantise import KEY
from litemed.runtime.errors import UsageError
from litemed.runtime.network import silent_openvino_import
from litemed.runtime.precision import REFERENCE, Agreement, EngineAgreement, Precision

ROLES = ("encoder", "decoder")
FLOAT32 = {REFERENCE: Precision(*ROLES)}


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


@dataclass(frozen=True, eq=False)
class Plan:
    """What `PrecisionOptions` come to: precisions by name, images to calibrate int8 on, cases to measure."""

    precisions: Mapping[str, Precision]
    images: list[Image]
    cases: list[MeasuredCase]

    def unmeasured(self) -> dict[str, Precision]:
        """Return all precisions, each with an agreement that covers no engine."""
        nothing = Agreement(len(self.cases), {})
        others = {n: Precision(p.encoder, p.decoder, nothing) for n, p in self.precisions.items()}
        return FLOAT32 | others

    def passing(
        self, measured: Mapping[str, Agreement], progress: Callable[[str], None]
    ) -> dict[str, Precision]:
        """Return float32 and those that pass on an engine, with what was measured; tell about each."""
        kept = dict(FLOAT32)
        for name, one in self.precisions.items():
            precision = Precision(one.encoder, one.decoder, measured[name])
            for engine, found in measured[name].engines.items():
                progress(f"{name} on {engine}: {_outcome(found)}")
            if any(precision.passes(engine) for engine in measured[name].engines):
                kept[name] = precision
            else:
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
    precisions = {}
    if options.int8:
        precisions["int8"] = Precision(KEY, "decoder")
    if computes_bf16():
        precisions["bf16"] = Precision(*ROLES)
    if not precisions:
        raise UsageError("--agreement has nothing to measure: this CPU computes no bf16; pass --int8 as well")
    cases = find_measured_cases(options.agreement, options.ground_truth)
    images = [] if options.calibration is None else calibration_images(options.calibration)
    return Plan(precisions, images, cases)


def computes_bf16() -> bool:
    """Return whether this CPU computes in bf16, as OpenVINO tells."""
    with silent_openvino_import():
        import openvino
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _outcome(found: EngineAgreement) -> str:
    changes = {name: m.dsc_change for name, m in found.modalities.items() if m.dsc_change is not None}
    text = f"masks agree with float32's to {found.macro:.4f}"
    if changes:
        worst = min(changes, key=lambda name: changes[name])
        text += f", DSC changes by {changes[worst]:+.4f} in {worst} at worst"
    return f"{text}: {found.shortcoming() or 'passes'}"
