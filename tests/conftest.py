"""Fixtures that several test modules share."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("LITEMED_SHARED", ROOT.parent / "shared"))

Find = Callable[[str], pathlib.Path]


@pytest.fixture(scope="session")
def shared() -> Find:
    """Return a function from a path below the folder of test material to the file, or skip."""

    def find(relative: str) -> pathlib.Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"test material {relative} is not here (set LITEMED_SHARED to its folder)")
        return path

    return find


@pytest.fixture(scope="session")
def golden_checkpoint(shared: Find, tmp_path_factory: pytest.TempPathFactory) -> Find:
    """Return a function from a layout ("plain" or "loralib") to the golden checkpoint in that layout."""

    @functools.cache
    def make(layout: str) -> pathlib.Path:
        script = shared("golden/make_checkpoint.py")
        path = tmp_path_factory.mktemp("golden") / f"{layout}.pth"
        arguments = [] if layout == "plain" else ["--lora", layout]
        subprocess.run([sys.executable, str(script), str(path), *arguments], check=True)
        return path

    return make


@pytest.fixture(scope="session")
def golden_bundle(golden_checkpoint: Find, tmp_path_factory: pytest.TempPathFactory) -> Find:
    """Return a function from a layout to a bundle exported from that golden checkpoint."""

    @functools.cache
    def make(layout: str) -> pathlib.Path:
        from litemed.export.bundle import ExportOptions, write_bundle
        from litemed.export.checkpoint import read_checkpoint

        path = tmp_path_factory.mktemp("bundles") / layout
        write_bundle(read_checkpoint(golden_checkpoint(layout)), path, ExportOptions(box_counts=(1, 2)))
        return path

    return make


@pytest.fixture(scope="session")
def golden_expected(shared: Find) -> dict[str, np.ndarray]:
    """Return the published code's outputs, see the README beside them."""
    with np.load(shared("golden/expected.npz"), allow_pickle=False) as file:
        return dict(file)
