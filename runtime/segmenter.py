"""Segments images and volumes with a bundle's model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine
from litemed.runtime.errors import InputError
from litemed.runtime.inference import Inference
from litemed.runtime.merge import LogitResizer, RunningMerge
from litemed.runtime.nesting import Nesting, merge_rule
from litemed.runtime.propagate import propagate as propagate_boxes
from litemed.runtime.slices import Slices, covered

Labels = npt.NDArray[np.unsignedinteger]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """What was segmented, and what it took.

    Attributes:
        labels: label map of the image's spatial shape, (H, W) or (D, H, W): i where box i is (1-based), 0 for
            the background; uint8 up to 255 boxes, uint16 above.
        seconds: wall-clock seconds by stage: preprocess, encode, decode, merge.
        slices_encoded: how often the encoder ran.
        boxes_decoded: how many boxes were decoded; a box counts once for each of its slices.
    """

    labels: Labels
    seconds: dict[str, float]
    slices_encoded: int
    boxes_decoded: int


class Segmenter:
    """A bundle and the engine that its graphs are loaded in. It takes one call at a time."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Keep a bundle, without its graphs' bytes, and the engine that was opened with it."""
        self.bundle = bundle.released()
        self.engine = engine

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
        slices = Slices.of(case, self.bundle.manifest.input_size, crop_masks)
        inference = Inference(self.engine, slices.frame.size)
        if propagate:
            steps = propagate_boxes(slices, inference)
        else:
            with inference.timing("merge"):
                nesting = Nesting.of(case.boxes.xyxy, case.boxes.z) if rule == "nested" else None
            steps = _merge_boxes(slices, inference, nesting, last)
        for done, total in steps:
            if progress:
                progress(done, total)
        labels = slices.labels.reshape(case.shape)
        return Result(labels, inference.seconds, inference.slices_encoded, inference.boxes_decoded)


def _merge_boxes(
    slices: Slices, inference: Inference, nesting: Nesting | None, last_case: bool
) -> Iterator[tuple[int, int]]:
    """Segment every slice that a box covers; yield the slices done and all after each."""
    first, last = slices.z.T
    positions = covered(first, last)
    resizer = LogitResizer(slices.frame)
    for done, position in enumerate(positions, start=1):
        embedding = inference.encode(slices.images[position])
        if last_case and done == len(positions):
            inference.engine.rest_encoder()
        merge = RunningMerge(resizer, slices.labels[position], nesting)
        here = np.flatnonzero((first <= position) & (position <= last))
        for chunk in merge.chunks(here, BOXES_PER_CALL):
            logits = inference.decode(embedding, slices.prompts[chunk])
            with inference.timing("merge"):
                merge.add(logits, chunk + 1, None if slices.crops is None else slices.crops[chunk])
        with inference.timing("merge"):
            merge.finish()
        yield done, len(positions)
