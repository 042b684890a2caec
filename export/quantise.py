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

import pathlib
import tempfile
import types
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from litemed.export.graphs import ExportError
from litemed.runtime.engines.onnxruntime_engine import silence_onnxruntime
from litemed.runtime.errors import UsageError
from litemed.runtime.inputs.cases import list_cases, read_case
from litemed.runtime.modalities import modality_of_name
from litemed.runtime.preprocess import preprocess

# Of the graphs in a bundle: for both engines, and for OpenVINO with bf16 between the quantised operators.
KEY, KEY_BF16 = "encoder_int8", "encoder_int8_bf16"
LINEAR = ("Gemm", "MatMul")
CONVOLUTION = "Conv"
MIN_IMAGES = 16  # fewer leave the range of activations to chance
MAX_IMAGES = 48  # four of each of the challenge's modalities, and more where there are fewer of them

Image = NDArray[np.uint8]
T = TypeVar("T")


def calibration_images(folder: pathlib.Path) -> list[Image]:
    """Return `MIN_IMAGES` to `MAX_IMAGES` images and slices of a folder of cases, uint8 (H, W) or (H, W, 3).

    The names of the files alone decide. Every modality (the beginning of the name; all others count as one
    more) gets an equal share: files at even distances by name, and where there are fewer than the share,
    several slices of each volume, at even distances among those that a box covers.

    Raises:
        UsageError: there are too few.
        InputError: a file that was chosen cannot be read.
    """
    by_modality: dict[str, list[pathlib.Path]] = {}
    for path in list_cases([folder]):
        by_modality.setdefault(modality_of_name(path.stem) or "", []).append(path)
    share = max(1, MAX_IMAGES // len(by_modality))
    images: list[Image] = []
    for _, paths in sorted(by_modality.items()):
        chosen = _spread(paths, share)
        for i, path in enumerate(chosen):
            case = read_case(path)
            if case.boxes.z is None:
                images.append(case.image)
                continue
            first, last = case.boxes.z.T
            covered = [z for z in range(len(case.image)) if ((first <= z) & (z <= last)).any()]
            count = share // len(chosen) + (i < share % len(chosen))
            images += [case.image[z] for z in _spread(covered, count)]
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"{folder}: {len(images)} images to calibrate on; int8 needs at least {MIN_IMAGES} real ones, of "
            "all the modalities that it is meant for"
        )
    return images


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of the items, or all if there are fewer, at even distances and in their order."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def quantise(
    encoder: onnx.ModelProto, images: Sequence[Image], size: int, key: str, progress: Callable[[str], None]
) -> onnx.ModelProto:
    """Return an encoder graph with its matrix products in int8; inputs and outputs stay as they are.

    The same graph and images, uint8 (H, W) or (H, W, 3), give the same bytes on one machine. `key` says which
    graph, `KEY` or `KEY_BF16`.

    Raises:
        ExportError: there is nothing to quantise in it, or ONNX Runtime fails.
    """
    nodes, name = quantised_nodes(encoder), encoder.graph.input[0].name
    progress(f"calibrating int8 on {len(images)} images")
    silence_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_static

    # A mark that the graph is simplified, without which ONNX Runtime's quantiser advises that.
    prepared = onnx.ModelProto()
    prepared.CopyFrom(encoder)
    onnx.helper.set_model_props(prepared, {"onnx.quant.pre_process": "onnxruntime.quant"})
    excluded = [*LINEAR] if key == KEY else [*LINEAR, CONVOLUTION]
    inputs = ({name: preprocess(image, size)[0]} for image in images)
    with tempfile.TemporaryDirectory() as folder:
        source, target = (pathlib.Path(folder) / name for name in ("float32.onnx", "int8.onnx"))
        source.write_bytes(prepared.SerializeToString())
        try:
            quantize_static(
                source,
                target,
                types.SimpleNamespace(get_next=lambda: next(inputs, None)),
                op_types_to_quantize=[*LINEAR, CONVOLUTION],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=nodes,
                extra_options={
                    "CalibMovingAverage": True,  # by which it means the mean over the images
                    "OpTypesToExcludeOutputQuantization": excluded,
                },
            )
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ExportError(f"encoder: ONNX Runtime cannot quantise it: {error}") from error
        return onnx.load(target)


def quantised_nodes(graph: onnx.ModelProto) -> list[str]:
    """Return the nodes to quantise: linear layers and convolutions that do not read the graph's input itself.

    Raises:
        ExportError: there are none.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    inputs = {value.name for value in graph.graph.input}
    names = [
        node.name
        for node in graph.graph.node
        if node.op_type in (*LINEAR, CONVOLUTION)
        and node.input[0] not in inputs
        and node.input[1] in constants
    ]
    if not names:
        raise ExportError("encoder: has no layer to quantise")
    return names
