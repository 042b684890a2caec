"""Store a graph's weights in half the bytes: as float16, with a cast back to float32 before their use.

Engines fold the casts while they load the graph, so that it computes in float32 and as fast as before; only
the rounding of the weights, to 11 bits, stays. It is not the precision that is smaller, but the file.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

LEAST = 4096
"""Elements of a tensor that is worth a cast; biases, and the scales of a quantised graph, have fewer."""


def with_half_weights(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a graph whose large float32 weights are stored as float16.

    Weights of which one lies beyond float16's range, 65504, stay as they are.
    """
    half = onnx.ModelProto()
    half.CopyFrom(graph)
    casts = []
    for tensor in half.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < LEAST:
            continue
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16)
        if not np.isfinite(rounded).all():
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(rounded, f"{name}.float16"))
        cast = onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT)
        casts.append(cast)
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half
