"""Segment medical images with an exported LiteMedSAM on a CPU.

import litemed.runtime
labels = litemed.runtime.load("bundle").segment(image, boxes)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Segmenter

__all__ = ["load"]


def load(
    bundle_path: str | os.PathLike[str],
    *,
    engine: str = "auto",
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Segmenter:
    """Open a bundle folder and load its model.

    `engine` is "onnxruntime", "openvino" or "auto" (OpenVINO where it is installed); `threads` is how many it
    computes with, None all that the process may use. `cache` is a folder of the user's own that keeps what
    OpenVINO compiled (see `litemed.runtime.engines.cache` for what is trusted); without it nothing is kept.

    Raises BundleError if the bundle is damaged, EngineError if the engine is not installed or fails,
    UsageError for an unknown engine or number of threads, or a cache that others may write into.
    """
    from litemed.runtime.segmenter import Segmenter

    return Segmenter.load(bundle_path, engine=engine, threads=threads, cache=cache)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("litemed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
