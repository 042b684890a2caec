"""The ONNX graphs of a bundle, written from rewrites of the PyTorch model that are equal up to rounding.

encoder  image (1, 3, S, S) float32 in [0, 1]  ->  image_embedding (1, 256, S/4, S/4)
mask_encoder  mask (1, 1, S, S) in logits  ->  mask_embedding (1, 256, S/4, S/4), to be added to the image's
decoder  image_embedding, points (N, P, 2) float32 x y in input pixels, labels (N, P), N and P dynamic
         ->  logits (N, S, S), iou (N,)

The labels are those of `litemed.export.fast_decoder.FastDecoderGraph`; a box is two points. Further decoders
of a checkpoint, decoder_loose and decoder_tiles, have the decoder's interface.
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

from litemed.export.fast_decoder import FastDecoderGraph, MaskEncoderGraph
from litemed.export.fast_encoder import FastEncoderGraph, LightEncoderGraph
from litemed.models.encoders import LIGHT, TINY_VIT
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.engines.onnxruntime_engine import silence_onnxruntime
from litemed.runtime.errors import LitemedError
from litemed.runtime.precision import MASK_ENCODER

OPSET = 20  # the first with Gelu as one operator, which engines fuse into the convolution before it
HALF_FROM = 4096  # elements that are worth a cast; biases, and the scales of a quantised graph, have fewer
DECODER_GRAPHS = {"decoder": "decoder", "loose_decoder": "decoder_loose", "tile_decoder": "decoder_tiles"}
Shapes = Mapping[str, tuple[int | str, ...]]
ENCODER_GRAPHS = {TINY_VIT: FastEncoderGraph, LIGHT: LightEncoderGraph}


class ExportError(LitemedError):
    """The network could not be written as ONNX graphs."""


@dataclass(frozen=True)
class GraphSpec:
    """Name, module and interface of one graph: shapes by name, in which a string is a dynamic axis."""

    name: str
    module: nn.Module
    inputs: Shapes
    outputs: Shapes


def graph_specs(models: Mapping[str, LiteMedSAM]) -> tuple[GraphSpec, ...]:
    """Return the encoders and the decoders of what `Checkpoint.models` gives."""
    model = models["decoder"]
    size, n = model.size, "N"
    embedding: Shapes = {"image_embedding": (1, 256, size // 4, size // 4)}
    outputs: Shapes = {"logits": (n, size, size), "iou": (n,)}
    encoder = GraphSpec(
        "encoder", ENCODER_GRAPHS[model.encoder](model), {"image": (1, 3, size, size)}, embedding
    )
    decoders = {DECODER_GRAPHS[name]: one for name, one in models.items()}
    prompts = {**embedding, "points": (n, "P", 2), "labels": (n, "P")}
    of_masks: Shapes = {"mask": (1, 1, size, size)}
    mask_encoder = GraphSpec(
        MASK_ENCODER, MaskEncoderGraph(model), of_masks, {"mask_embedding": embedding["image_embedding"]}
    )
    graphs = (GraphSpec(k, FastDecoderGraph(one), prompts, outputs) for k, one in decoders.items())
    return encoder, mask_encoder, *graphs


def to_onnx(spec: GraphSpec) -> onnx.ModelProto:
    """Write one graph as ONNX, with exactly the specified inputs, outputs and shapes.

    Raises:
        ExportError: torch could not trace the module.
    """
    buffer = io.BytesIO()
    examples = [torch.rand([2 if isinstance(d, str) else d for d in shape]) for shape in spec.inputs.values()]
    axes = {
        name: {axis: d for axis, d in enumerate(shape) if isinstance(d, str)}
        for name, shape in ({**spec.inputs, **spec.outputs}).items()
    }
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # on the deprecated tracer, and on shapes that are constant here
            torch.onnx.export(
                spec.module.eval(),
                tuple(examples),
                buffer,  # type: ignore[arg-type]  # the tracer does take a buffer
                opset_version=OPSET,
                dynamo=False,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                dynamic_axes={k: v for k, v in axes.items() if v},
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"{spec.name}: torch could not write it as ONNX: {error}") from error
    graph = onnx.load_from_string(buffer.getvalue())
    del graph.graph.output[:]  # the tracer leaves computed names where the shape is known
    graph.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in spec.outputs.items()
    )
    return graph


def simplify(graph: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Fold constants and shape arithmetic with onnxsim; interface and dynamic axis stay.

    Raises:
        ExportError: onnxsim failed, or its own check found the result to differ.
    """
    silence_onnxruntime()
    import onnxsim  # imports it

    try:
        simple, same = onnxsim.simplify(graph)
        if not same:
            raise ValueError("the simplified graph differs")
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportError(f"{name}: onnxsim failed: {error}") from error
    return simple


def check(graph: onnx.ModelProto, spec: GraphSpec) -> None:
    """Check a graph by ONNX's own rules and against its specified interface.

    Raises:
        ExportError: invalid, or other inputs, outputs or shapes.
    """
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{spec.name}: {str(error).splitlines()[0]}") from error
    expected = {**spec.inputs, **spec.outputs}
    found = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.graph.input, *graph.graph.output)
    }
    if found != expected:
        raise ExportError(f"{spec.name}: inputs and outputs are {found} instead of {expected}")


def with_half_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph whose large float32 weights are stored as float16, with casts back to float32.

    Engines fold the casts while they load the graph, so that it computes in float32 and as fast as before;
    only the rounding of the weights, to 11 bits, stays. What is beyond its range, 65504, stays as it is.
    """
    half = onnx.ModelProto()
    half.CopyFrom(graph)
    casts = []
    for tensor in half.graph.initializer:
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < HALF_FROM or np.abs(values).max() >= 65520:
            continue
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half
