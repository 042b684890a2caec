"""Segments images and volumes with a bundle's model."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from litemed.runtime.boxes import Boxes
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case, check_spacing
from litemed.runtime.engines.protocol import BOXES_PER_CALL, Engine, Float
from litemed.runtime.errors import InputError
from litemed.runtime.inference import Inference
from litemed.runtime.interactive import EncodedImage
from litemed.runtime.merge import RunningMerge
from litemed.runtime.method import Method
from litemed.runtime.outputs.objects import ObjectStatistics, measure
from litemed.runtime.plan import Plan, covered
from litemed.runtime.planes import CrossPlanes
from litemed.runtime.predicted_iou import PredictedIou
from litemed.runtime.propagate import propagate
from litemed.runtime.refit import refit
from litemed.runtime.resize import LogitResizer

Labels = npt.NDArray[np.unsignedinteger]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Result:
    """What was segmented, and what it took.

    Attributes:
        labels: label map of the image's spatial shape, (H, W) or (D, H, W): i where box i is (1-based), 0 for
            the background; uint8 up to 255 boxes, uint16 above.
        seconds: wall-clock seconds by stage: preprocess, encode, decode, merge.
        encodings: how often the encoder ran: once for each slice, tile and plane.
        decodings: how many boxes were decoded; see `Plan.decodings`.
        boxes: how many the case has; the labels of some may have no pixel.
        untiled: how many small ones were segmented without a tile, for there were tiles enough.
        predicted_iou: float64 (N,), what the decoder holds the IoU of each box's mask to be, over the slices
            of a volume their mean weighted by the pixels there; NaN for a label without a pixel.
    """

    labels: Labels
    seconds: dict[str, float]
    encodings: int
    decodings: int
    boxes: int
    untiled: int
    predicted_iou: npt.NDArray[np.float64]

    def objects(self, case: Case) -> tuple[ObjectStatistics, ...]:
        """Return volume, extent, mean and so on of each object of the case that was segmented.

        Raises InputError where the values of the case's file, read again, cannot be.
        """
        return measure(case, self.labels, self.predicted_iou)


class Segmenter:
    """A bundle and the engine that its graphs are loaded in.

    Threads that call it at the same time take turns.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        """Keep a bundle, without its graphs' bytes, and the engine that was opened with it."""
        self.bundle = bundle.released()
        self.engine = engine
        self.lock = threading.RLock()  # whose owner uses the engine

    def segment(
        self,
        image: npt.ArrayLike,
        boxes: npt.ArrayLike,
        *,
        spacing: Sequence[float] | None = None,
        progress: Progress | None = None,
        **method: Any,
    ) -> Labels:
        """Return the label map of an image or a volume.

        Args:
            image: uint8, (H, W) grey, (H, W, 3) in the order R G B, or a volume of such
                slices, (D, H, W) or (D, H, W, 3).
            boxes: whole numbers, (N, 4) as x0 y0 x1 y1 for an image, (N, 6) as x0 y0 z0 x1 y1 z1 for a
                volume, in pixels and slices of the image, z0 and z1 both inclusive; see `Boxes.parse`.
            spacing: of a volume's slices, rows and columns in mm, if known; see `litemed.runtime.planes`.
            progress: is called with the slices, tiles and planes done and all after each.
            **method: the fields of `Method`, such as merge="argmax".

        Raises:
            InputError: the image is not of that kind, or a box is refused.
            UsageError: an unknown method.
            EngineError: as `run`.
        """
        how, array = Method(**method), _checked(image)
        case = Case("image", array, Boxes.parse(boxes, array.shape), _lengths(spacing))
        return self.run(case, how, progress=progress).labels

    def encode(self, image: npt.ArrayLike, *, spacing: Sequence[float] | None = None) -> EncodedImage:
        """Return an image or a volume that answers for many boxes, one after the other, encoded once.

        `image` and `spacing` are those of `segment`. Raises InputError and EngineError.
        """
        array, lengths = _checked(image), _lengths(spacing)
        if array.ndim not in (2, 3) and array.shape[3:] != (3,):
            raise InputError(
                f"image: has shape {array.shape}; give (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3)"
            )
        if lengths is not None:
            check_spacing(lengths, "image")
        return EncodedImage(self, array, lengths)

    def plan(self, case: Case, method: Method) -> Plan:
        """Return what will be encoded and decoded of a case."""
        method = method.with_decoders(self.engine.decoders)
        return Plan.of(case, method, self.bundle.manifest.input_size)

    def run(
        self,
        case: Case,
        method: Method | None = None,
        *,
        progress: Progress | None = None,
        last: bool = False,
    ) -> Result:
        """Segment a case.

        Args:
            case: image or volume with boxes.
            method: how; the default one if it is None.
            progress: is called with the slices, tiles and planes done and all after each.
            last: nothing is to be segmented after it for a while, so that memory is given back early; with
                `propagate` it is not.

        Raises:
            EngineError: the engine failed, or what it returned is not finite.
        """
        with self.lock:
            return self._run(case, method or Method(), progress, last)

    def _run(self, case: Case, method: Method, progress: Progress | None, last: bool) -> Result:
        plan = self.plan(case, method)
        labels = plan.blank_labels()
        inference = Inference(self.engine, plan.frame.size)
        predicted = PredictedIou(len(case.boxes))
        if method.propagate:
            steps = propagate(plan, labels, inference, predicted)
        else:
            steps = _merge_boxes(plan, labels, inference, predicted, method.merge == "nested", last)
        for done, total in steps:
            if progress:
                progress(done, total)
        return Result(
            labels.reshape(case.shape),
            inference.seconds,
            inference.encodings,
            inference.decodings,
            len(case.boxes),
            len(plan.untiled),
            predicted.mean(labels),
        )


def _checked(image: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return an image of a caller's, C-contiguous."""
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise InputError(
            f"image: has dtype {array.dtype}, not uint8; scale it to 0..255 first (CT by a window, "
            "MR and PET by percentiles)"
        )
    return np.ascontiguousarray(array)


def _lengths(spacing: Sequence[float] | None) -> tuple[float, ...] | None:
    try:
        return None if spacing is None else tuple(map(float, spacing))
    except (TypeError, ValueError) as error:
        raise InputError(f"image: spacing {spacing!r}; give z, y, x in mm") from error


def _merge_boxes(
    plan: Plan,
    labels: Labels,
    inference: Inference,
    predicted: PredictedIou,
    nested: bool,
    last_case: bool,
) -> Iterator[tuple[int, int]]:
    """Segment every slice that a box covers; yield the encodings done and all as they advance."""
    on_tiles = "decoder"
    if plan.tiles and "tile_decoder" in inference.engine.decoders:
        on_tiles = "tile_decoder"
        inference.engine.load_decoder(on_tiles)  # while the first slice is encoded
    planes: dict[int, CrossPlanes] = {}
    for box in np.flatnonzero(plan.plane_count).tolist():
        planes[box] = CrossPlanes(
            inference,
            plan.images,
            plan.xyxy[box],
            plan.z[box],
            plan.spacing,
            plan.frame,
            plan.plane_count[box],
        )
        yield inference.encodings, plan.encodings
    first, last = plan.z.T
    resizers = [
        LogitResizer(view.frame, view.rows.start, view.columns.start) for view in (plan.whole, *plan.tiles)
    ]
    for position in covered(first, last):
        merge = RunningMerge(labels[position], plan.nesting if nested else None, several=len(plan.tiles) > 0)
        slice_embedding = inference.encode(plan.images[position])
        for view, resizer in zip((plan.whole, *plan.tiles), resizers, strict=True):
            here = view.boxes[(first[view.boxes] <= position) & (position <= last[view.boxes])]
            is_tile = view is not plan.whole
            if is_tile and not len(here):
                continue
            embedding = slice_embedding
            if is_tile:
                embedding = inference.encode(plan.images[position, view.rows, view.columns])
            if last_case and inference.encodings == plan.encodings:
                inference.engine.rest_encoder()
            for chunk in merge.chunks(here, BOXES_PER_CALL):
                prompts, loose = plan.prompts(view, chunk, position), plan.refitted[chunk]
                tight = np.ones(len(chunk), np.bool_)
                if loose.any():
                    first_pass, _ = inference.decode(embedding, prompts[loose], "loose_decoder")
                    prompts[loose], tight[loose] = refit(first_pass, prompts[loose], view.frame)
                # That for tiles was tuned on tight boxes, and fills others.
                decoders = np.where(tight & is_tile, on_tiles, "decoder")
                logits, iou = _decode(inference, embedding, prompts, decoders)
                predicted.add(position, chunk, iou)
                if is_tile:
                    on_slice, _ = inference.decode(slice_embedding, plan.on_whole(view, prompts))
                with inference.timing("merge"):
                    if is_tile:
                        plan.average(view, logits, on_slice, decoders)
                    for plane, box in zip(logits, chunk.tolist(), strict=True):
                        if box in planes:
                            planes[box].correct(plane, position)
                    merge.add(resizer, logits, chunk + 1, None if plan.crops is None else plan.crops[chunk])
            yield inference.encodings, plan.encodings
        with inference.timing("merge"):
            merge.finish()


def _decode(
    inference: Inference, embedding: Float, prompts: Float, decoders: npt.NDArray[np.str_]
) -> tuple[Float, Float]:
    """Return logits and predicted IoU of prompts, each of the decoder that is named for it."""
    if len(names := np.unique(decoders)) == 1:
        return inference.decode(embedding, prompts, str(names[0]))
    size = inference.size
    logits, iou = np.empty((len(prompts), size, size), np.float32), np.empty(len(prompts), np.float32)
    for name in names:
        these = decoders == name
        logits[these], iou[these] = inference.decode(embedding, prompts[these], str(name))
    return logits, iou
