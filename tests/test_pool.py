"""The pool of encoded images: the same network, the right masks for the boxes, runs that resume exactly."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from litemed.benchmarks.phantoms import draw_image
from litemed.export.checkpoint import untrained_checkpoint
from litemed.models.litemedsam import LiteMedSAM
from litemed.runtime.errors import UsageError
from litemed.train import run
from litemed.train.config import TUNE_DECODER, Augmentation, Config, Pool, Prompts, Run
from litemed.train.dataset import Batch, Skipped, collate, make_sample
from litemed.train.geometry import inscribed_ellipses
from litemed.train.history import LOG
from litemed.train.network import TrainedNetwork, batch_forward
from litemed.train.pool import EmbeddingPool
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.progress import Reporter
from litemed.train.state import read_state

pytestmark = pytest.mark.usefixtures("one_thread")


SIZE = 64
PLAIN = Config(run=Run(seed=3), pool=Pool(1, 2))


@pytest.fixture(scope="module")
def network() -> TrainedNetwork:
    torch.manual_seed(0)
    return TrainedNetwork(LiteMedSAM(SIZE), TUNE_DECODER).eval()


def batch_of(seeds: range) -> Batch:
    """Return phantoms with one to three boxes each, and a slice that could not be used."""
    random = np.random.default_rng(0)
    samples = []
    for seed in seeds:
        phantom = draw_image(96, 96, 1 + seed % 3, seed=seed)
        still = Augmentation(flip_horizontal=0, flip_vertical=0)
        samples.append(make_sample(phantom.image, phantom.labels, SIZE, Prompts(), still, random))
    return collate([*samples, Skipped("too small")], SIZE)


@pytest.fixture(scope="module")
def filled(network) -> tuple[EmbeddingPool, list[Batch]]:
    pool, batches = EmbeddingPool(network, PLAIN), [batch_of(range(5)), batch_of(range(5, 7))]
    for batch in [*batches, collate([Skipped("nothing")], SIZE)]:
        pool.add(batch, bfloat16=False)
    return pool, batches


def test_drawn_boxes_keep_their_masks_and_images_and_the_network_says_the_same(network, filled):
    pool, batches = filled
    assert len(pool) == 7
    drawn = pool.draw(4, epoch=0, step=0)
    assert drawn.encoded
    assert drawn.images == len(set(drawn.image_of_box.tolist())) == 4
    images = torch.cat([batch.image for batch in batches])
    numbers = torch.cat([batches[0].image_of_box, batches[1].image_of_box + 5])
    boxes, masks = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("boxes", "masks"))
    with torch.no_grad():
        logits, iou, _ = batch_forward(network, drawn)
        for n, image in enumerate(drawn.image_of_box):
            (same,) = torch.nonzero((numbers == image) & (boxes == drawn.boxes[n]).all(1))
            assert torch.equal(drawn.masks[n], masks[same[0]])
            expected, same_iou, _ = network(
                images[image][None], boxes[same], torch.zeros(1, dtype=torch.int64)
            )
            assert torch.allclose(logits[n], expected[0], atol=2e-3 * float(expected.abs().max()))
            assert torch.allclose(iou[n], same_iou[0], atol=2e-3)


def test_every_image_counts_the_same_and_gives_at_most_so_many_boxes(filled):
    drawn = filled[0].draw(99, epoch=1, step=0)
    assert drawn.images == 7
    for image in range(7):
        weights = drawn.weights[drawn.image_of_box == image]
        assert len(weights) == min(2, 1 + image % 3)
        assert float(weights.sum()) == pytest.approx(1)


def test_so_many_boxes_of_a_step_are_ellipses_anywhere(network, filled):
    pool = EmbeddingPool(network, dataclasses.replace(PLAIN, pool=Pool(1, 2, ellipses=0.5)))
    pool.add(filled[1][0], bfloat16=False)
    drawn, plain = pool.draw(5, 0, 0), EmbeddingPool(network, PLAIN)
    plain.add(filled[1][0], bfloat16=False)
    expected = plain.draw(5, 0, 0)
    count = round(len(drawn.boxes) / 2)
    assert torch.equal(drawn.masks[:count], inscribed_ellipses(drawn.boxes[:count], SIZE))
    assert not torch.equal(drawn.boxes[:count], expected.boxes[:count])
    for name in ("boxes", "masks"):
        assert torch.equal(getattr(drawn, name)[count:], getattr(expected, name)[count:])
    assert torch.equal(drawn.image_of_box, expected.image_of_box)


def test_boxes_anywhere_are_made_as_of_finer_images_round_the_same_ellipses(network, filled):
    drawn = {}
    for finer in (0.0, 1.0):
        config = dataclasses.replace(PLAIN, pool=Pool(1, 2, ellipses=1.0), prompts=Prompts(finer=finer))
        pool = EmbeddingPool(network, config)
        pool.add(filled[1][0], bfloat16=False)
        drawn[finer] = [pool.draw(5, 0, step) for step in range(10)]
    outwards = torch.tensor([-1, -1, 1, 1])
    wider = torch.cat([(b.boxes - a.boxes) * outwards for a, b in zip(*drawn.values(), strict=True)])
    assert wider.unique().tolist() == [0, 1]
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(*drawn.values(), strict=True))


def test_each_step_draws_anew_and_always_the_same(filled):
    def boxes(epoch: int, step: int) -> list[list[float]]:
        return filled[0].draw(3, epoch, step).boxes.tolist()

    assert boxes(2, 5) == boxes(2, 5)
    others = [boxes(2, 5), boxes(2, 6), boxes(3, 5)]
    assert others[0] != others[1] != others[2] != others[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return prepared data and a base."""
    folder = tmp_path_factory.mktemp("data")
    pairs = []
    for number in range(6):
        phantom = draw_image(96, 96, 3, seed=number)
        labels = phantom.labels if number else np.pad(np.ones((2, 2), np.uint8), (40, 54))  # too small
        path = folder / f"{number}.npz"
        np.savez(path, imgs=phantom.image, gts=labels)
        pairs.append(Pair("US", "drawn", path.stem, "train", "instance", path, None))
    assert not prepare_slices(Found(tuple(pairs)), folder / "data", Settings()).failed
    save_file(untrained_checkpoint().state, folder / "base.safetensors")
    return folder / "data", folder / "base.safetensors"


SETTINGS = {
    "run": {"size": SIZE, "epochs": 2, "batch_size": 2, "samples_per_epoch": 6, "tune": TUNE_DECODER},
    "prompts": {"per_image": 3, "tokens": 64},
    "pool": {"passes": 2, "ellipses": 0.3},
    "optimizer": {"kind": "muon", "lr": 1e-3},
    "schedule": {"kind": "cosine"},
    "hardware": {"workers": 0, "device": "cpu"},
}


def test_a_run_on_a_pool_tunes_the_decoder_and_resumes_exactly(prepared, tmp_path, monkeypatch):
    data, base = prepared
    request = run.Request(data, tmp_path / "whole", base, [(SETTINGS, "test")])
    assert run.train(request, Reporter(None))

    asked = 0

    @dataclasses.dataclass
    class Stop:
        signalled = False

        def is_set(self) -> bool:
            """Stop every fifth time: while images are encoded, within epochs and between them."""
            nonlocal asked
            asked += 1
            return asked % 5 == 2

    @contextlib.contextmanager
    def stop_signal(_: float | None) -> Iterator[Stop]:
        yield Stop()

    monkeypatch.setattr(run, "stop_signal", stop_signal)
    stopped = dataclasses.replace(request, folder=tmp_path / "stopped")
    finished, steps = run.train(stopped, Reporter(None)), []
    while not finished:
        steps.append(read_state(stopped.folder).progress["step"])
        finished = run.train(dataclasses.replace(stopped, resume=True, changes=[]), Reporter(None))
    assert 0 in steps  # while encoding
    assert any(steps)
    whole, pieces = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "stopped"))
    before = load_file(base)
    moved = {name for name, value in whole.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)
    assert all(torch.equal(value, pieces[name]) for name, value in whole.items())
    logs = [(tmp_path / name / LOG).read_text().splitlines() for name in ("whole", "stopped")]
    assert len(logs[0]) == len(logs[1]) == 3
    states = [read_state(tmp_path / name) for name in ("whole", "stopped")]
    for one, other in zip(*(state.progress["history"] for state in states), strict=True):
        assert one["loss"] == other["loss"]
        assert one["skipped"] == other["skipped"] > 0


def test_a_pool_is_refused_where_the_encoder_learns(prepared, tmp_path):
    data, base = prepared
    changes = [(SETTINGS, "test"), ({"run": {"tune": "all"}}, "test")]
    with pytest.raises(UsageError, match=r"pool\.passes = 2: with run\.tune = 'all'"):
        run.train(run.Request(data, tmp_path / "run", base, changes), Reporter(None))


def test_passes_make_steps(prepared, tmp_path):
    data, base = prepared
    assert run.train(run.Request(data, tmp_path / "run", base, [(SETTINGS, "test")]), Reporter(None))
    state = read_state(tmp_path / "run")
    steps = {one["step"] for one in state.optimizer["state"].values() if "step" in one}
    assert steps == {2 * 2 * 3}
    assert Config().pool.passes == 0
