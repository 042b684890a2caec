"""Segment medical images on a CPU, with the light model that ships or a bundle of your own.

import litemed.runtime
labels = litemed.runtime.load().segment(image, boxes)
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Segmenter

__all__ = ["load"]


def load(
    bundle_path: str | os.PathLike[str] | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Segmenter:
    """Open a bundle folder and load its model.

    Args:
        bundle_path: the folder that litemed-export wrote; None takes the light model that ships with litemed,
            and names it, with its version, once in a process as a warning of the logger "litemed".
        engine: "onnxruntime", "openvino" or "auto", the faster one that is installed.
        precision: "exact": float32; "auto": the fastest of those in the bundle whose masks agree with
            float32's (see `litemed.runtime.precision`); "fast": the fastest in the bundle, agree or not;
            or the name of one in the bundle.
        threads: how many to compute with; None takes one for each core that the process has.
        cache: a folder of the user's own that keeps what OpenVINO compiled, see
            `litemed.runtime.engines.cache` for what is trusted. Without it nothing is kept.

    What was chosen stands in the attributes `name`, `precision` and `choice` of the returned one's `engine`.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: the engine is not installed, or fails.
        UsageError: an unknown engine, precision or number of threads, or a cache that others may write into.
        OutputError: the cache cannot be made or read.
    """
    from litemed.runtime.bundle import Bundle
    from litemed.runtime.engines import Cache, open_engine
    from litemed.runtime.segmenter import Segmenter

    kept = None if cache is None else Cache(cache)
    bundle = Bundle.default() if bundle_path is None else Bundle.open(bundle_path)
    if bundle_path is None:
        _tell(bundle.name)
    return Segmenter(bundle, open_engine(engine, bundle, threads, precision=precision, cache=kept))


@functools.cache
def _tell(model: str) -> None:
    """Name the model that was taken because none was named, once in a process."""
    logging.getLogger("litemed").warning("model %s, which ships with litemed", model)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("litemed")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
