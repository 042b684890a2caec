"""Which of several engines and precisions is the fastest here: timed once, and kept in the user's cache.

What is kept holds for just these graphs, versions of litemed and the engines, CPU and number of threads;
any other is timed anew. To have it timed again, empty the cache folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.choice import Candidate, Reasons
from litemed.runtime.engines.cpu import cpu_identity
from litemed.runtime.engines.protocol import Engine
from litemed.runtime.errors import EngineError
from litemed.runtime.precision import ENGINES

BUDGET_SECONDS = 10.0
"""After this long no further candidate is begun, and the one at hand is ended with its next run."""

BOXES = 6
"""How many boxes the slice has that is timed."""

_RUNS = 3


@dataclass(frozen=True)
class Times:
    """Seconds of a slice by candidate, and why the others have none."""

    seconds: Mapping[Candidate, float]
    left_out: Reasons


def time_candidates(found: Sequence[Candidate], begin: Callable[[Candidate], Engine], size: int) -> Times:
    """Time candidates on a slice of `size` x `size` pixels, one after the other; see `BUDGET_SECONDS`.

    Each gets the least of up to three runs, after one that warms it up. What else the machine is busy with
    slows some of them more than others, so it should have nothing else to do. One that fails is left out.
    """
    end = time.perf_counter() + BUDGET_SECONDS
    seconds: dict[Candidate, float] = {}
    left_out: dict[Candidate, str] = {}
    for candidate in found:
        if seconds and time.perf_counter() >= end:
            left_out[candidate] = "there was no time left to try it"
            continue
        try:
            seconds[candidate] = _least_seconds(begin(candidate), size, end)
        except EngineError as error:
            left_out[candidate] = str(error)
    return Times(seconds, left_out)


def kept_times(cache: Cache, bundle: Bundle, found: Sequence[Candidate], threads: int) -> Times | None:
    """Return what was kept of just these candidates; None if there is nothing."""
    kept = cache.load(*_depends_on(bundle, found, threads))
    if kept is None:
        return None
    content, named = json.loads(kept), {str(candidate): candidate for candidate in found}
    return Times(
        {named[name]: seconds for name, seconds in content["seconds"].items()},
        {named[name]: why for name, why in content["left_out"].items()},
    )


def keep_times(cache: Cache, bundle: Bundle, found: Sequence[Candidate], threads: int, times: Times) -> None:
    """Keep what was timed. Raises OutputError if it cannot be written."""
    content = {
        "seconds": {str(candidate): seconds for candidate, seconds in times.seconds.items()},
        "left_out": {str(candidate): why for candidate, why in times.left_out.items()},
    }
    cache.store(json.dumps(content).encode(), *_depends_on(bundle, found, threads))


def _least_seconds(engine: Engine, size: int, end: float) -> float:
    image = np.random.default_rng(0).random((1, 3, size, size), np.float32)
    low = np.linspace(0, size / 2, BOXES, dtype=np.float32)
    boxes = np.stack([low, low, low + size / 4, low + size / 3], axis=1)
    engine.decode(engine.encode(image), boxes)
    least = math.inf
    for _ in range(_RUNS):
        start = time.perf_counter()
        engine.decode(engine.encode(image), boxes)
        now = time.perf_counter()
        least = min(least, now - start)
        if now >= end:
            break
    return least


def _depends_on(bundle: Bundle, found: Sequence[Candidate], threads: int) -> tuple[str, ...]:
    manifest = bundle.manifest
    graphs = []
    for candidate in found:
        precision = manifest.precisions[candidate.precision]
        hashes = [manifest.graphs[key].sha256 for key in (precision.encoder, precision.decoder)]
        graphs.append([str(candidate), *hashes])
    versions = [_version(name) for name in ("litemed", *ENGINES)]
    return ("times", json.dumps(graphs), json.dumps(versions), str(threads), cpu_identity())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
