"""The command `litemed-export`."""

import importlib
import json
import pathlib
from typing import Any

import click

from litemed.runtime.bundle import Bundle
from litemed.runtime.command import EXISTING, Command, run_command
from litemed.runtime.errors import UsageError

EPILOG = """\b
Examples:
  litemed-export lite_medsam.pth -o bundle
  litemed-export lite_medsam.pth --adapter run/best.safetensors -o bundle
  litemed-export lite_medsam.pth --adapter peft_folder -o bundle
  litemed-export weights/light.safetensors -o bundle \\
      --loose-decoder weights/light-loose-decoder.safetensors \\
      --tile-decoder weights/light-tile-decoder.safetensors
  litemed-export lite_medsam.pth -o bundle --int8 --calibration train/cases \\
      --agreement val/cases --ground-truth val/gts
  litemed-export lite_medsam.pth -o bundle --compact      half the bytes
  litemed-export --untrained -o bundle        random weights, to try the tools out
  litemed-export --inspect bundle

\b
Exit codes: 0 done, 1 the checkpoint or the export failed, 2 wrong use, 130 interrupted.
"""

_PATH = click.Path(path_type=pathlib.Path)
_FOLDER = click.Path(path_type=pathlib.Path, exists=True, file_okay=False)


@click.command(cls=Command, epilog=EPILOG)
@click.argument("checkpoint", required=False, type=EXISTING)
@click.option("-o", "--output", type=_PATH, help="Bundle folder to create.")
@click.option("--adapter", type=EXISTING, help="LoRA to fold in: of litemed-train, peft or loralib.")
@click.option(
    "--loose-decoder",
    type=EXISTING,
    help="Second mask decoder to add, for loose boxes (safetensors); tuned on CHECKPOINT's encoder.",
)
@click.option(
    "--tile-decoder",
    type=EXISTING,
    help="Mask decoder to add for small boxes, which are segmented on tiles; likewise.",
)
@click.option("--inspect", type=EXISTING, help="Verify and describe a bundle instead.")
@click.option("--untrained", is_flag=True, help="Export weights drawn at random; their masks mean nothing.")
@click.option("--name", help="Name of the bundle; the folder's name by default.")
@click.option(
    "--size", default=256, type=click.IntRange(64, 1024), help="Input side, a multiple of 64 [256]."
)
@click.option(
    "--verify",
    type=click.Choice(["full", "quick"]),
    default="full",
    help="Compare with PyTorch for 1, 2, 17 and 241 boxes [full], or for 1 and 2.",
)
@click.option(
    "--loralib-alpha",
    default=1.0,
    help="Alpha of LoRA in the paper's layout (loralib), which does not record it [1]; 0 for a file saved in "
    "evaluation mode, whose weights hold the update already.",
)
@click.option("--int8", is_flag=True, help="Offer int8 too: quantise the encoder, if its masks agree well.")
@click.option("--calibration", type=_FOLDER, help="Cases (16 or more, of every modality) to quantise with.")
@click.option(
    "--agreement",
    type=_FOLDER,
    help="Other cases (10 or more) to measure agreement with float32 on: of int8, and, if this CPU computes "
    "in bf16, of bf16 and of both together.",
)
@click.option("--ground-truth", type=_FOLDER, help="Folder of their ground truth, to measure DSC as well.")
@click.option("--compact", is_flag=True, help="Store weights as float16, in half the bytes.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that lies at the target.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="litemed")
def main(debug: bool, **options: Any) -> None:
    """Turn a LiteMedSAM CHECKPOINT into a verified ONNX bundle.

    Reads the published layout (.pth or .safetensors), training checkpoints and
    the LoRA layout of the paper's code; folds an adapter of litemed-train or
    peft given with --adapter. All graphs are compared with PyTorch on ONNX Runtime and
    OpenVINO; a bundle that differs is not left behind.

    A precision other than float32 is offered only if its masks agree with
    float32's to 0.99 (mean Dice) in every modality and no modality's DSC falls
    by more than 0.005, on one engine at least. Cases are named after their
    modality, as litemed-prepare --cases does.
    """
    run_command(lambda: _run(**options), debug=debug, interrupted="nothing was written", extra="export")


def _run(
    checkpoint: pathlib.Path | None,
    output: pathlib.Path | None,
    adapter: pathlib.Path | None,
    loose_decoder: pathlib.Path | None,
    tile_decoder: pathlib.Path | None,
    inspect: pathlib.Path | None,
    untrained: bool,
    size: int,
    verify: str,
    loralib_alpha: float,
    **options: Any,
) -> None:
    added = {"loose_decoder": loose_decoder, "tile_decoder": tile_decoder}
    further = {name: path for name, path in added.items() if path is not None}
    if inspect is not None:
        if checkpoint or output or adapter or further or untrained:
            raise UsageError("--inspect stands alone")
        click.echo(describe(inspect))
        return
    if output is None:
        raise UsageError("name the bundle folder to create with -o")
    if (checkpoint is None) != untrained or (untrained and (adapter or further)):
        raise UsageError(
            "name one checkpoint (with or without --adapter and further decoders), or pass --untrained"
        )
    if size % 64:
        raise UsageError(f"input size {size} is not a multiple of 64")

    from litemed.runtime.engines.onnxruntime_engine import silence_onnxruntime
    from litemed.runtime.engines.openvino_engine import shared_core

    silence_onnxruntime()  # which onnxsim imports
    shared_core()
    for package in ("torch", "onnx", "onnxsim", "openvino", "safetensors"):
        importlib.import_module(package)  # so that a missing one is told of before the work

    from litemed.export.bundle import ExportOptions, write_bundle
    from litemed.export.verify import BOX_COUNTS, COMPACT, QUICK_BOX_COUNTS
    from litemed.models.checkpoint import add_decoder, read_checkpoint, untrained_checkpoint
    from litemed.models.lora_folding import fold_adapter

    weights = (
        untrained_checkpoint()
        if checkpoint is None
        else read_checkpoint(checkpoint, loralib_alpha=loralib_alpha)
    )
    if adapter is not None:
        weights = fold_adapter(weights, adapter, loralib_alpha=loralib_alpha)
    for name, path in further.items():
        weights = add_decoder(weights, name, path)
    if untrained:
        click.echo("warning: untrained weights; the masks mean nothing", err=True)
    for warning in weights.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{weights.file}: layout {weights.layout}, encoder {weights.encoder}")
    if lora := weights.lora:
        click.echo(f"folded LoRA of rank {lora.rank}, alpha {lora.alpha:g}, in {', '.join(lora.targets)}")
    for name, decoder in weights.decoders.items():
        click.echo(f"{decoder.file}: {name.replace('_', ' ')}")
    counts = BOX_COUNTS if verify == "full" else QUICK_BOX_COUNTS
    settings = ExportOptions(size=size, box_counts=counts, **options)
    parity = write_bundle(weights, output, settings, progress=click.echo)
    exact = max(p.max_abs_diff for p in parity if p.stage != COMPACT)
    stored = max((p.max_abs_diff for p in parity if p.stage == COMPACT), default=exact)
    click.echo(
        f"{output}: {len(parity)} comparisons with PyTorch pass, largest difference {exact:.1e} in float32, "
        f"{stored:.1e} as stored"
    )


def describe(folder: pathlib.Path) -> str:
    """Verify a bundle and describe it for a person. Raises BundleError if it does not match its manifest."""
    manifest = Bundle.open(folder).manifest
    weights = manifest.weights
    untrained = "" if weights.trained else ", UNTRAINED: drawn at random, the masks mean nothing"
    lines = [
        f"{manifest.name}  (litemed {manifest.litemed}, {manifest.created})",
        f"  weights  {weights.file}, layout {weights.layout}, encoder {weights.encoder}{untrained}",
        f"  sha256   {weights.sha256 or '-'}",
        f"  LoRA     {json.dumps(weights.lora)}",
        *[
            f"  {name:<9}{json.dumps(said)}"
            for name, said in (("loose", weights.loose_decoder), ("tiles", weights.tile_decoder))
            if said is not None
        ],
    ]
    for graph in manifest.graphs.values():
        lines.append(f"  graph    {graph.file}, {graph.bytes / 1e6:.1f} MB, opset {graph.opset}")
    for name, precision in manifest.precisions.items():
        rounded = f", bf16 in {' and '.join(precision.bf16)}" if precision.bf16 else ""
        lines.append(f"  {name:<9}{' + '.join(precision.graphs)}{rounded}")
        for engine, found in precision.agreement.engines.items() if precision.agreement else ():
            lines.append(f"           {engine}: {found.shortcoming() or 'passes'}")
            for modality, one in found.modalities.items():
                change = "" if one.dsc_change is None else f"  DSC {one.dsc_change:+.4f}"
                lines.append(f"             {modality:<12} {one.cases:>3} cases  Dice {one.dice:.4f}{change}")
    rows = manifest.parity if isinstance(manifest.parity, list) else []
    lines += [f"  parity   {json.dumps(row)}" for row in rows]
    return "\n".join([*lines, f"  tools    {json.dumps(manifest.tools)}"])


if __name__ == "__main__":
    main()
