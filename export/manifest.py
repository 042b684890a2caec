"""Write a bundle's files: its graphs, and `manifest.json`, which the runtime holds them to (schema 4)."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx
import torch

from litemed.export.graphs import OPSET, GraphSpec
from litemed.export.storage import with_half_weights
from litemed.export.verify import Parity
from litemed.models.checkpoint import Checkpoint
from litemed.runtime.bundle import MANIFEST
from litemed.runtime.manifest import PREPROCESSING, SCHEMA
from litemed.runtime.precision import REFERENCE, ROLES, Precision

FLOAT32 = {REFERENCE: Precision(*ROLES)}
TOOLS = ("onnx", "onnxsim", "onnxruntime", "openvino", "numpy", "safetensors")


@dataclass(frozen=True)
class Contents:
    """What goes into a bundle.

    Attributes:
        name: shown to users.
        checkpoint: where the weights came from.
        size: side of the network's input in pixels.
        specs: the graphs' interfaces.
        graphs: the graphs by name, in full.
        parity: what was measured against PyTorch.
        precisions: by name, with their measured agreement.
        compact: store the graphs' weights as float16.
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
            graphs[spec.name] = _graph(spec, data)
        (folder / MANIFEST).write_text(json.dumps(self._manifest(graphs), indent=2) + "\n")

    def _manifest(self, graphs: Mapping[str, Any]) -> dict[str, Any]:
        weights = self.checkpoint
        return {
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
            "tools": {"torch": torch.__version__}
            | {tool: importlib.metadata.version(tool) for tool in TOOLS},
        }


def _graph(spec: GraphSpec, data: bytes) -> dict[str, Any]:
    entry = {
        "file": spec.file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "opset": OPSET,
    }
    for key, shapes in (("inputs", spec.inputs), ("outputs", spec.outputs)):
        entry[key] = [{"name": k, "dtype": "float32", "shape": list(v)} for k, v in shapes.items()]
    return entry
