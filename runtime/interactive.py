"""One image, encoded once and asked for as many boxes as a person draws."""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes, is_image
from litemed.runtime.case import Case
from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.merge import RunningMerge, label_dtype
from litemed.runtime.method import Method
from litemed.runtime.points import Prompts
from litemed.runtime.preprocess import preprocess
from litemed.runtime.resize import LogitResizer

if TYPE_CHECKING:
    from litemed.runtime.segmenter import Labels, Progress, Segmenter

KEPT_EMBEDDINGS = 64
"""How many embeddings an image keeps, those asked for last: 4 MiB each at input size 256."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network answers to the prompts of N objects on an image or a slice.

    Attributes:
        labels: (H, W), i where object i is (1-based), 0 for the background; of several that claim a pixel the
            one with the highest logit has it. uint8 up to 255 objects, uint16 above.
        logits: float32 (N, S, S), each object's by itself in the network's frame: what `masks` of the next
            call takes.
        iou: float32 (N,), how good the network believes each mask to be, as IoU.
    """

    labels: Labels
    logits: Float
    iou: Float


class EncodedImage:
    """An image or a volume that answers many times; made by `Segmenter.encode`.

    What was encoded once is kept: an image at once, slices of a volume, tiles and planes when they are first
    needed. It may be asked by several threads, which take turns.
    """

    def __init__(
        self, segmenter: Segmenter, image: npt.NDArray[np.uint8], spacing: tuple[float, ...] | None
    ) -> None:
        """Encode an image, uint8 (H, W) or (H, W, 3); of a volume nothing yet."""
        self._image, self._spacing = image.copy(), spacing  # the caller may draw on theirs
        self._segmenter = copy.copy(segmenter)  # which shares its lock
        self._segmenter.engine = _Remembering(segmenter.engine)
        if is_image(image.shape):
            with segmenter.lock:
                self._segmenter.engine.encode(preprocess(image, segmenter.bundle.manifest.input_size)[0])

    def segment(
        self,
        boxes: npt.ArrayLike | None = None,
        *,
        points: Sequence[npt.ArrayLike] | None = None,
        z: int | None = None,
        progress: Progress | None = None,
        **method: Any,
    ) -> Labels:
        """Return the label map for some boxes, the same as `Segmenter.segment` gives, or for points.

        Args:
            boxes: (N, 4) or, of a volume, (N, 6), see `Boxes.parse`.
            points: as `predict` takes them, with `boxes` (N, 4) and `z`; the label map is then that of the
                prediction, of a volume without anything on the other slices.
            z: the slice of a volume on which the points lie.
            progress: is called with the slices, tiles and planes done and all after each.
            **method: the fields of `Method`, such as merge="argmax"; of boxes alone.

        Raises:
            InputError: a prompt is refused.
            UsageError: an unknown method, or one beside points.
            EngineError: as `Segmenter.run`.
        """
        if points is not None:
            if method:
                raise UsageError(f"{', '.join(method)}: is for boxes alone, not beside points")
            labels = self.predict(boxes, points=points, z=z).labels
            if z is None:
                return labels
            volume = np.zeros(self._image.shape[:3], labels.dtype)
            volume[z] = labels
            return volume
        if boxes is None or z is not None:
            raise UsageError("segment: give boxes, or points and for a volume the slice z that they lie on")
        how = Method(**method)
        case = Case("image", self._image, Boxes.parse(boxes, self._image.shape), self._spacing)
        return self._segmenter.run(case, how, progress=progress).labels

    def predict(
        self,
        boxes: npt.ArrayLike | None = None,
        *,
        points: Sequence[npt.ArrayLike] | None = None,
        masks: Sequence[npt.ArrayLike | None] | None = None,
        z: int | None = None,
    ) -> Prediction:
        """Return what the network answers to prompts on the whole image, or on one slice of a volume.

        Nothing is added to it: neither tiles nor second passes nor nested boxes.

        Args:
            boxes: (N, 4), x0 y0 x1 y1 in pixels, one for each object; None: points alone.
            points: of each object a table (P, 3) of x y in pixels and 1 in the object or 0 outside of it.
            masks: of each object its `Prediction.logits` of an earlier call, to be corrected, or None.
            z: the slice of a volume; of an image None.

        Raises:
            InputError: a prompt is refused, or there is no such slice.
            EngineError: the engine fails, or the bundle takes no masks.
        """
        if isinstance(z, bool) or not (z is None or isinstance(z, Integral)):
            raise InputError(f"z: {z!r}; give the number of a slice")
        flat = is_image(self._image.shape)
        if flat != (z is None) or (z is not None and not 0 <= z < len(self._image)):
            wanted = "an image has no slices" if flat else f"give one from 0 to {len(self._image) - 1}"
            raise InputError(f"z: {z}; {wanted}")
        size, engine = self._segmenter.bundle.manifest.input_size, self._segmenter.engine
        network_input, frame = preprocess(self._image if z is None else self._image[z], size)
        prompts = Prompts.parse(frame, boxes, points, masks)
        with self._segmenter.lock:
            logits, iou = prompts.decode(engine, engine.encode(network_input))
        labels = np.zeros((frame.height, frame.width), label_dtype(len(prompts)))
        merge = RunningMerge(labels)
        merge.add(LogitResizer(frame), logits, np.arange(1, len(prompts) + 1), None)
        merge.finish()
        return Prediction(labels, logits, iou)


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

    def encode_mask(self, mask: Float) -> Float:
        return self._engine.encode_mask(mask)

    def decode_points(
        self, embedding: Float, points: Float, labels: Float, decoder: str = "decoder"
    ) -> tuple[Float, Float]:
        return self._engine.decode_points(embedding, points, labels, decoder)

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        return self._engine.decode(embedding, boxes, decoder)
