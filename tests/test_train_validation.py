"""Validation scores label maps as the runtime makes them, by the definition that the evaluation has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from litemed.benchmarks.phantoms import draw_image
from litemed.models.checkpoint import untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.dice import dice_by_label
from litemed.train.config import Validation
from litemed.train.distributed import Processes
from litemed.train.prepare.store import SliceInfo
from litemed.train.validation import (
    BOXES_AT_ONCE,
    label_maps,
    make_item,
    validate,
    validation_slices,
)

pytestmark = pytest.mark.usefixtures("one_thread")


ALONE = Processes(0, 1, torch.device("cpu"))


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
def network() -> LiteMedSAM:
    return untrained_checkpoint().model(64)


def test_label_maps_equal_the_rule_over_full_planes(network):
    """By PyTorch's own interpolation; colour and grey, several chunks of boxes, and boxes within others."""
    random = np.random.default_rng(0)
    crowd = np.zeros((100, 64), np.uint16)
    for number in range(1, BOXES_AT_ONCE + 6):
        y, x = random.integers(0, 90), random.integers(0, 56)
        crowd[y : y + 8, x : x + 7] = number
    nest = np.zeros((48, 64), np.uint8)
    nest[4:44, 4:60], nest[10:30, 8:40], nest[14:20, 12:30] = 1, 3, 2
    grey = random.integers(0, 256, (100, 64)).astype(np.uint8)
    items = [
        make_item("CT", grey, crowd, 64),
        make_item("US", draw_image(48, 64, 2, seed=3).image, nest, 64),
    ]
    assert items[1].nesting.ranks.tolist() == [0, 2, 1]
    found = label_maps(network, items, torch.device("cpu"))
    for item, labels in zip(items, found, strict=True):
        with torch.inference_mode():
            logits, _ = network(torch.from_numpy(item.image)[None], torch.from_numpy(item.boxes))
        cropped = logits[:, :, : item.frame.scaled_height, : item.frame.scaled_width]
        planes = F.interpolate(cropped, item.truth.shape, mode="bilinear", align_corners=False)[:, 0].numpy()
        ranks = item.nesting.ranks
        outer = np.flatnonzero(ranks == 0)
        winner = outer[planes[outer].argmax(0)]
        expected = np.where(planes[outer].max(0) >= 0, winner + 1, 0)
        for rank in range(1, ranks.max() + 1):
            (box,) = np.flatnonzero(ranks == rank)
            free = np.isin(expected, [0, *(np.flatnonzero(item.nesting.containers(box)) + 1)])
            expected[free & (planes[box] > 0)] = box + 1
        assert np.mean(labels == expected) > 0.999
        assert labels.max() > 0


def test_labels_with_gaps_are_numbered_as_the_boxes_are(network):
    labels = np.zeros((64, 64), np.uint16)
    labels[3:20, 5:30] = 2
    labels[40:50, 5:30] = 9
    item = make_item("CT", labels.astype(np.uint8), labels, 64)
    assert item.boxes.tolist() == [[5, 3, 29, 19], [5, 40, 29, 49]]
    assert np.array_equal(item.truth, (labels == 2) + 2 * (labels == 9))


def test_scores_are_means_over_objects_then_slices_then_modalities(network):
    source = Pictures(4)
    scores = validate(network, source, Validation(slices_per_modality=0), 0, ALONE)
    assert (set(scores.dsc), scores.skipped) == ({"CT", "US"}, 1)
    for name, indices in {"CT": (0, 2), "US": (1,)}.items():
        items = [make_item(name, *source[i], 64) for i in indices]
        maps = label_maps(network, items, torch.device("cpu"))
        dice = [dice_by_label(labels, item.truth, 2).mean() for labels, item in zip(maps, items, strict=True)]
        assert scores.dsc[name] == pytest.approx(np.mean(dice))
    assert scores.macro == pytest.approx((scores.dsc["CT"] + scores.dsc["US"]) / 2)


@pytest.mark.parametrize(("per_modality", "expected"), [(0, 10), (2, 4), (100, 10), (1, 2)])
def test_the_slices_scored_are_spread_over_what_there_is(per_modality, expected):
    chosen = validation_slices(Pictures(10), per_modality)
    assert len(chosen) == len(set(chosen.tolist())) == expected
    if per_modality == 2:
        assert chosen.tolist() == [0, 8, 1, 9]


def test_nothing_to_score_gives_no_score(network):
    class Nothing(Pictures):
        def indices_by_modality(self) -> dict[str, np.ndarray]:
            return {}

    scores = validate(network, Nothing(0), Validation(), 0, ALONE)
    assert scores.macro is None
