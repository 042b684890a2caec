"""The encoder in int8, by post-training quantisation on real images.

One ONNX graph in QDQ form, which ONNX Runtime and OpenVINO both run: weights int8, one scale for each output
channel; activations uint8, one scale for each tensor, ranging from the mean over the images of their least
value to that of their greatest. All linear layers and all convolutions but the first are quantised. Attention
scores, softmax, norms, GELU and the first convolution, which reads the image, stay in float32.

ONNX Runtime leaves a convolution in float32 if its output is not quantised as well. OpenVINO does not, and
then joins GELU and the next quantisation to it: 196 ms instead of 242, with bf16 between the quantised
operators. (ONNX Runtime: 530 instead of 359; both on 2 cores of an AMD EPYC 9004.) Hence two graphs.

Weights use 7 of their 8 bits. Byte products of CPUs without VNNI are summed in pairs in 16 bits, which 8 bits
can overflow; with 7 the result is the same on all CPUs, so that what was measured on one holds on others.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from litemed.export.errors import ExportError
from litemed.runtime.network import silence_onnxruntime
from litemed.runtime.preprocess import preprocess

KEY, KEY_BF16 = "encoder_int8", "encoder_int8_bf16"
"""Of the graphs in a bundle: for both engines, and for OpenVINO with bf16 between the quantised operators."""

LINEAR = ("Gemm", "MatMul")
CONVOLUTION = "Conv"


def quantise(
    encoder: onnx.ModelProto,
    images: Sequence[NDArray[np.uint8]],
    size: int,
    progress: Callable[[str], None] = lambda line: None,
    keys: Sequence[str] = (KEY,),
) -> dict[str, onnx.ModelProto]:
    """Return encoder graphs with their matrix products in int8; inputs and outputs stay as they are.

    The same graph and images give the same bytes on one machine.

    Args:
        encoder: any encoder in float32; it is not changed.
        images: to calibrate on, uint8 (H, W) or (H, W, 3), see `litemed.export.calibration`.
        size: side S of the network's input.
        progress: is told how far the calibration is.
        keys: which graphs, of `KEY` and `KEY_BF16`.

    Raises:
        ExportError: there is nothing to quantise in it, or ONNX Runtime fails.
    """
    nodes = [node.name for node in quantised_nodes(encoder)]
    # A mark that the graph is simplified, without which ONNX Runtime's quantiser advises that.
    prepared = onnx.ModelProto()
    prepared.CopyFrom(encoder)
    onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    found = {}
    for key in keys:
        inputs = _Inputs(encoder.graph.input[0].name, images, size, progress)
        try:
            found[key] = _quantised(prepared, nodes, inputs, outputs=key == KEY)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ExportError(f"encoder: ONNX Runtime cannot quantise it: {error}") from error
    return found


def _quantised(
    graph: onnx.ModelProto, nodes: list[str], inputs: _Inputs, *, outputs: bool
) -> onnx.ModelProto:
    """Return a graph with nodes quantised; `outputs`: convolutions' as well."""
    silence_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("float32.onnx", "int8.onnx"))
        source.write_bytes(graph.SerializeToString())
        quantize_static(
            source,
            target,
            inputs,
            op_types_to_quantize=[*LINEAR, CONVOLUTION],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            extra_options={
                "CalibMovingAverage": True,  # by which it means the mean over the images
                "OpTypesToExcludeOutputQuantization": [*LINEAR, *[CONVOLUTION] * (not outputs)],
            },
        )
        return onnx.load(target)


class _Inputs:
    """The network's input for one image after the other, as ONNX Runtime's calibration asks for them."""

    def __init__(
        self, name: str, images: Sequence[NDArray[np.uint8]], size: int, progress: Callable[[str], None]
    ) -> None:
        self.name, self.images, self.size, self.progress = name, images, size, progress
        self.done = 0

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        if self.done == len(self.images):
            return None
        if self.done % 10 == 0:
            self.progress(f"calibrating int8: {self.done} of {len(self.images)} images")
        self.done += 1
        return {self.name: preprocess(self.images[self.done - 1], self.size)[0]}


def quantised_nodes(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes to quantise: linear layers and convolutions that do not read the graph's input itself.

    Raises:
        ExportError: there are none, or one of them has no name of its own.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    inputs = {value.name for value in graph.graph.input}
    nodes = [
        node
        for node in graph.graph.node
        if node.op_type in (*LINEAR, CONVOLUTION)
        and node.input[0] not in inputs
        and node.input[1] in constants
    ]
    names = [node.name for node in graph.graph.node]
    if not nodes:
        raise ExportError("encoder: has no layer to quantise")
    if nameless := [node for node in nodes if not node.name or names.count(node.name) > 1]:
        raise ExportError(f"encoder: {len(nameless)} of its layers have no name of their own")
    return nodes
