"""The network at work on one case: encodes slices and decodes boxes, counting and timing what it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.preprocess import preprocess


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one case by stage."""

    preprocess: float
    encode: float
    decode: float
    merge: float

    @property
    def total(self) -> float:
        """All stages together."""
        return self.preprocess + self.encode + self.decode + self.merge


class Inference:
    """One case's use of an engine.

    `slices_encoded` and `boxes_decoded` (a box counts once for each slice) say what was done so far.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        """Use `engine` on inputs of `size` x `size` pixels."""
        self.slices_encoded = 0
        self.boxes_decoded = 0
        self._engine = engine
        self._size = size
        self._seconds = dict.fromkeys(("preprocess", "encode", "decode", "merge"), 0.0)

    def encode(self, image: NDArray[np.uint8]) -> Float:
        """Return the embedding of one image or slice, uint8 (H, W) or (H, W, 3)."""
        with self.timing("preprocess"):
            network_input, _ = preprocess(image, self._size)
        with self.timing("encode"):
            embedding = self._engine.encode(network_input)
        self.slices_encoded += 1
        return embedding

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back; see `Engine.rest_encoder`."""
        self._engine.rest_encoder()

    def decode(self, embedding: Float, boxes: Float) -> Float:
        """Return the logits (N, S, S) of boxes (N, 4), float32, in pixels of the network's input."""
        with self.timing("decode"):
            logits, _ = self._engine.decode(embedding, boxes)
        self.boxes_decoded += len(boxes)
        return logits

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent within to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - start

    def timings(self) -> Timings:
        """Return the seconds so far."""
        return Timings(**self._seconds)
