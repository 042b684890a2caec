"""Write a bundle: export, simplify, check, verify and measure in a folder beside the target, then move it.

A bundle's files are its graphs and `manifest.json`, which the runtime holds them to (schema 5).
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import onnx
import torch

from litemed.export.agreement import Plan, Progress, measure_agreement, passing, plan
from litemed.export.graphs import (
    DECODER_GRAPHS,
    OPSET,
    GraphSpec,
    check,
    graph_specs,
    simplify,
    to_onnx,
    with_half_weights,
)
from litemed.export.quantise import KEY, KEY_BF16, quantise
from litemed.export.verify import BOX_COUNTS, COMPACT, Parity, judge, measure, references
from litemed.models.checkpoint import Checkpoint
from litemed.runtime.bundle import MANIFEST, PREPROCESSING, SCHEMA
from litemed.runtime.errors import OutputError
from litemed.runtime.precision import MASK_ENCODER, REFERENCE, ROLES, Precision

FLOAT32 = Precision(*ROLES, mask_encoder=MASK_ENCODER)
TOOLS = ("onnx", "onnxsim", "onnxruntime", "openvino", "numpy", "safetensors")


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    `name` is the bundle's, None takes the folder's; `overwrite` replaces a bundle at the target; `size` is
    the side of the network's input in pixels, a multiple of 64; `box_counts` are the numbers of boxes to
    verify; `int8` quantises the encoder on the cases in `calibration`; `agreement` has cases to measure
    agreement with float32 on (of bf16 too if the CPU computes in it), `ground_truth` their ground truth;
    `compact` stores weights as float16, computed with in float32 all the same.
    """

    name: str | None = None
    overwrite: bool = False
    size: int = 256
    box_counts: Sequence[int] = BOX_COUNTS
    int8: bool = False
    calibration: pathlib.Path | None = None
    agreement: pathlib.Path | None = None
    ground_truth: pathlib.Path | None = None
    compact: bool = False


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle of this name: graphs with their interfaces, and what is said of them.

    `size` is the side of the network's input in pixels; `compact` stores the graphs' weights as float16.
    """

    name: str
    checkpoint: Checkpoint
    size: int
    specs: Sequence[GraphSpec]
    graphs: Mapping[str, onnx.ModelProto]
    parity: Sequence[Parity] = ()
    precisions: Mapping[str, Precision] = field(default_factory=lambda: {REFERENCE: FLOAT32})
    compact: bool = False

    def write(self, folder: pathlib.Path) -> None:
        """Write the bundle's files into a folder, which is made where it is missing."""
        folder.mkdir(exist_ok=True)
        graphs = {}
        for spec in self.specs:
            graph, file = self.graphs[spec.name], f"{spec.name}.onnx"
            data = (with_half_weights(graph) if self.compact else graph).SerializeToString(deterministic=True)
            (folder / file).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            graphs[spec.name] = {"file": file, "sha256": sha256, "bytes": len(data), "opset": OPSET} | {
                end: [{"name": k, "dtype": "float32", "shape": list(v)} for k, v in shapes.items()]
                for end, shapes in (("inputs", spec.inputs), ("outputs", spec.outputs))
            }
        weights = self.checkpoint
        manifest = {
            "schema": SCHEMA,
            "name": self.name,
            "litemed": importlib.metadata.version("litemed"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "input": {"size": self.size, **PREPROCESSING},
            "graphs": graphs,
            "precisions": {
                key: {k: v for k, v in asdict(precision).items() if v not in (None, ())}
                for key, precision in self.precisions.items()
            },
            "weights": {k: getattr(weights, k) for k in ("file", "sha256", "layout", "encoder", "trained")}
            | {"lora": None if weights.lora is None else asdict(weights.lora)}
            | {k: {"file": one.file, "sha256": one.sha256} for k, one in weights.decoders.items()},
            "parity": [asdict(p) for p in self.parity],
            "tools": {"torch": torch.__version__} | {k: importlib.metadata.version(k) for k in TOOLS},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def write_bundle(
    checkpoint: Checkpoint,
    out: str | pathlib.Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda line: None,
) -> list[Parity]:
    """Export a checkpoint to a bundle folder that appears whole or not at all.

    Whoever exports the model that ships (`runtime/model`) puts the sha256 of its new manifest beside
    `litemed.runtime.bundle.DEFAULT`.

    `progress` is told each step. Returns all comparisons with PyTorch, before and after simplification and as
    stored.

    Raises:
        ExportError: a graph could not be written, simplified, quantised or checked, or (VerificationError)
            does not reproduce the PyTorch model.
        OutputError: the target exists or cannot be written.
        UsageError, InputError, EngineError: what a precision needs is missing, cannot be read or fails.
    """
    out = pathlib.Path(out)
    options = options or ExportOptions()
    _check_target(out, options.overwrite)
    planned = plan(options.int8, options.calibration, options.agreement, options.ground_truth)
    models = checkpoint.models(options.size)
    specs = graph_specs(models)
    with _staging(out) as staging:
        progress("writing the graphs")
        exported = {spec.name: to_onnx(spec) for spec in specs}
        progress("simplifying and checking them")
        simplified = {spec.name: simplify(exported[spec.name], spec.name) for spec in specs}
        for spec in specs:
            check(exported[spec.name], spec)
            check(simplified[spec.name], spec)
        progress("running PyTorch for reference")
        expected = list(references(models, max(options.box_counts)))
        name = options.name or out.resolve().name
        float32 = _with_decoders(FLOAT32, checkpoint)
        contents = Contents(
            *(name, checkpoint, options.size, specs, simplified),
            precisions={REFERENCE: float32},
            compact=options.compact,
        )
        parity: list[Parity] = []
        for stage in ("exported", "simplified", *[COMPACT] * options.compact):
            graphs = exported if stage == "exported" else simplified
            replace(contents, graphs=graphs, compact=stage == COMPACT).write(staging / stage)
            parity += measure(staging / stage, stage, expected, options.box_counts, progress)
            if stage != "exported":
                judge(parity)
        contents = replace(contents, parity=parity)
        if planned.precisions:
            contents = _with_precisions(contents, planned, staging / "candidate", progress)
        contents.write(staging / "finished")
        _check_target(out, options.overwrite)  # again, for what has come to lie there meanwhile
        if out.exists():
            out.rename(staging / "old")
        (staging / "finished").rename(out)
    return parity


def _with_decoders(precision: Precision, checkpoint: Checkpoint) -> Precision:
    keys = {name: DECODER_GRAPHS[name] for name in checkpoint.decoders}
    return replace(
        precision,
        loose_decoder=keys.get("loose_decoder"),
        tile_decoder=keys.get("tile_decoder"),
        mask_encoder=MASK_ENCODER,
    )


def _with_precisions(
    contents: Contents, planned: Plan, candidate: pathlib.Path, progress: Progress
) -> Contents:
    """Make the graphs of the planned precisions, measure them in a folder, and add those that pass."""
    tried = {k: _with_decoders(one, contents.checkpoint) for k, one in planned.precisions.items()}
    encoder, *_ = specs = list(contents.specs)
    graphs, float32 = dict(contents.graphs), contents.precisions
    for key in {p.encoder: None for p in tried.values() if p.encoder in (KEY, KEY_BF16)}:
        specs.append(replace(encoder, name=key))
        graphs[key] = quantise(graphs[encoder.name], planned.images, contents.size, key, progress)
        check(graphs[key], specs[-1])
    contents = replace(contents, graphs=graphs, specs=specs, precisions={**float32, **tried})
    contents.write(candidate)
    measured = measure_agreement(candidate, list(tried), planned.cases, progress)
    kept = {**float32, **passing(tried, measured, progress)}
    used = [spec for spec in specs if any(spec.name in precision.graphs for precision in kept.values())]
    return replace(contents, specs=used, precisions=kept)


def _check_target(out: pathlib.Path, overwrite: bool) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: exists and is not a folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if others := [name for name in names if name != MANIFEST and not name.endswith(".onnx")]:
        raise OutputError(f"{out}: holds {', '.join(others[:5])}, which would be lost; name a new folder")
    if names and not (overwrite and MANIFEST in names):
        raise OutputError(f"{out}: a bundle lies here already; pass --overwrite to replace it")


@contextlib.contextmanager
def _staging(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside the target, removed at the end whatever happens."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True
        ) as folder:
            before = tempfile.tempdir
            try:
                tempfile.gettempdir()
            except FileNotFoundError:  # the machine has none: ONNX Runtime, which quantises, asks for one
                tempfile.tempdir = folder
            try:
                yield pathlib.Path(folder)
            finally:
                tempfile.tempdir = before
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
