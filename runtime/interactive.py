"""One image, encoded once and asked for as many boxes as a person draws."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.method import Method
from litemed.runtime.preprocess import preprocess

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Labels, Progress, Segmenter

KEPT_EMBEDDINGS = 64
"""How many embeddings an image keeps, those asked for last: 4 MiB each at input size 256."""


class EncodedImage:
    """An image or a volume that answers many times; made by `Segmenter.encode`.

    What was encoded once is kept: an image at once, slices of a volume, tiles and planes when they are first
    needed. It may be asked by several threads, which take turns.
    """

    def __init__(
        self, segmenter: Segmenter, image: npt.NDArray[np.uint8], spacing: tuple[float, ...] | None
    ) -> None:
        """Encode an image, uint8 (H, W) or (H, W, 3); of a volume (D, H, W) nothing yet."""
        self._image, self._spacing = image, spacing
        self._segmenter = copy.copy(segmenter)  # which shares its lock
        self._segmenter.engine = _Remembering(segmenter.engine)
        if image.ndim == 2 or image.shape[2] == 3:
            with segmenter.lock:
                self._segmenter.engine.encode(preprocess(image, segmenter.bundle.manifest.input_size)[0])

    def segment(self, boxes: npt.ArrayLike, *, progress: Progress | None = None, **method: Any) -> Labels:
        """Return the label map for some boxes, the same as `Segmenter.segment` gives.

        Args:
            boxes: (N, 4) or, of a volume, (N, 6), see `Boxes.parse`.
            progress: is called with the slices, tiles and planes done and all after each.
            **method: the fields of `Method`, such as merge="argmax".

        Raises:
            InputError: a box is refused.
            UsageError: an unknown method.
            EngineError: as `Segmenter.run`.
        """
        how = Method(**method)
        case = Case("image", self._image, Boxes.parse(boxes, self._image.shape), self._spacing)
        return self._segmenter.run(case, how, progress=progress).labels


class _Remembering(Engine):
    """An engine that encodes an input only once, for as long as there is room to keep what came of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.decoders = engine.decoders
        self._kept: OrderedDict[bytes, Float] = OrderedDict()

    def encode(self, image: Float) -> Float:
        key = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        if key not in self._kept:
            self._kept[key] = self._engine.encode(image)
            if len(self._kept) > KEPT_EMBEDDINGS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def load_decoder(self, name: str) -> None:
        self._engine.load_decoder(name)

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        return self._engine.decode(embedding, boxes, decoder)
