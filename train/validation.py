"""How well the network segments the validation slices: DSC by modality.

In float32, the way the runtime would, from preprocessing to merging; objects are prompted with tight boxes.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.boxes import scale_boxes
from litemed.runtime.dice import dice_by_label
from litemed.runtime.errors import InputError
from litemed.runtime.merge import RunningMerge, label_dtype
from litemed.runtime.nesting import Nesting
from litemed.runtime.preprocess import preprocess
from litemed.runtime.resize import LogitResizer
from litemed.train.config import Validation
from litemed.train.dataset import SliceSource
from litemed.train.prepare.objects import boxes_of, number

BOXES_AT_ONCE = 32  # bounds the memory of the decoder: about 70 MB a box at 256 x 256 in float32


def validation_slices(source: SliceSource, per_modality: int) -> list[int]:
    """Return the numbers of the slices to score: at most `per_modality` of each (0: all), evenly spread."""
    chosen: list[int] = []
    for indices in source.indices_by_modality().values():
        count = min(per_modality or len(indices), len(indices))
        chosen += indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)].tolist()
    return chosen


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # the number of boxes differs: each would be compiled anew
def label_map(
    model: LiteMedSAM, image: NDArray[np.uint8], boxes: NDArray[np.int64], device: torch.device
) -> NDArray[np.unsignedinteger]:
    """Segment a slice as the runtime does: the label map (h, w) in which box i has label i.

    model: in evaluation mode, on the device. image: uint8 (h, w) or (h, w, 3). boxes: int64 (N, 4), x0 y0 x1
    y1 in pixels of the slice.
    """
    network_input, frame = preprocess(image, model.size)
    embedding = model.encode(torch.from_numpy(network_input).to(device))
    prompts, resizer = torch.from_numpy(scale_boxes(boxes, frame)).to(device), LogitResizer(frame)
    labels = np.zeros(image.shape[:2], label_dtype(len(boxes)))
    merge = RunningMerge(labels, Nesting.of(boxes))
    for chunk in merge.chunks(np.arange(len(boxes)), BOXES_AT_ONCE):
        logits, _ = model.decode(embedding, prompts[chunk])
        merge.add(resizer, logits[:, 0].cpu().numpy(), chunk + 1)
    merge.finish()
    return labels


def validate(
    model: LiteMedSAM, source: SliceSource, settings: Validation, device: torch.device
) -> tuple[dict[str, float], int]:
    """Return the mean DSC in [0, 1] by modality, and how many slices could not be used.

    A slice's DSC is the mean over its objects, a modality's the mean over its slices. The network is left in
    evaluation mode.
    """
    dsc: dict[str, list[float]] = {}
    skipped = 0
    model.eval()
    for slice_number in validation_slices(source, settings.slices_per_modality):
        try:
            image, labels = source[slice_number]
            if not len(objects := number(labels)):
                raise InputError("no object")
        except InputError:
            skipped += 1
            continue
        height, width = image.shape[:2]
        boxes = np.minimum(boxes_of(objects), (width, height) * 2)
        found = label_map(model, image, boxes, device)
        dice = float(dice_by_label(found, objects.labels, len(objects)).mean())
        dsc.setdefault(source.info(slice_number).modality, []).append(dice)
    return {modality: sum(values) / len(values) for modality, values in dsc.items()}, skipped
