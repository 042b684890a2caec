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

Float = NDArray[np.float32]
Range = tuple[float, float]


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
    silence_onnxruntime()
    graph = onnx.shape_inference.infer_shapes(encoder)
    nodes = quantised_nodes(graph)
    ranges = measure_ranges(graph, _tensors(nodes), images, size, progress)
    limits = {name: tuple(np.array([end], np.float32) for end in ends) for name, ends in ranges.items()}
    return {key: _quantised(graph, nodes, limits, outputs=key == KEY) for key in keys}


def _quantised(
    graph: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    limits: dict[str, tuple[NDArray[np.float32], ...]],
    *,
    outputs: bool,
) -> onnx.ModelProto:
    """Return a graph with nodes quantised, given the limits of tensors; `outputs`: convolutions' as well."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(graph)
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=True,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[node.name for node in nodes],
        nodes_to_exclude=[],
        op_types_to_quantize=[*LINEAR, CONVOLUTION],
        extra_options={
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": [*LINEAR, *[CONVOLUTION] * (not outputs)],
        },
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # it appends what it adds
    quantised: onnx.ModelProto = quantizer.model.model
    return quantised


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


def measure_ranges(
    graph: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[NDArray[np.uint8]],
    size: int,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Range]:
    """Return the range of some of a graph's tensors: the means over images of their minimum and maximum.

    The mean instead of the extremes of all images keeps outliers of single ones from coarsening the scale.
    Raises ExportError if ONNX Runtime does not run the graph.
    """
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    given = {value.name for value in graph.graph.output}
    probe.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in given
    )
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    least: dict[str, list[float]] = {name: [] for name in tensors}
    greatest: dict[str, list[float]] = {name: [] for name in tensors}
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for done, image in enumerate(images):
            if done % 10 == 0:
                progress(f"calibrating int8: {done} of {len(images)} images")
            inputs = {graph.graph.input[0].name: preprocess(image, size)[0]}
            for name, values in zip(tensors, session.run(list(tensors), inputs), strict=True):
                least[name].append(float(values.min()))
                greatest[name].append(float(values.max()))
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise ExportError(f"encoder: ONNX Runtime cannot calibrate it: {error}") from error
    return {name: (float(np.mean(least[name])), float(np.mean(greatest[name]))) for name in tensors}


def _tensors(nodes: Sequence[onnx.NodeProto]) -> list[str]:
    """Return what is to be quantised of the nodes' activations, each once."""
    found = [node.input[0] for node in nodes]
    found += [node.output[0] for node in nodes if node.op_type == CONVOLUTION]
    return list(dict.fromkeys(found))
