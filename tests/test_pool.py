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
from litemed.train.windows import in_windows

pytestmark = pytest.mark.usefixtures("one_thread")


SIZE = 64
PLAIN = Config(run=Run(seed=3), pool=Pool(1, 2))
LARGE = 128  # the least size of images that windows are cut from
WINDOWS = Config(run=Run(size=LARGE, seed=3, windows=True), pool=Pool(1, 2), prompts=Prompts(tokens=64))


@pytest.fixture(scope="module")
def network() -> TrainedNetwork:
    torch.manual_seed(0)
    return TrainedNetwork(LiteMedSAM(SIZE), TUNE_DECODER).eval()


def batch_of(seeds: range, size: int = SIZE) -> Batch:
    """Return phantoms with one to three boxes each, and a slice that could not be used."""
    random = np.random.default_rng(0)
    samples = []
    for seed in seeds:
        phantom = draw_image(96, 96, 1 + seed % 3, seed=seed)
        still = Augmentation(flip_horizontal=0, flip_vertical=0)
        samples.append(make_sample(phantom.image, phantom.labels, size, Prompts(), still, random))
    return collate([*samples, Skipped("too small")], size)


@pytest.fixture(scope="module")
def filled(network) -> tuple[EmbeddingPool, list[Batch]]:
    pool, batches = EmbeddingPool(network, PLAIN, epoch=0), [batch_of(range(5)), batch_of(range(5, 7))]
    for batch in [*batches, collate([Skipped("nothing")], SIZE)]:
        pool.add(batch, bfloat16=False)
    return pool, batches


def test_drawn_boxes_keep_their_masks_and_images_and_the_network_says_the_same(network, filled):
    pool, batches = filled
    assert len(pool) == 7
    drawn = pool.draw(4, step=0)
    assert drawn.encoded
    assert drawn.images == len(drawn.image) == 4
    assert set(drawn.image_of_box.tolist()) == {0, 1, 2, 3}
    found = set()
    images = torch.cat([batch.image for batch in batches])
    numbers = torch.cat([batches[0].image_of_box, batches[1].image_of_box + 5])
    boxes, masks = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("boxes", "masks"))
    with torch.no_grad():
        logits, iou, _ = batch_forward(network, drawn)
        for n, place in enumerate(drawn.image_of_box.tolist()):
            (same,) = torch.nonzero((boxes == drawn.boxes[n]).all(1))[:, 0].tolist()
            image = int(numbers[same])
            found.add((place, image))
            assert torch.equal(drawn.masks[n], masks[same])
            expected, same_iou, _ = network(
                images[image][None], boxes[same][None], torch.zeros(1, dtype=torch.int64)
            )
            assert torch.allclose(logits[n], expected[0], atol=2e-3 * float(expected.abs().max()))
            assert torch.allclose(iou[n], same_iou[0], atol=2e-3)
    assert len(found) == 4  # boxes of one image stay together


def test_every_image_counts_the_same_and_gives_at_most_so_many_boxes(filled):
    drawn = filled[0].draw(99, step=1)
    assert drawn.images == 7
    boxes = []
    for image in range(7):
        weights = drawn.weights[drawn.image_of_box == image]
        boxes.append(len(weights))
        assert float(weights.sum()) == pytest.approx(1)
    assert sorted(boxes) == sorted(min(2, 1 + seed % 3) for seed in range(7))


def test_so_many_boxes_of_a_step_are_ellipses_anywhere(network, filled):
    pool = EmbeddingPool(network, dataclasses.replace(PLAIN, pool=Pool(1, 2, ellipses=0.5)), 0)
    pool.add(filled[1][0], bfloat16=False)
    drawn, plain = pool.draw(5, 0), EmbeddingPool(network, PLAIN, 0)
    plain.add(filled[1][0], bfloat16=False)
    expected = plain.draw(5, 0)
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
        pool = EmbeddingPool(network, config, 0)
        pool.add(filled[1][0], bfloat16=False)
        drawn[finer] = [pool.draw(5, step) for step in range(10)]
    outwards = torch.tensor([-1, -1, 1, 1])
    wider = torch.cat([(b.boxes - a.boxes) * outwards for a, b in zip(*drawn.values(), strict=True)])
    assert wider.unique().tolist() == [0, 1]
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(*drawn.values(), strict=True))


def test_each_step_draws_anew_and_always_the_same(network, filled):
    def boxes(epoch: int, step: int) -> list[list[float]]:
        pool = EmbeddingPool(network, PLAIN, epoch)
        pool.add(filled[1][0], bfloat16=False)
        return pool.draw(3, step).boxes.tolist()

    assert boxes(2, 5) == boxes(2, 5)
    others = [boxes(2, 5), boxes(2, 6), boxes(3, 5)]
    assert others[0] != others[1] != others[2] != others[0]


def test_windows_are_encoded_alone_and_keep_their_place():
    torch.manual_seed(0)
    network = TrainedNetwork(LiteMedSAM(LARGE), TUNE_DECODER).eval()
    batch = batch_of(range(4), LARGE)
    pool, again = (EmbeddingPool(network, WINDOWS, epoch=2) for _ in range(2))
    pool.add(batch, bfloat16=False)
    torch.rand(1)  # the windows do not depend on it
    again.add(batch, bfloat16=False)
    drawn, same = pool.draw(9, step=0), again.draw(9, step=0)
    assert torch.equal(drawn.image, same.image)
    assert drawn.images == len(pool) > 0
    shown = drawn.shown.view(-1, 1, LARGE // 4, LARGE // 4)
    assert torch.equal(drawn.image.abs().sum(1, keepdim=True) > 0, shown)
    random = torch.Generator().manual_seed(
        int(np.random.SeedSequence([3, 3, 2, 0]).generate_state(1)[0])  # seed, stream, epoch, rank
    )
    kept, windows = in_windows(batch, random)
    with torch.no_grad():
        encoded = windows.in_place(network.encode(windows.of_images(batch.image)))
    for n in range(len(drawn.boxes)):
        image, place = kept.image_of_box[(kept.boxes == drawn.boxes[n]).all(1)], drawn.image_of_box[n]
        assert torch.equal(windows.tokens()[image][0], drawn.shown[place])
        torch.testing.assert_close(drawn.image[place].float(), encoded[image][0], rtol=2e-3, atol=2e-3)


def test_other_epochs_see_other_windows(network):
    batch = batch_of(range(6), 320)
    config = dataclasses.replace(WINDOWS, run=Run(size=320, seed=3, windows=True))
    seen = set()
    for epoch in range(6):
        random = EmbeddingPool(network, config, epoch)
        random.add(batch, bfloat16=False)
        seen.add(random.draw(6, 0).shown.nonzero()[:, 1].sum().item())
    assert len(seen) > 1


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


def test_boxes_anywhere_are_refused_in_windows(prepared, tmp_path):
    data, base = prepared
    changes = [(SETTINGS, "test"), ({"run": {"size": LARGE, "windows": True}}, "test")]
    with pytest.raises(UsageError, match=r"pool\.ellipses: lie anywhere"):
        run.train(run.Request(data, tmp_path / "run", base, changes), Reporter(None))


def test_passes_make_steps(prepared, tmp_path):
    data, base = prepared
    assert run.train(run.Request(data, tmp_path / "run", base, [(SETTINGS, "test")]), Reporter(None))
    state = read_state(tmp_path / "run")
    steps = {one["step"] for one in state.optimizer["state"].values() if "step" in one}
    assert steps == {2 * 2 * 3}
    assert Config().pool.passes == 0
