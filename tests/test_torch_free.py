"""The runtime works where neither PyTorch nor ONNX nor anything of the training side can be imported."""

import pathlib
import subprocess
import sys

import pytest

WALK = """
import importlib, importlib.abc, pkgutil, sys

FORBIDDEN = {
    "torch", "onnx", "onnxsim", "safetensors", "scipy", "matplotlib", "nibabel", "psutil", "hypothesis",
}
OURS = {"models", "train", "export", "benchmarks"}

class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] in FORBIDDEN or (parts[0] == "litemed" and len(parts) > 1 and parts[1] in OURS):
            raise ModuleNotFoundError(f"{name} is behind the wall", name=name)
        return None

sys.meta_path.insert(0, Wall())

import numpy as np
import litemed.runtime

walked = ["litemed.runtime"]
for found in pkgutil.walk_packages(litemed.runtime.__path__, "litemed.runtime."):
    importlib.import_module(found.name)
    walked.append(found.name)
assert not FORBIDDEN & set(sys.modules)

labels = litemed.runtime.load(sys.argv[1], engine=sys.argv[2], threads=1).segment(
    np.zeros((40, 50), np.uint8), [[5, 5, 30, 30]]
)
assert labels[15, 15] == 1 and labels[35, 45] == 0
assert not FORBIDDEN & set(sys.modules)
print(len(walked), *walked)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_module_imports_and_a_case_is_segmented(engine, box_bundle):
    pytest.importorskip(engine)
    done = subprocess.run(
        [sys.executable, "-c", WALK, box_bundle, engine], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    walked = done.stdout.split()
    on_disk = pathlib.Path(__file__).resolve().parent.parent / "runtime"
    assert int(walked[0]) == len(list(on_disk.rglob("*.py")))
