"""Load a precision's two graphs at once, each in a thread of its own, while the caller goes on."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from litemed.runtime.memory import trim_heap
from litemed.runtime.precision import Precision

Loaded = TypeVar("Loaded")


class LoadingGraphs(Generic[Loaded]):
    """Encoder and decoder on their way; whoever asks for one waits for it."""

    def __init__(self, load: Callable[[str, str], Loaded], precision: Precision) -> None:
        """Begin to `load` both graphs, given role and key. What `load` raises, the attributes raise."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="litemed-load")
        self._encoder = pool.submit(load, "encoder", precision.encoder)
        self._decoder = pool.submit(load, "decoder", precision.decoder)
        pool.submit(self._tidy)
        pool.shutdown(wait=False)

    @property
    def encoder(self) -> Loaded:
        """The loaded encoder."""
        return self._encoder.result()

    @property
    def decoder(self) -> Loaded:
        """The loaded decoder."""
        return self._decoder.result()

    def _tidy(self) -> None:
        """Once both are loaded, return what loading has used to the system."""
        concurrent.futures.wait((self._encoder, self._decoder))
        trim_heap()

    def wait(self) -> None:
        """Return once both are loaded; raise what went wrong with the first that failed."""
        self._encoder.result()
        self._decoder.result()
