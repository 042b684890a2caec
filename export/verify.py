"""Prove that a bundle computes what the PyTorch model computes.

All graphs are run by every engine through the runtime's own code, on images and boxes drawn from a fixed
seed, and compared with PyTorch: shapes first, then values, then the masks.
"""

import copy
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from litemed.export.graphs import DECODER_GRAPHS, ExportError
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.engines.protocol import BACKGROUND, FOREGROUND, NOT_A_POINT, Engine
from litemed.runtime.errors import EngineError
from litemed.runtime.precision import ENGINES
from litemed.runtime.preprocess import preprocess

BOX_COUNTS = (1, 2, 17, 241)
QUICK_BOX_COUNTS = (1, 2)
MANY = 32  # more boxes than this are decoded on the first image only: they cost minutes
MAX_ABS_DIFF = 1e-4  # of embeddings and logits, relative to the largest value where that exceeds 1
# Trained weights can be badly conditioned at a few positions: PyTorch's own float32 was then seen 1e-3 away
# from float64, and an engine 3e-3. So a difference is also let pass that is of the order of that rounding.
MAX_ROUNDINGS = 10.0
MIN_MASK_IOU = 0.999
COMPACT = "compact"  # the stage of graphs whose weights were rounded to float16: their masks alone decide
MIN_COMPACT_IOU = 0.99
CHUNK = 16  # boxes that PyTorch decodes at once; 241 would take 7 GB

Float = NDArray[np.float32]


class VerificationError(ExportError):
    """An exported graph does not reproduce the PyTorch model."""


@dataclass(frozen=True)
class Parity:
    """One comparison with PyTorch."""

    # "encoder", a decoder or, with these prompts, "points" or "mask" (on PyTorch's embedding), or "both",
    # the encoder and "decoder" on its embedding.
    graph: str
    stage: str  # "exported" (as torch wrote it), "simplified" or "compact" (with weights in float16)
    engine: str
    boxes: int | None  # how many prompts were decoded at once; None for the encoder
    max_abs_diff: float  # largest of the embedding or the logits over all images
    largest: float  # absolute value of the reference
    rounding: float = 0.0  # how far PyTorch's float32 is from its float64, for the encoder
    mask_iou: float | None = None  # of all masks (logits > 0) together; None for the encoder

    def fault(self) -> str | None:
        """Say what is wrong with it, or None."""
        boxes = f", {self.boxes} boxes" if self.boxes else ""
        where = f"{self.stage} {self.graph} on {self.engine}{boxes}"
        allowed = max(MAX_ABS_DIFF * max(1.0, self.largest), MAX_ROUNDINGS * self.rounding)
        compact = self.stage == COMPACT
        if (self.graph == "both" or compact) and math.isfinite(self.max_abs_diff):
            allowed = math.inf  # the decoder magnifies the encoder's rounding; the masks decide
        least = MIN_COMPACT_IOU if compact else MIN_MASK_IOU
        if not self.max_abs_diff <= allowed:  # also true of NaN
            return f"{where}: differs by {self.max_abs_diff:.2g}, more than {allowed:.2g}"
        if self.mask_iou is not None and self.mask_iou < least:
            return f"{where}: mask IoU {self.mask_iou:.5f} is below {least}"
        return None


class Reference(NamedTuple):
    """What PyTorch computes for one image and the most boxes."""

    image: Float  # (1, 3, S, S)
    embedding: Float  # (1, 256, S/4, S/4)
    rounding: float  # largest absolute difference of that embedding from PyTorch's in float64
    boxes: Float  # (N, 4), input pixels
    points: tuple[Float, Float]  # of four prompts, as `Engine.decode_points` takes them
    mask: Float  # (S, S), logits, given with the first box
    # Logits (N, S, S) and IoU (N,), by the decoder's name for boxes, and "points" and "mask".
    outputs: Mapping[str, tuple[Float, Float]]


def references(models: Mapping[str, LiteMedSAM], count: int) -> Iterator[Reference]:
    """Run PyTorch on two images of noise with `count` random boxes each, at most `MANY` on the second.

    `models` are what `Checkpoint.models` gives.
    """
    model = models["decoder"]
    rng = np.random.default_rng(0)
    exact = copy.deepcopy(model.image_encoder).double()
    for shape, boxes_here in (((512, 512), count), ((300, 420), min(count, MANY))):
        noise = rng.uniform(0, 255, (*shape, 3)).astype(np.float32)
        image, frame = preprocess(cv2.GaussianBlur(noise, (0, 0), 3).astype(np.uint8), model.size)
        limit = np.array([frame.scaled_width, frame.scaled_height])
        corner = rng.integers(0, np.maximum(limit - 8, 1), (boxes_here, 2))
        far = np.minimum(corner + rng.integers(4, model.size // 2, (boxes_here, 2)), limit - 1)
        boxes = np.concatenate([corner, far], axis=1).astype(np.float32)
        with torch.inference_mode():
            embedding = model.encode(torch.from_numpy(image))
            rounding = float((exact(torch.from_numpy(image).double()) - embedding).abs().max())
            outputs = {}
            for name, one in models.items():
                parts = [one.decode(embedding, chunk) for chunk in torch.from_numpy(boxes).split(CHUNK)]
                logits, iou = (torch.cat([part[i][:, 0] for part in parts]).numpy() for i in range(2))
                outputs[name] = logits, iou
            points = rng.uniform(0, model.size, (4, 3, 2)).astype(np.float32)
            kinds = rng.choice([NOT_A_POINT, BACKGROUND, FOREGROUND], (4, 3)).astype(np.float32)
            prompts = torch.from_numpy(points), torch.from_numpy(kinds)
            mask = cv2.GaussianBlur(rng.normal(0, 50, (model.size, model.size)), (0, 0), 5).astype(np.float32)
            of_mask = torch.from_numpy(mask[np.newaxis, np.newaxis])
            for name, found in {
                "points": model.decode(embedding, points=prompts),
                "mask": model.decode(embedding, torch.from_numpy(boxes[:1]), masks=of_mask),
            }.items():
                outputs[name] = found[0][:, 0].numpy(), found[1][:, 0].numpy()
        padded = np.pad(points, ((0, 0), (0, 1), (0, 0))), np.pad(kinds, ((0, 0), (0, 1)), constant_values=-1)
        yield Reference(image, embedding.numpy(), rounding, boxes, padded, mask, outputs)


def measure(
    folder: pathlib.Path,
    stage: str,
    expected: Sequence[Reference],
    counts: Sequence[int],
    progress: Callable[[str], None] = lambda line: None,
) -> list[Parity]:
    """Run a bundle on every engine and compare it with PyTorch.

    `stage` is for the record; each of the `counts` of boxes is decoded on the images that have so many.

    Raises:
        VerificationError: an engine refuses the graphs or returns another shape.
    """
    bundle = Bundle.open(folder)
    found = []
    for name in ENGINES:
        progress(f"verifying the {stage} graphs with {name}")
        try:
            engine = open_engine(name, bundle)
            embeddings = [engine.encode(r.image) for r in expected]
            diff, largest = _difference(embeddings, [r.embedding for r in expected])
            rounding = max(r.rounding for r in expected)
            found.append(Parity("encoder", stage, name, None, diff, largest, rounding))
            own = list(zip(embeddings, expected, strict=True))
            given = [(r.embedding, r) for r in expected]
            both = max(n for n in counts if n <= MANY)
            decoders = [(k, n, given) for k in expected[0].outputs if k in DECODER_GRAPHS for n in counts]
            others = [("points", 4, given), ("mask", 1, given), ("both", both, own)]
            for prompt, count, inputs in (*decoders, *others):
                able = [
                    (embedding, r) for embedding, r in inputs if prompt == "points" or len(r.boxes) >= count
                ]
                decoded = [_decode(engine, prompt, count, *one) for one in able]
                outputs = [r.outputs["decoder" if prompt == "both" else prompt] for _, r in able]
                logits, wanted = [one for one, _ in decoded], [one[:count] for one, _ in outputs]
                diff, largest = _difference(logits, wanted)
                of_iou, _ = _difference([iou for _, iou in decoded], [iou[:count] for _, iou in outputs])
                masks = [(a > 0, b > 0) for a, b in zip(logits, wanted, strict=True)]
                union = sum(int((a | b).sum()) for a, b in masks)
                mask_iou = sum(int((a & b).sum()) for a, b in masks) / union if union else 1.0
                diff = float(np.maximum(diff, of_iou))  # which hands NaN on, where max() would drop it
                graph = DECODER_GRAPHS.get(prompt, prompt)
                found.append(Parity(graph, stage, name, count, diff, largest, mask_iou=mask_iou))
        except (EngineError, VerificationError) as error:
            raise VerificationError(f"{stage} graphs on {name}: {error}") from error
    return found


def _decode(engine: Engine, prompt: str, count: int, embedding: Float, r: Reference) -> tuple[Float, Float]:
    if prompt == "points":
        return engine.decode_points(embedding, *r.points)
    if prompt == "mask":
        return engine.decode(embedding + engine.encode_mask(r.mask), r.boxes[:1])
    return engine.decode(embedding, r.boxes[:count], "decoder" if prompt == "both" else prompt)


def judge(found: Sequence[Parity]) -> None:
    """Raise VerificationError, one message of all that is wrong, if measurements miss a bound."""
    faults = [fault for parity in found if (fault := parity.fault())]
    if faults:
        raise VerificationError(
            f"{len(faults)} of {len(found)} comparisons with PyTorch fail: " + "; ".join(faults)
        )


def _difference(found: Sequence[Float], wanted: Sequence[Float]) -> tuple[float, float]:
    """Return the largest absolute difference, NaN if there is one, and the largest value that is wanted."""
    pairs = list(zip(found, wanted, strict=True))
    if wrong := [f"{a.shape} instead of {b.shape}" for a, b in pairs if a.shape != b.shape]:
        raise VerificationError(f"a graph returns {', '.join(wrong)}")
    return float(np.max([np.abs(a - b).max() for a, b in pairs])), float(max(np.abs(b).max() for b in wanted))
