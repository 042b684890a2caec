"""How well the network segments what it is validated on: DSC by modality, of slices and of whole volumes.

In float32 and by the runtime, in which the network takes an engine's place. On a slice each object is
prompted with its tight box, in a volume with one box for all of its slices.
"""

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.boxes import Boxes
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label
from litemed.runtime.engines.protocol import Engine, Float
from litemed.runtime.errors import InputError
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.npz import NpzReader
from litemed.runtime.method import Method
from litemed.runtime.plan import Plan
from litemed.runtime.segmenter import Segmenter
from litemed.train.config import Validation
from litemed.train.dataset import Data, SliceSource
from litemed.train.prepare.objects import boxes_of, number

# One encoding for each slice: planes and tiles would take several times as long.
METHOD: Final = Method(volume="ellipsoid", zoom="off", box_fit="tight")

Example = tuple[Case, NDArray[Any]]


class Stopped(Exception):
    """Whoever asked for the scores does not want them any more."""


class NetworkEngine(Engine):
    """A network in evaluation mode on a device, in the place of a bundle's graphs."""

    def __init__(self, model: LiteMedSAM, device: torch.device) -> None:
        """Keep the network."""
        self._model, self._device = model, device

    def encode(self, image: Float) -> Float:
        """Return what `Engine.encode` does."""
        return np.asarray(self._model.encode(self._placed(image)).cpu())

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        """Return what `Engine.decode` does; there is one decoder only."""
        logits, iou = self._model.decode(self._placed(embedding), self._placed(boxes))
        return np.asarray(logits[:, 0].cpu()), np.asarray(iou[:, 0].cpu())

    def _placed(self, array: Float) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class NetworkSegmenter(Segmenter):
    """The runtime's segmenter, without a bundle."""

    def __init__(self, model: LiteMedSAM, device: torch.device) -> None:
        """Use a network in evaluation mode on a device."""
        self.engine, self._size = NetworkEngine(model, device), model.size
        self.lock = threading.RLock()

    def plan(self, case: Case, method: Method) -> Plan:
        """Return what will be encoded and decoded of a case."""
        return Plan.of(case, method, self._size)


def validation_slices(source: SliceSource, per_modality: int) -> list[int]:
    """Return the numbers of the slices to score: at most `per_modality` of each (0: all), evenly spread."""
    chosen: list[int] = []
    for indices in source.indices_by_modality().values():
        count = min(per_modality or len(indices), len(indices))
        chosen += indices[np.linspace(0, len(indices) - 1, count).round().astype(np.int64)].tolist()
    return chosen


def read_slice(source: SliceSource, slice_number: int) -> Example:
    """Return a slice with the tight boxes of its objects, and its labels. Raises InputError."""
    image, labels = source[slice_number]
    if not len(objects := number(labels)):
        raise InputError(f"slice {slice_number}: no object")
    height, width = image.shape[:2]
    boxes = np.minimum(boxes_of(objects), (width, height) * 2)
    return Case("slice", image, Boxes.parse(boxes, image.shape)), objects.labels


def read_volume(file: Path) -> Example:
    """Return a test case and its ground truth. Raises InputError."""
    case = read_case(file)
    with NpzReader(file.parents[1] / "gts" / file.name) as archive:
        truth = archive.read("gts")
    if truth.shape != case.shape:
        raise InputError(f"{archive.path}: gts are {truth.shape}, the volume is {case.shape}")
    return case, truth


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # the number of boxes differs: each would be compiled anew
def validate(
    model: LiteMedSAM,
    data: Data,
    settings: Validation,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, dict[str, float]], int]:
    """Return the mean DSC in [0, 1] by modality, and how many slices and volumes could not be used.

    The DSC of slices is called "dsc", that of volumes, where there are any, "dsc_volumes". Of a slice or a
    volume it is the mean over its objects, of a modality the mean over its slices or volumes. The network is
    left in evaluation mode. Raises Stopped where `stop`, which is asked after each slice of a volume, too,
    says so.
    """

    def check(*_: int) -> None:
        if stop():
            raise Stopped

    slices = data.validation
    parts: dict[str, list[tuple[str, Callable[[], Example]]]] = {
        "dsc": [
            (slices.info(i).modality, partial(read_slice, slices, i))
            for i in validation_slices(slices, settings.slices_per_modality)
        ],
        "dsc_volumes": [(modality, partial(read_volume, file)) for modality, file in data.volumes],
    }
    means: dict[str, dict[str, float]] = {}
    skipped = 0
    segmenter = NetworkSegmenter(model.eval(), device)
    for part, examples in parts.items():
        dsc: dict[str, list[float]] = {}
        for modality, read in examples:
            try:
                case, truth = read()
            except InputError:
                skipped += 1
                continue
            found = segmenter.run(case, METHOD, progress=check).labels
            dsc.setdefault(modality, []).append(float(dice_by_label(found, truth, len(case.boxes)).mean()))
        if dsc:
            means[part] = {modality: sum(values) / len(values) for modality, values in dsc.items()}
    return means, skipped
