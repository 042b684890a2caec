"""Write `manifest.json`, the description that the runtime holds a bundle to (schema 4)."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from litemed.export.graphs import OPSET, GraphSpec
from litemed.export.verify import Parity
from litemed.models.checkpoint import Checkpoint
from litemed.runtime.manifest import SCHEMA
from litemed.runtime.precision import Precision

FILE = "manifest.json"
TOOLS = ("torch", "onnx", "onnxsim", "onnxruntime", "openvino", "numpy", "safetensors")


def manifest_bytes(
    name: str,
    checkpoint: Checkpoint,
    trained: bool,
    specs: Iterable[GraphSpec],
    graphs: Mapping[str, bytes],
    parity: Iterable[Parity],
    precisions: Mapping[str, Precision],
) -> bytes:
    """Return the manifest of a bundle.

    Args:
        name: the bundle's name, shown to users.
        checkpoint: where the weights came from.
        trained: False for weights drawn at random, whose masks mean nothing.
        specs: the graphs' interfaces.
        graphs: the graphs' bytes by name.
        parity: what was measured against PyTorch.
        precisions: by name, with their measured agreement.
    """
    specs = list(specs)
    size = specs[0].inputs["image"][-1]
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "litemed": importlib.metadata.version("litemed"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "input": {
            "size": size,
            "channels": 3,
            "resize": "longest side, area",
            "normalise": "min-max of the resized image",
            "pad": "zeros right and bottom",
        },
        "graphs": {spec.name: _graph(spec, graphs[spec.name]) for spec in specs},
        "precisions": {key: _precision(precision) for key, precision in precisions.items()},
        "weights": {
            "file": checkpoint.file,
            "sha256": checkpoint.sha256,
            "layout": checkpoint.layout,
            "encoder": checkpoint.encoder,
            "trained": trained,
            "lora": None if checkpoint.lora is None else asdict(checkpoint.lora),
        },
        "parity": [asdict(p) for p in parity],
        "tools": {tool: _version(tool) for tool in TOOLS},
    }
    return (json.dumps(document, indent=2) + "\n").encode()


def _graph(spec: GraphSpec, data: bytes) -> dict[str, Any]:
    def values(shapes: Mapping[str, tuple[int | str, ...]]) -> list[dict[str, Any]]:
        return [{"name": k, "dtype": "float32", "shape": list(v)} for k, v in shapes.items()]

    return {
        "file": spec.file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "opset": OPSET,
        "inputs": values(spec.inputs),
        "outputs": values(spec.outputs),
    }


def _precision(precision: Precision) -> dict[str, Any]:
    return {key: value for key, value in asdict(precision).items() if value not in (None, ())}


def _version(tool: str) -> str:
    return torch.__version__ if tool == "torch" else importlib.metadata.version(tool)
