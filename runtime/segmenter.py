"""Segments images and volumes with a bundle's model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.engines import Cache, open_engine
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine, Float
from litemed.runtime.errors import InputError
from litemed.runtime.inference import Inference, Timings
from litemed.runtime.merge import LogitResizer, RunningMerge, label_dtype
from litemed.runtime.nesting import Nesting, merge_rule
from litemed.runtime.preprocess import Frame, scale_boxes
from litemed.runtime.propagate import overwrite_in_image, propagate_in_volume

Labels = npt.NDArray[np.unsignedinteger]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """What was segmented, and what it took.

    Attributes:
        labels: label map of the image's spatial shape, (H, W) or (D, H, W): i where box i is (1-based), 0 for
            the background; uint8 up to 255 boxes, uint16 above.
        timings: seconds by stage.
        slices_encoded: how often the encoder ran.
        boxes_decoded: how many boxes were decoded; a box counts once for each of its slices.
    """

    labels: Labels
    timings: Timings
    slices_encoded: int
    boxes_decoded: int


class Segmenter:
    """A bundle and the engine that its graphs are loaded in. It takes one call at a time."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Keep a bundle, without its graphs' bytes, and the engine that was opened with it."""
        self.bundle = bundle.released()
        self.engine = engine

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> Segmenter:
        """Open a bundle folder, or the model that ships, and load it.

        See `Bundle.open`, `Bundle.default` and `open_engine` for the errors.
        """
        kept = None if cache is None else Cache(cache)
        if path is None:
            bundle = Bundle.default()
            logging.getLogger("litemed").info("model %s, which ships with litemed", bundle.name)
        else:
            bundle = Bundle.open(path)
        return cls(bundle, open_engine(engine, bundle, threads, precision=precision, cache=kept))

    def segment(
        self,
        image: npt.ArrayLike,
        boxes: npt.ArrayLike,
        *,
        merge: str | None = None,
        propagate: bool = False,
        crop_masks: bool = False,
        progress: Progress | None = None,
    ) -> Labels:
        """Return the label map of an image or a volume; see `run` for the other arguments and the errors.

        Args:
            image: uint8, (H, W) grey, (H, W, 3) in the order R G B, or a volume (D, H, W).
            boxes: whole numbers, (N, 4) as x0 y0 x1 y1 for an image, (N, 6) as x0 y0 z0 x1 y1 z1 for a
                volume, in pixels and slices of the image, z0 and z1 both inclusive; see `Boxes.parse`.

        Raises:
            InputError: the image is not of that kind, or a box is refused.
            UsageError: as `run`.
        """
        array = np.asarray(image)
        if array.dtype != np.uint8:
            raise InputError(
                f"image: has dtype {array.dtype}, not uint8; scale it to 0..255 first (CT by a window, "
                "MR and PET by percentiles)"
            )
        case = Case("image", np.ascontiguousarray(array), Boxes.parse(boxes, array.shape))
        return self.run(
            case, merge=merge, propagate=propagate, crop_masks=crop_masks, progress=progress
        ).labels

    def run(
        self,
        case: Case,
        *,
        merge: str | None = None,
        propagate: bool = False,
        crop_masks: bool = False,
        progress: Progress | None = None,
        last: bool = False,
    ) -> Result:
        """Segment a case.

        All boxes of a slice are decoded on one embedding and merged; in a volume every slice from a box's
        first to its last is prompted with its x and y.

        Args:
            case: image or volume with boxes.
            merge: "argmax": with a background of 0, the paper's method; "nested": the same, but a box that
                lies within another may take from it, see `litemed.runtime.nesting`. None: nested, or with
                `propagate` neither.
            propagate: go the published baseline's way instead, see `litemed.runtime.propagate`.
            crop_masks: whether a box's mask ends at the box (both ends inclusive, in volumes x and y).
                Source: `crop_mask` of YOLACT (Bolya et al., ICCV 2019).
            progress: is called with the slices done and all after each.
            last: nothing is to be segmented after it for a while, so that memory is given back early; with
                `propagate` it is not.

        Raises:
            EngineError: the engine failed, or what it returned is not finite.
            UsageError: an unknown rule of merging, or one beside `propagate`.
        """
        rule = merge_rule(merge, propagate)
        image, boxes = case.image, case.boxes
        height, width = case.shape[-2:]
        frame = Frame.of(height, width, self.bundle.manifest.input_size)
        inference = Inference(self.engine, frame.size)
        labels = np.zeros(case.shape, label_dtype(len(boxes)))
        prompts = scale_boxes(boxes.xyxy, frame)
        crops = boxes.xyxy if crop_masks else None
        volume, planes, z = image, labels, boxes.z
        if z is None:  # an image is its own and only slice
            volume, planes, z = image[np.newaxis], labels[np.newaxis], np.zeros((len(boxes), 2), np.int64)
        if not propagate:
            with inference.timing("merge"):
                nesting = Nesting.of(boxes.xyxy, z) if rule == "nested" else None
            _merge_slices(inference, volume, prompts, z, nesting, crops, frame, planes, progress, last)
        elif case.is_volume:
            propagate_in_volume(inference, volume, prompts, z, frame, planes, progress, crops)
        else:
            overwrite_in_image(inference, image, prompts, frame, labels, crops)
            if progress:
                progress(1, 1)
        return Result(labels, inference.timings(), inference.slices_encoded, inference.boxes_decoded)


def _merge_slices(
    inference: Inference,
    volume: npt.NDArray[np.uint8],
    prompts: Float,
    z: npt.NDArray[np.int64],
    nesting: Nesting | None,
    crops: npt.NDArray[np.int64] | None,
    frame: Frame,
    labels: Labels,
    progress: Progress | None,
    last_case: bool,
) -> None:
    """Segment every slice (H, W) or (H, W, 3) of `volume` that a box covers into its plane of `labels`."""
    first, last = z.T
    covered = [i for i in range(len(volume)) if ((first <= i) & (i <= last)).any()]
    resizer = LogitResizer(frame)
    for done, position in enumerate(covered, start=1):
        embedding = inference.encode(volume[position])
        if last_case and done == len(covered):
            inference.rest_encoder()
        merge = RunningMerge(resizer, labels[position], nesting)
        here = np.flatnonzero((first <= position) & (position <= last))
        for chunk in merge.chunks(here, BOXES_PER_CALL):
            logits = inference.decode(embedding, prompts[chunk])
            with inference.timing("merge"):
                merge.add(logits, chunk + 1, None if crops is None else crops[chunk])
        with inference.timing("merge"):
            merge.finish()
        if progress:
            progress(done, len(covered))
