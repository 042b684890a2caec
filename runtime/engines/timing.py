"""Which of several engines and precisions is the fastest here: timed once, and kept in the user's cache.

What is kept holds for just these graphs, versions of litemed and the engines, CPU and number of threads;
any other is timed anew. To have it timed again, empty the cache folder.

Each candidate runs in a process of its own, so that none disturbs the next one, and neither the memory that
it takes nor a crash is the caller's:

    python -m litemed.runtime.engines.timing BUNDLE SHA256 ENGINE PRECISION THREADS SECONDS

prints how many seconds a slice takes. SHA256 is that of the bundle's manifest; no further run is begun when
SECONDS are over. Errors are one line on stderr and exit code 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.choice import Candidate, begin
from litemed.runtime.engines.cpu import cpu_identity
from litemed.runtime.engines.protocol import Engine
from litemed.runtime.errors import BundleError, LitemedError, OutputError
from litemed.runtime.precision import ENGINES

BUDGET_SECONDS = 20.0
"""After this long no further candidate is begun, if two are timed; each ends when its share of it is over,
but makes two runs in any case."""

TIMEOUT_SECONDS = 60.0
"""A candidate that takes longer to load and run twice is left out."""

BOXES = 6
"""How many boxes the slice has."""

RUNS = 3
"""Of these, after one that warms up, the fastest counts."""

Times = Mapping[Candidate, float | str]
"""Seconds of a slice by candidate; of one that could not be timed, why."""


def times_of(
    found: Sequence[Candidate], bundle: Bundle, threads: int, cache: Cache, tell: Callable[[str], None]
) -> Times:
    """Return how fast the candidates are: from the cache, or timed now and kept there."""
    times = kept_times(cache, bundle, found, threads)
    if times is None:
        tell(f"timing {len(found)} ways to run {bundle.name} on this CPU, once; the cache keeps the outcome")
        times = time_candidates(found, bundle, threads)
        if any(isinstance(outcome, float) for outcome in times.values()):
            try:
                keep_times(cache, bundle, found, threads, times)
            except OutputError as error:
                tell(f"they are not kept: {error}")
    return times


def time_candidates(found: Sequence[Candidate], bundle: Bundle, threads: int) -> Times:
    """Time candidates on one slice, one after the other; see `BUDGET_SECONDS`.

    Each gets the least of up to three runs, after one that warms it up. What else the machine is busy with
    slows some of them more than others, so it should have nothing else to do. One that fails is left out.
    """
    end = time.monotonic() + BUDGET_SECONDS
    times: dict[Candidate, float | str] = {}
    for number, candidate in enumerate(found):
        left = end - time.monotonic()
        if left <= 0 and sum(isinstance(outcome, float) for outcome in times.values()) > 1:
            times[candidate] = "there was no time left to try it"
            continue
        # -P: python -m would import from the working directory first, which may be a stranger's.
        command = [sys.executable, "-P", "-m", "litemed.runtime.engines.timing", bundle.path, bundle.digest]
        command += [candidate.engine, candidate.precision, threads, left / (len(found) - number)]
        try:
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            times[candidate] = f"it could not be timed: {error}"
            continue
        if done.returncode == 0:
            times[candidate] = float(done.stdout)
        else:
            last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
            times[candidate] = last
    return times


def kept_times(cache: Cache, bundle: Bundle, found: Sequence[Candidate], threads: int) -> Times | None:
    """Return what was kept of just these candidates; None if there is nothing."""
    kept = cache.load(*_depends_on(bundle, found, threads))
    return None if kept is None else dict(zip(found, json.loads(kept), strict=True))


def keep_times(cache: Cache, bundle: Bundle, found: Sequence[Candidate], threads: int, times: Times) -> None:
    """Keep what was timed. Raises OutputError if it cannot be written."""
    content = [times[candidate] for candidate in found]
    cache.store(json.dumps(content).encode(), *_depends_on(bundle, found, threads))


def _depends_on(bundle: Bundle, found: Sequence[Candidate], threads: int) -> tuple[str, ...]:
    manifest = bundle.manifest
    graphs = []
    for candidate in found:
        precision = manifest.precisions[candidate.precision]
        hashes = [manifest.graphs[key].sha256 for key in (precision.encoder, precision.decoder)]
        graphs.append([str(candidate), *hashes, *precision.bf16])
    versions = [_version(name) for name in ("litemed", *ENGINES)]
    return ("times", json.dumps(graphs), json.dumps(versions), str(threads), cpu_identity())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


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
    """Time one candidate, as the module says."""
    try:
        bundle = Bundle.open(path)
        if bundle.digest != digest:
            raise BundleError(f"{path}: was changed meanwhile; try again")
        engine = begin(Candidate(name, precision), bundle, int(threads))
        print(least_seconds(engine, bundle.manifest.input_size, float(seconds)))
    except LitemedError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
