"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = pathlib.Path(os.environ.get("LITEMED_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Callable[[str], pathlib.Path]:
    """Return a function from a path below the folder of test material to the file; skips where it is absent."""

    def find(relative: str) -> pathlib.Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"test material {relative} is not here (set LITEMED_SHARED to its folder)")
        return path

    return find
