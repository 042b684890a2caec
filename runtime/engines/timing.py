"""Which of several engines and precisions is the fastest here: timed once, and kept in the user's cache.

What is kept holds for just these graphs, versions of litemed and the engines, CPU and number of threads;
any other is timed anew. To have it timed again, empty the cache folder.

Each candidate runs in a process of its own, so that none disturbs the next one, and neither the memory that
it takes nor a crash is the caller's (see `litemed.runtime.engines.time_one`).
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.engines.choice import Candidate, Reasons
from litemed.runtime.engines.cpu import cpu_identity
from litemed.runtime.precision import ENGINES

BUDGET_SECONDS = 20.0
"""After this long no further candidate is begun, if two are timed; each ends when its share of it is over,
but makes two runs in any case."""

TIMEOUT_SECONDS = 60.0
"""A candidate that takes longer to load and run twice is left out."""

_TIME_ONE = "litemed.runtime.engines.time_one"


@dataclass(frozen=True)
class Times:
    """Seconds of a slice by candidate, and why the others have none."""

    seconds: Mapping[Candidate, float]
    left_out: Reasons


def time_candidates(found: Sequence[Candidate], bundle: Bundle, threads: int) -> Times:
    """Time candidates on one slice, one after the other; see `BUDGET_SECONDS`.

    Each gets the least of up to three runs, after one that warms it up. What else the machine is busy with
    slows some of them more than others, so it should have nothing else to do. One that fails is left out.
    """
    end = time.monotonic() + BUDGET_SECONDS
    seconds: dict[Candidate, float] = {}
    left_out: dict[Candidate, str] = {}
    for number, candidate in enumerate(found):
        left = end - time.monotonic()
        if len(seconds) > 1 and left <= 0:
            left_out[candidate] = "there was no time left to try it"
            continue
        # -P: python -m would import from the working directory first, which may be a stranger's.
        command = [sys.executable, "-P", "-m", _TIME_ONE, bundle.path, bundle.digest]
        command += [candidate.engine, candidate.precision, threads, left / (len(found) - number)]
        try:
            done = subprocess.run(
                [str(part) for part in command], capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            left_out[candidate] = f"it could not be timed: {error}"
            continue
        if done.returncode == 0:
            seconds[candidate] = float(done.stdout)
        else:
            last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
            left_out[candidate] = last
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
