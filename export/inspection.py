"""Say in a few lines what is in a bundle."""

from __future__ import annotations

import json
import pathlib

from litemed.runtime.bundle import Bundle
from litemed.runtime.precision import Precision


def describe(folder: str | pathlib.Path) -> str:
    """Verify a bundle and describe it for a person.

    Raises:
        BundleError: it does not match its manifest.
    """
    manifest = Bundle.open(folder).manifest
    weights = manifest.weights
    lines = [
        f"{manifest.name}  (litemed {manifest.litemed}, {manifest.created})",
        f"  weights     {weights.file}  layout {weights.layout}, encoder {weights.encoder}",
        f"              sha256 {weights.sha256[:12] or '-'}",
    ]
    if not weights.trained:
        lines.append("              UNTRAINED: drawn at random, the masks mean nothing")
    if weights.lora:
        lines.append(f"  LoRA        {json.dumps(weights.lora)}")
    for name, graph in manifest.graphs.items():
        lines.append(f"  {name:<10}  {graph.file}  {graph.bytes / 1e6:.1f} MB  opset {graph.opset}")
    for name, precision in manifest.precisions.items():
        lines += _precision(name, precision)
    rows = manifest.parity if isinstance(manifest.parity, list) else []
    lines += [f"  parity      {json.dumps(row)}" for row in rows]
    lines.append(f"  tools       {json.dumps(manifest.tools)}")
    return "\n".join(lines)


def _precision(name: str, precision: Precision) -> list[str]:
    """Return a precision's graphs and, for each engine, how well it agreed with float32."""
    rounded = f", bf16 in {' and '.join(precision.bf16)}" if precision.bf16 else ""
    lines = [f"  {name:<10}  {precision.encoder} + {precision.decoder}{rounded}"]
    if precision.agreement is None:
        return lines
    for engine, found in precision.agreement.engines.items():
        verdict = precision.shortcoming(engine) or "passes"
        lines.append(f"              {engine}, {precision.agreement.images} cases: {verdict}")
        for modality, one in found.modalities.items():
            change = "" if one.dsc_change is None else f"  DSC {one.dsc_change:+.4f}"
            lines.append(f"                {modality:<12} {one.cases:>3} cases  Dice {one.dice:.4f}{change}")
    return lines
