"""Say in a few lines what is in a bundle."""

from __future__ import annotations

import json
import pathlib

from litemed.runtime.bundle import Bundle


def describe(folder: str | pathlib.Path) -> str:
    """Verify a bundle and describe it for a person.

    Raises:
        BundleError: it does not match its manifest.
    """
    manifest = Bundle.open(folder).manifest
    weights = manifest.weights
    untrained = "" if weights.trained else ", UNTRAINED: drawn at random, the masks mean nothing"
    lines = [
        f"{manifest.name}  (litemed {manifest.litemed}, {manifest.created})",
        f"  weights  {weights.file}, layout {weights.layout}, encoder {weights.encoder}{untrained}",
        f"  sha256   {weights.sha256 or '-'}",
        f"  LoRA     {json.dumps(weights.lora)}",
    ]
    for graph in manifest.graphs.values():
        lines.append(f"  graph    {graph.file}, {graph.bytes / 1e6:.1f} MB, opset {graph.opset}")
    for name, precision in manifest.precisions.items():
        rounded = f", bf16 in {' and '.join(precision.bf16)}" if precision.bf16 else ""
        lines.append(f"  {name:<9}{precision.encoder} + {precision.decoder}{rounded}")
        for engine, found in precision.agreement.engines.items() if precision.agreement else ():
            lines.append(f"           {engine}: {precision.shortcoming(engine) or 'passes'}")
            for modality, one in found.modalities.items():
                change = "" if one.dsc_change is None else f"  DSC {one.dsc_change:+.4f}"
                lines.append(f"             {modality:<12} {one.cases:>3} cases  Dice {one.dice:.4f}{change}")
    rows = manifest.parity if isinstance(manifest.parity, list) else []
    lines += [f"  parity   {json.dumps(row)}" for row in rows]
    return "\n".join([*lines, f"  tools    {json.dumps(manifest.tools)}"])
