"""The network at work on one case: encodes slices and decodes boxes, counting and timing what it does."""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.errors import EngineError
from litemed.runtime.preprocess import preprocess

STAGES = ("preprocess", "encode", "decode", "merge")


class Inference:
    """One case's use of an engine.

    Attributes:
        engine: what computes.
        size: longest side of the network's input, in pixels.
        encodings: how often the encoder ran so far.
        decodings: how many boxes were decoded so far; a box counts once for each of its slices.
        seconds: wall-clock seconds so far by stage, one of `STAGES`.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        """Use `engine` on inputs of `size` x `size` pixels."""
        self.engine = engine
        self.encodings = 0
        self.decodings = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.size = size

    def encode(self, image: NDArray[np.uint8]) -> Float:
        """Return the embedding of one image or slice, uint8 (H, W) or (H, W, 3)."""
        with self.timing("preprocess"):
            network_input, _ = preprocess(np.ascontiguousarray(image), self.size)
        with self.timing("encode"):
            embedding = self.engine.encode(network_input)
        self.encodings += 1
        return embedding

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,) of boxes (N, 4), float32.

        The boxes are in pixels of the network's input, `decoder` is one of the engine's `decoders`. Raises
        EngineError if a logit is not finite.
        """
        with self.timing("decode"):
            logits, iou = self.engine.decode(embedding, boxes, decoder)
            if not np.isfinite(logits).all():
                raise EngineError("the decoder returned logits that are not finite; export the bundle again")
        self.decodings += len(boxes)
        return logits, iou

    @contextlib.contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Add the time spent within to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start
