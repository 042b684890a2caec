"""What an inference engine does for the runtime, and what all engines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import EngineError

BOXES_PER_CALL = 6
"""How many boxes the decoder graph is given at once.

Milliseconds a box and peak memory over the loaded decoder in MiB, for 2 / 4 / 6 / 8 / 16 boxes at once (2
threads, AMD EPYC 7003): OpenVINO 22.0 / 20.9 / 20.6 / 20.6 / 19.8 and 93 / 161 / 222 / 293 / 561, ONNX
Runtime (with its arena) 22.0 / 21.2 / 22.8 / 24.0 / 20.4 and 95 / 194 / 193 / 390 / 781.
"""

Float = NDArray[np.float32]


class Engine(Protocol):
    """A bundle's two graphs, loaded."""

    @property
    def name(self) -> str:
        """The engine's name, as `open_engine` takes it."""

    @property
    def version(self) -> str:
        """The version of the engine's package."""

    @property
    def threads(self) -> int:
        """How many threads it computes with."""

    @property
    def precision(self) -> str:
        """The name of the precision that it computes in, one of the bundle's."""

    @property
    def choice(self) -> str:
        """Why it was chosen, and why in this precision, in one line; empty if it was asked for so."""

    def ready(self) -> None:
        """Return once the graphs are loaded, which goes on behind the scenes until then.

        `encode` and `decode` wait by themselves. Raises EngineError if the engine does not accept the graphs.
        """

    def encode(self, image: Float) -> Float:
        """Return the embedding (1, 256, S/4, S/4) float32 of a network input (1, 3, S, S) float32 in [0, 1].

        Raises EngineError if the engine fails.
        """

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back, if the engine can; the next `encode` takes it anew.

        To be called when nothing is to be encoded for a while.
        """

    def decode(self, embedding: Float, boxes: Float) -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,), float32, of N >= 1 boxes on one embedding.

        `boxes` is float32 (N, 4), x0 y0 x1 y1 in pixels of the network's input. However many they are, the
        graph is given `BOXES_PER_CALL` at a time. Raises EngineError if the engine fails.
        """


def decode_in_chunks(
    decode: Callable[[Float, Float], tuple[Float, Float]], embedding: Float, boxes: Float
) -> tuple[Float, Float]:
    """Run `decode` on up to `BOXES_PER_CALL` boxes at a time and return all logits and IoUs.

    Raises EngineError if it returns arrays of other shapes than those of a decoder.
    """
    count, size = len(boxes), 4 * embedding.shape[-1]
    logits = iou = np.empty(0, np.float32)
    for start in range(0, count, BOXES_PER_CALL):
        chunk = slice(start, min(start + BOXES_PER_CALL, count))
        some_logits, some_iou = decode(embedding, boxes[chunk])
        found, wanted = (some_logits.shape, some_iou.shape), ((n := chunk.stop - start, size, size), (n,))
        if found != wanted:
            raise EngineError(
                f"the decoder returned arrays of {found}, not {wanted}; export the bundle again"
            )
        if n == count:
            return some_logits, some_iou
        if start == 0:
            logits, iou = np.empty((count, size, size), np.float32), np.empty(count, np.float32)
        logits[chunk], iou[chunk] = some_logits, some_iou
    return logits, iou


def failure(engine: str, error: Exception) -> EngineError:
    """Return the EngineError that tells of an engine's own exception, in one line."""
    text = " ".join(str(error).split())
    return EngineError(f"{engine} failed: {text[:300] or type(error).__name__}")
