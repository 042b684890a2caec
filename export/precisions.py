"""The precisions beside float32 that a bundle is to offer: what they need, and which of them are kept."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from litemed.export.agreement import MeasuredCase, find_measured_cases
from litemed.export.manifest import FLOAT32
from litemed.export.quantise import KEY, KEY_BF16, Image, calibration_images
from litemed.runtime.engines.openvino_engine import computes_bf16
from litemed.runtime.errors import UsageError
from litemed.runtime.precision import ROLES, Agreement, Precision

Plan = tuple[dict[str, Precision], list[Image], list[MeasuredCase]]
"""What to try, by name, with an agreement of no engine yet; images to calibrate on; cases to measure on."""


def plan(
    int8: bool, calibration: pathlib.Path | None, agreement: pathlib.Path | None, truths: pathlib.Path | None
) -> Plan:
    """Check what precisions need, and read the images for them, before anything long is begun.

    Raises:
        UsageError: images or cases are missing or too few, or serve nothing.
        InputError: one of them cannot be read.
    """
    if int8 != (calibration is not None) or (int8 and agreement is None):
        raise UsageError(
            "--int8, --calibration (a folder of real cases to quantise with) and --agreement (another, to "
            "measure on) go together"
        )
    if agreement is None:
        if truths is not None:
            raise UsageError("--ground-truth is that of cases; name their folder with --agreement")
        return {}, [], []
    encoders = {"int8": KEY} if int8 else {}
    if computes_bf16():
        encoders |= {"bf16": "encoder"} | ({"int8-bf16": KEY_BF16} if int8 else {})
    if not encoders:
        raise UsageError("--agreement has nothing to measure: this CPU computes no bf16; pass --int8 as well")
    cases = find_measured_cases(agreement, truths)
    unmeasured = Agreement(len(cases), {})
    # bf16 in the encoder alone: the decoder does not bear it (benchmarks/results/agreement.md).
    precisions = {
        name: Precision(encoder, "decoder", unmeasured, ROLES[:1] if name.endswith("bf16") else ())
        for name, encoder in encoders.items()
    }
    return precisions, [] if calibration is None else calibration_images(calibration), cases


def passing(
    tried: Mapping[str, Precision], measured: Mapping[str, Agreement], progress: Callable[[str], None]
) -> dict[str, Precision]:
    """Return float32 and the precisions that pass on one engine at least; the runtime judges each."""
    kept = dict(FLOAT32)
    for name, agreement in measured.items():
        precision = replace(tried[name], agreement=agreement)
        for engine, found in agreement.engines.items():
            lowest, at = min((one.dice, modality) for modality, one in found.modalities.items())
            progress(
                f"{name} on {engine}: masks agree with float32's to {lowest:.4f} in {at} at "
                f"worst: {found.shortcoming() or 'passes'}"
            )
        if any(precision.shortcoming(engine) is None for engine in agreement.engines):
            kept[name] = precision
        else:
            progress(f"{name} is left out of the bundle: it passes on no engine")
    return kept
