"""Write a bundle's files: its graphs, and `manifest.json`, which the runtime holds them to (schema 4)."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import onnx
import torch

from litemed.export.graphs import OPSET, GraphSpec
from litemed.export.verify import Parity
from litemed.models.checkpoint import Checkpoint
from litemed.runtime.bundle import MANIFEST, PREPROCESSING, SCHEMA
from litemed.runtime.precision import REFERENCE, ROLES, Precision

FLOAT32 = {REFERENCE: Precision(*ROLES)}
TOOLS = ("onnx", "onnxsim", "onnxruntime", "openvino", "numpy", "safetensors")

HALF_FROM = 4096
"""Elements of a tensor that is worth a cast; biases, and the scales of a quantised graph, have fewer."""


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
    precisions: Mapping[str, Precision] = field(default_factory=lambda: FLOAT32)
    compact: bool = False

    def write(self, folder: pathlib.Path) -> None:
        """Write the bundle's files into a folder, which is made where it is missing."""
        folder.mkdir(exist_ok=True)
        graphs = {}
        for spec in self.specs:
            graph = self.graphs[spec.name]
            data = (with_half_weights(graph) if self.compact else graph).SerializeToString(deterministic=True)
            (folder / spec.file).write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            graphs[spec.name] = {"file": spec.file, "sha256": sha256, "bytes": len(data), "opset": OPSET} | {
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
            "weights": {
                "file": weights.file,
                "sha256": weights.sha256,
                "layout": weights.layout,
                "encoder": weights.encoder,
                "trained": weights.trained,
                "lora": None if weights.lora is None else asdict(weights.lora),
            },
            "parity": [asdict(p) for p in self.parity],
            "tools": {"torch": torch.__version__} | {k: importlib.metadata.version(k) for k in TOOLS},
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


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
