"""Validation scores label maps as the runtime makes them, by the definition that the evaluation has."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from litemed.benchmarks.phantoms import draw_image, draw_volume
from litemed.models.checkpoint import untrained_checkpoint
from litemed.runtime.boxes import Boxes, scale_boxes
from litemed.runtime.case import Case
from litemed.runtime.dice import dice_by_label
from litemed.runtime.preprocess import preprocess
from litemed.train.config import Validation
from litemed.train.dataset import Data
from litemed.train.prepare.objects import boxes_of, number
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.prepare.store import SliceInfo, open_volumes
from litemed.train.validation import METHOD, NetworkSegmenter, validate, validation_slices

pytestmark = pytest.mark.usefixtures("one_thread")


CPU = torch.device("cpu")


class Pictures:
    """Slices in memory: drawn images, alternately of CT and US; number 3, of US, has no object."""

    def __init__(self, count: int) -> None:
        self._drawn = [draw_image(48, 64, 2, seed=seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self._drawn[i].image, self._drawn[i].labels * (i != 3)

    def info(self, i: int) -> SliceInfo:
        return SliceInfo(["CT", "US"][i % 2], "drawn", "val", f"picture{i}", 0, 2)

    def indices_by_modality(self) -> dict[str, np.ndarray]:
        return {"CT": np.arange(0, len(self), 2), "US": np.arange(1, len(self), 2)}


@pytest.fixture(scope="module")
def network():
    return untrained_checkpoint().model(64)


@torch.inference_mode()
def label_map(network, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    case = Case("picture", image, Boxes.parse(boxes, image.shape))
    return NetworkSegmenter(network, CPU).run(case, METHOD).labels


def test_scores_are_means_over_objects_then_slices(network):
    source = Pictures(4)
    means, skipped = validate(network, Data(source, source), Validation(slices_per_modality=0), CPU)
    assert (set(means), skipped) == ({"dsc"}, 1)
    scores = means["dsc"]
    assert set(scores) == {"CT", "US"}
    for name, indices in {"CT": (0, 2), "US": (1,)}.items():
        dice = []
        for image, labels in (source[i] for i in indices):
            found = label_map(network, image, boxes_of(number(labels)))
            dice.append(dice_by_label(found, labels, 2).mean())
        assert scores[name] == pytest.approx(np.mean(dice))


@torch.inference_mode()
def test_volumes_are_segmented_from_one_box_an_object_by_the_profile_of_an_ellipsoid(network, tmp_path):
    drawn = {"CT": draw_volume(9, 60, 48, 2, seed=1), "MR": draw_volume(12, 40, 64, 2, seed=2)}
    pairs = []
    for modality, split in (("CT", "val"), ("CT", "train"), ("MR", "val")):
        path = tmp_path / f"{modality}{split}.npz"
        np.savez(path, imgs=drawn[modality].image, gts=drawn[modality].labels)
        pairs.append(Pair(modality, "drawn", path.stem, split, path, None))
    prepare(Found(tuple(pairs)), tmp_path / "cases", Settings(cases=True))
    volumes = open_volumes(tmp_path / "cases", split="val")
    assert [(modality, file.name) for modality, file in volumes] == [
        ("CT", "3DBox_CT_drawn_CTval.npz"),
        ("MR", "3DBox_MR_drawn_MRval.npz"),
    ]
    means, skipped = validate(
        network, Data(Pictures(2), Pictures(2), volumes), Validation(slices_per_modality=1), CPU
    )
    assert (set(means), skipped) == ({"dsc", "dsc_volumes"}, 0)
    for modality, phantom in drawn.items():
        found = np.zeros_like(phantom.labels)
        for z, plane in enumerate(phantom.image):
            network_input, frame = preprocess(plane, 64)
            best = torch.zeros(plane.shape)
            for label, (x0, y0, z0, x1, y1, z1) in enumerate(boxes_of(number(phantom.labels)).tolist(), 1):
                t = (2 * z - z0 - z1) / (z1 - z0 + 1)
                t = max(t, 0) if z0 == 0 else min(t, 0) if z1 == len(found) - 1 else t
                if z0 <= z <= z1:
                    half = np.array([x1 - x0, y1 - y0]) / 2 * max(0.15, 1 - t * t) ** 0.5
                    middle = np.array([x0 + x1, y0 + y1]) / 2
                    box = scale_boxes(np.array([[*(middle - half), *(middle + half)]]), frame)
                    logits, _ = network(torch.from_numpy(network_input), torch.from_numpy(box))
                    cropped = logits[:, :, : frame.scaled_height, : frame.scaled_width]
                    value = F.interpolate(cropped, plane.shape, mode="bilinear", align_corners=False)[0, 0]
                    found[z][value > best] = label
                    best = torch.maximum(best, value)
        dice = dice_by_label(found, phantom.labels, 2).mean()
        assert means["dsc_volumes"][modality] == pytest.approx(dice, abs=1e-3)
        assert dice > 0


@pytest.mark.parametrize(("per_modality", "expected"), [(0, 10), (2, 4), (100, 10), (1, 2)])
def test_the_slices_scored_are_spread_over_what_there_is(per_modality, expected):
    chosen = validation_slices(Pictures(10), per_modality)
    assert len(chosen) == len(set(chosen)) == expected
    if per_modality == 2:
        assert chosen == [0, 8, 1, 9]
