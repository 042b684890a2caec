"""Print how many seconds one engine takes for a slice in one precision.

    python -m litemed.runtime.engines.time_one BUNDLE SHA256 ENGINE PRECISION THREADS SECONDS

SHA256 is that of the bundle's manifest; no further run is begun when SECONDS are over. Errors are one line on
stderr and exit code 1.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.engines.protocol import Engine
from litemed.runtime.errors import BundleError, LitemedError

BOXES = 6
"""How many boxes the slice has."""

RUNS = 3
"""Of these, after one that warms up, the fastest counts."""


def least_seconds(engine: Engine, size: int, seconds: float) -> float:
    """Return the fewest seconds that a slice of `size` x `size` pixels and its boxes took."""
    end = time.monotonic() + seconds
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    low = np.linspace(0, size / 2, BOXES, dtype=np.float32)
    boxes = np.stack([low, low, low + size / 4, low + size / 3], axis=1)
    engine.decode(engine.encode(image), boxes)
    least = math.inf
    for _ in range(RUNS):
        start = time.monotonic()
        engine.decode(engine.encode(image), boxes)
        now = time.monotonic()
        least = min(least, now - start)
        if now >= end:
            break
    return least


def main(path: str, digest: str, name: str, precision: str, threads: str, seconds: str) -> None:
    """Do what the module says."""
    try:
        bundle = Bundle.open(path)
        if bundle.digest != digest:
            raise BundleError(f"{path}: was changed meanwhile; try again")
        engine = open_engine(name, bundle, int(threads), precision=precision)
        print(least_seconds(engine, bundle.manifest.input_size, float(seconds)))
    except LitemedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
