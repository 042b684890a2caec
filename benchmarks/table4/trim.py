"""A case with less to do, and what its time says of the whole: for baselines that take too long.

A trimmed case keeps its image, so reading and writing cost the same; of its boxes, each keeps some slices
about its middle, in an image the first boxes are kept. The time of the whole follows from the stages, each in
proportion to what it works on: preprocessing and encoding to the slices encoded, decoding and merging to the
boxes decoded, all else (start-up, reading, writing) unchanged.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from litemed.benchmarks.table4.stages import CaseTiming
from litemed.runtime.case import Case


def trimmed_boxes(case: Case, prompts: int) -> NDArray[np.int64] | None:
    """Return boxes of a case, (n, 4) or (n, 6) as in the npz, with at most `prompts` of box and slice.

    None if it has no more than that as it is. At least one box keeps one slice.
    """
    xyxy, z = case.boxes.xyxy, case.boxes.z
    if z is None:
        return xyxy[:prompts] if len(xyxy) > prompts else None
    spans = z[:, 1] - z[:, 0] + 1
    if spans.sum() <= prompts:
        return None
    kept = min(len(xyxy), prompts)
    length = np.minimum(spans, prompts // kept)[:kept]
    middle = (z[:, 1] - z[:, 0])[:kept] // 2 + z[:kept, 0]
    # The middle of the trimmed range must be the slice that was the middle: the baseline starts there.
    first = middle - (length - 1) // 2
    return np.column_stack([xyxy[:kept, :2], first, xyxy[:kept, 2:], first + length - 1])


def extrapolate(seconds: float, measured: CaseTiming, slices: int, boxes: int) -> tuple[float, CaseTiming]:
    """Return what the whole case would take, in all and by stage.

    Args:
        seconds: that the trimmed case took.
        measured: by stage, of the trimmed case.
        slices: that the whole case has the encoder run.
        boxes: that the whole case has decoded.
    """
    factors = {
        "preprocess": slices / measured.slices,
        "encode": slices / measured.slices,
        "decode": boxes / measured.boxes,
        "merge": boxes / measured.boxes,
    }
    stages = {stage: value * factors.get(stage, 1.0) for stage, value in measured.stages.items()}
    more = sum(stages.values()) - sum(measured.stages.values())
    return seconds + more, CaseTiming(measured.case, stages, slices, boxes)
