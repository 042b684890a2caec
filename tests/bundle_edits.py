"""Change a bundle on the disk, for tests that spoil one."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import onnx


def edit(folder: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's object in place."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_graph(folder: pathlib.Path, key: str, model: onnx.ModelProto) -> None:
    """Put another graph in place, with the right hash and size in the manifest."""
    data = model.SerializeToString()
    (folder / f"{key}.onnx").write_bytes(data)
    sums = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda manifest: manifest["graphs"][key].update(sums))
