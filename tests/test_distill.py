"""A student learns a teacher's embeddings, then masks; a run stops and resumes exactly."""

import csv
import dataclasses
import itertools
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from litemed.models.adapter import adapter_bytes
from litemed.models.checkpoint import read_checkpoint
from litemed.models.encoders import LIGHT
from litemed.models.lora import add_lora
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import InputError, LitemedError, UsageError
from litemed.runtime.preprocess import preprocess
from litemed.train.dataset import Data, generator_of
from litemed.train.distill.cli import main
from litemed.train.distill.run import SETTINGS, STAGES, WEIGHTS, DistillRequest, distill, stage_configs
from litemed.train.distill.trainer import Distiller, build_student, embedding_error
from litemed.train.distill.views import MixedSampler, Ring, Views, find_images
from litemed.train.loop import Session
from litemed.train.prepare.store import Slices
from litemed.train.run import Stop
from litemed.train.run_files import LAST, Reporter, read_state
from litemed.train.sampler import ModalitySampler

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

SIZE = 64
TINY: dict[str, Any] = {
    "run": {"size": SIZE, "batch_size": 2, "average": 0.5},
    "distillation": {"views": 2, "fresh": 0.5, "unlabelled": 0.3},
    "schedule": {"warmup_steps": 2},
    "validation": {"slices_per_modality": 1, "every_epochs": 1},
    "hardware": {"workers": 0, "device": "cpu"},
    "stage1": {"run": {"epochs": 1, "samples_per_epoch": 6}},
    "stage2": {"run": {"epochs": 2, "samples_per_epoch": 2}},
}
SILENT = Reporter(None)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """Return an adapter of `base` that changes its embedding by much."""
    checkpoint = read_checkpoint(base)
    model = checkpoint.model()
    add_lora(model.image_encoder, rank=2)
    torch.manual_seed(5)
    for name, weights in model.named_parameters():
        if name.endswith(("lora_A", "lora_B")):
            torch.nn.init.normal_(weights, std=0.3)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    path.write_bytes(adapter_bytes(model, 2, weights_digest(checkpoint.state)))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a folder of two pictures, one in a folder below, and of a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    (folder / "below").mkdir()
    cv2.imwrite(str(folder / "grey.png"), random.integers(0, 255, (300, 200)).astype(np.uint8))
    cv2.imwrite(str(folder / "below" / "colour.JPG"), random.integers(0, 255, (50, 90, 3)).astype(np.uint8))
    (folder / "notes.txt").write_text("no picture")
    return folder


def changed(**tables: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(TINY, "tiny"), (tables, "test")]


@pytest.fixture(scope="module")
def whole_run(data, base, adapter, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    request = DistillRequest(data, folder, base, changed(), adapter=adapter, unlabelled=images)
    assert distill(request, SILENT)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def distiller(
    data: Path, base: Path, folder: Path, images: list[Path], stage: str, **tables: Any
) -> Distiller:
    config = stage_configs(changed(**tables))[stage]
    teacher, student = read_checkpoint(base), build_student(read_checkpoint(base), 0)
    slices = Data(Slices.open(data, split="train"), Slices.open(data, split="val"))
    return Distiller(config, teacher, student, slices, images, Session(folder, {}, CPU, SILENT))


def test_a_run_leaves_a_checkpoint_and_the_logs_of_both_stages(whole_run, base, adapter):
    made = read_checkpoint(whole_run / WEIGHTS)
    assert made.encoder == LIGHT
    last = read_checkpoint(whole_run / "stage2" / LAST)
    assert all(torch.equal(made.state[name], value) for name, value in last.state.items())
    folded = fold_adapter(read_checkpoint(base), adapter)
    with safe_open(whole_run / WEIGHTS, framework="pt") as file:
        about = json.loads(file.metadata()["litemed"])
    assert about == {"format": "litemed-distilled-1", "teacher": weights_digest(folded.state)}
    first, second = (rows(whole_run / stage) for stage in STAGES)
    assert [(row["epoch"], row["samples"]) for row in first] == [("0", "0"), ("1", "6")]
    assert [(row["epoch"], row["samples"]) for row in second] == [("0", "0"), ("1", "2"), ("2", "2")]
    assert "dice" not in first[1]
    total = sum(
        weight * float(second[1][name])
        for name, weight in {"embedding": 1, "dice": 1, "focal": 1, "iou": 0.1, "cross_entropy": 0.3}.items()
    )
    assert float(second[1]["loss"]) == pytest.approx(total, rel=1e-4)
    assert second[0]["dsc"] == first[-1]["dsc"]  # the second stage starts from what the first wrote
    assert json.loads((whole_run / "stage2" / "run.json").read_text())["status"] == "finished"
    # The first stage leaves the mask decoder alone, the second tunes it.
    teacher = read_checkpoint(base).state
    for stage, same in (("stage1", True), ("stage2", False)):
        state = read_checkpoint(whole_run / stage / LAST).state
        for part, stays in (("mask_decoder.", same), ("prompt_encoder.", True)):
            names = [name for name in state if name.startswith(part)]
            assert all(torch.equal(state[name], teacher[name]) for name in names) == stays


@pytest.mark.slow
def test_stopped_again_and_again_and_resumed_equals_not_stopped(
    whole_run, data, base, adapter, images, tmp_path, monkeypatch
):
    """Also where the views of before are encoded again."""
    request = DistillRequest(data, tmp_path / "run", base, changed(), adapter=adapter, unlabelled=images)
    for asked in itertools.count():
        left = iter(range(asked))
        monkeypatch.setattr(Stop, "is_set", lambda self, left=left: next(left, None) is None)
        if distill(request, SILENT):
            break
        assert not (tmp_path / "run" / WEIGHTS).exists()
        request = dataclasses.replace(request, resume=True, changes=())
    assert asked > 5
    assert (tmp_path / "run" / WEIGHTS).read_bytes() == (whole_run / WEIGHTS).read_bytes()
    for stage in STAGES:
        one, other = read_state(tmp_path / "run" / stage), read_state(whole_run / stage)
        assert one.progress["history"][-1]["loss"] == other.progress["history"][-1]["loss"]
        for number, moments in one.optimizer["state"].items():
            for key, value in moments.items():
                assert torch.equal(value, other.optimizer["state"][number][key])


def test_views_are_the_pixels_of_the_runtime_with_what_the_teacher_says_of_them(data, base, tmp_path):
    changes = {"augmentation": {"kind": "none"}, "distillation": {"unlabelled": 0.0}}
    run = distiller(data, base, tmp_path, [], "stage1", **changes)
    source = Slices.open(data, split="train")
    expected = torch.cat([torch.from_numpy(preprocess(source[i][0], SIZE)[0]) for i in range(len(source))])
    views = run.views(next(iter(run.loader)), generator_of(0, 0, 0, CPU))
    image = views.image.float() / 255
    assert (expected - image).abs().amax((1, 2, 3)).min() < 0.5 / 255 + 1e-6
    with torch.no_grad():
        said = read_checkpoint(base).model(SIZE).encode(image)
    torch.testing.assert_close(views.embedding, said, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_student_learns_the_embedding(data, base, images, tmp_path):
    """A few steps on few views lower the loss from what a student drawn at random has."""
    run = distiller(
        data, base, tmp_path, find_images(images)[0], "stage1",
        stage1={"run": {"samples_per_epoch": 40, "average": 0.0}, "optimizer": {"lr": 2e-3}},
        distillation={"views": 4},
    )  # fmt: skip
    losses = []
    for batch in run.loader:
        before = run.totals[4].item()
        run.step(batch)
        run.progress.step += 1
        losses.append((run.totals[4].item() - before) / 2)
    assert np.mean(losses[:3]) > 1.5
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_unlabelled_images_alone_teach_the_embedding_and_no_mask(data, base, images, tmp_path):
    paths = find_images(images)[0]
    run = distiller(data, base, tmp_path, paths, "stage2", distillation={"unlabelled": 1.0})
    (batch,) = run.loader
    assert not batch.labels.any()
    assert not batch.skipped
    assert tuple(batch.extent[0].tolist()) in {(SIZE, 43), (36, SIZE)}
    run.step(batch)
    images_seen, loss, embedding, *parts = run.totals.tolist()[3:]
    assert images_seen == 2
    assert loss == pytest.approx(embedding)
    assert parts == [0, 0, 0, 0]


def test_images_that_cannot_be_read_are_each_named_once_and_left_out(data, base, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "below" / "cut.png").write_bytes((folder / "grey.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")
    (folder / "._grey.png").write_bytes(b"what a Mac leaves")
    paths, digest, _, rest = find_images(folder)
    assert [path.name for path in rest] == ["notes.txt"]
    assert [path.name for path in paths] == ["colour.JPG", "grey.png"]
    assert digest == find_images(images)[1]
    request = DistillRequest(data, tmp_path / "run", base, changed(), unlabelled=folder, stop_after_s=0.0)
    with (tmp_path / "log").open("w") as log:
        assert not distill(request, Reporter(log))
    said = (tmp_path / "log").read_text()
    assert said.count("bad.png") == said.count("cut.png") == said.count("warning: left out") - 1 == 1
    assert f"warning: {folder}: 1 in it are no images and were left out: 1 .txt\n" in said
    strict = dataclasses.replace(request, folder=tmp_path / "other", strict=True)
    with pytest.raises(UsageError, match=r"images: 1 in it are no images .*: 1 \.txt; take them away"):
        distill(strict, Reporter(None))
    (folder / "notes.txt").unlink()
    with pytest.raises(InputError, match=r"bad\.png: not a PNG, JPEG or TIFF"):
        distill(strict, Reporter(None))
    assert not strict.folder.exists()
    recorded = json.loads((tmp_path / "run" / SETTINGS).read_text())["inputs"]["unlabelled"]
    assert (recorded["images"], recorded["sha256"]) == (2, digest)
    # Other images of the same names and sizes are not the same.
    content = bytearray((folder / "grey.png").read_bytes())
    content[-1] ^= 1  # of a checksum that nothing decodes
    (folder / "grey.png").write_bytes(content)
    assert find_images(folder)[1] != digest


def views(start: int, count: int) -> Views:
    """Return views in which everything tells their number."""
    numbers = torch.arange(start, start + count)
    return Views(
        (numbers % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, SIZE, SIZE),
        (40_000 + numbers).int()[:, None, None].expand(-1, SIZE, SIZE),
        torch.stack([numbers, numbers + 1], dim=1),
        numbers.float()[:, None, None, None].expand(-1, 256, SIZE // 4, SIZE // 4),
        numbers % 3 == 0,
    )


@given(capacity=st.integers(1, 12), counts=st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_ring_keeps_the_latest_views_whole(capacity, counts):
    ring, added = Ring(capacity, SIZE, CPU), 0
    for count in (min(count, capacity) for count in counts):
        ring.add(views(added, count))
        added += count
    assert len(ring) == min(added, capacity)
    drawn = ring.draw(200, torch.Generator().manual_seed(0))
    numbers = drawn.extent[:, 0]
    assert set(numbers.tolist()) == set(range(max(0, added - capacity), added))
    assert drawn.labels.dtype == torch.int32
    assert (drawn.labels == 40_000 + numbers[:, None, None]).all()
    assert (drawn.image == numbers[:, None, None, None]).all()
    assert (drawn.embedding == numbers[:, None, None, None]).all()
    assert torch.equal(drawn.extent[:, 1], numbers + 1)
    assert torch.equal(drawn.of_volume, numbers % 3 == 0)


def test_a_ring_that_is_too_large_for_the_memory_is_refused_in_a_line():
    with pytest.raises(UsageError, match=r"views = 1000000000: .* GB are more than cpu has"):
        Ring(10**9, 256, CPU)


def test_a_share_of_the_draws_are_unlabelled_images_and_the_others_as_without():
    plain = {"indices": {"CT": [np.arange(50)]}, "shares": {"CT": 1.0}, "samples": 4000, "seed": 1}
    mixed = MixedSampler(**plain, labelled=50, unlabelled=7, share=0.3)
    drawn, labelled = mixed.epoch(2), ModalitySampler(**plain).epoch(2)
    others = drawn >= 50
    assert np.mean(others) == pytest.approx(0.3, abs=0.03)
    assert set(drawn[others].tolist()) == set(range(50, 57))
    assert np.array_equal(drawn[~others], labelled[~others])
    assert np.array_equal(drawn, mixed.epoch(2))
    assert not np.array_equal(drawn, mixed.epoch(3))
    assert np.array_equal(dataclasses.replace(mixed, unlabelled=0).epoch(2), labelled)


def test_the_embedding_loss_is_1_for_a_constant_and_0_for_the_teachers():
    target = torch.randn(2, 256, 16, 16, generator=torch.Generator().manual_seed(0))
    assert embedding_error(target, target) == 0
    constant = torch.full_like(target, float(target.mean()))
    assert embedding_error(constant, target) == pytest.approx(1, abs=1e-4)


def test_a_student_starts_with_the_teachers_decoder_and_spread(base):
    teacher = read_checkpoint(base)
    norm = ("image_encoder.neck.3.weight", "image_encoder.neck.3.bias")
    generator = torch.Generator().manual_seed(0)
    for name in norm:
        teacher.state[name] = torch.rand(256, generator=generator)
    student = build_student(teacher, seed=3)
    assert student.encoder == LIGHT
    for name, value in student.state.items():
        if not name.startswith("image_encoder."):
            assert torch.equal(value, teacher.state[name])
    for name, own in zip(norm, ("gamma", "beta"), strict=True):
        assert torch.equal(student.state[f"image_encoder.{own}"].flatten(), teacher.state[name])
    again, other = build_student(teacher, seed=3).state, build_student(teacher, seed=4).state
    assert all(torch.equal(value, again[name]) for name, value in student.state.items())
    assert not torch.equal(student.state["image_encoder.neck.weight"], other["image_encoder.neck.weight"])


def test_the_recipe_has_the_stages_that_made_the_light_model_and_is_printed():
    first, second = stage_configs([]).values()
    assert (first.run.batch_size, second.run.batch_size) == (96, 64)
    assert (first.fresh, second.fresh) == (24, 16)
    assert (first.optimizer.lr, second.optimizer.lr, second.optimizer.decoder_lr) == (2e-3, 8e-4, 1e-4)
    assert (first.distillation.masks, second.distillation.masks) == (False, True)
    assert first.augmentation == second.augmentation
    one = stage_configs([({"stage2": {"run": {"epochs": 3}}, "run": {"seed": 5}}, "test")])
    assert (one["stage1"].run.epochs, one["stage2"].run.epochs) == (first.run.epochs, 3)
    assert one["stage1"].run.seed == one["stage2"].run.seed == 5
    printed = tomllib.loads(CliRunner().invoke(main, ["--print-config"]).stdout)
    assert stage_configs([(printed, "printed")]) == stage_configs([])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("BASE DATA", 2, ["-o"]),
        ("LIGHT DATA -o NEW", 2, ["light.safetensors", "has the light encoder itself"]),
        ("OTHER DATA -o NEW --adapter ADAPTER", 1, ["ADAPTER", "made for another base"]),
        ("BASE DATA -o NEW --unlabelled EMPTY", 2, ["EMPTY", "no .png"]),
        ("BASE DATA -o NEW --unlabelled missing", 2, ["missing", "No such file"]),
        ("BASE DATA -o NEW --unlabelled BAD", 2, ["BAD", "file in it can be read, such as", "one.png"]),
        ("BASE DATA -o NEW --set stage1.run.epoch=3", 2, ["stage1", "'epoch'"]),
        ("BASE DATA -o NEW --set stage3.run.epochs=3", 2, ["unknown table 'stage3'"]),
        ("BASE DATA -o NEW --set stage1=3", 2, ["stage1 is a table of tables"]),
        ("BASE DATA -o NEW --set distillation.views=10", 2, ["views = 10", "at least the 24"]),
        ("BASE DATA -o NEW --set run.tune=decoder", 2, ["run.tune = 'decoder'"]),
        ("BASE DATA -o RUN", 2, ["RUN", "--resume", "--overwrite"]),
        ("BASE DATA -o MINE", 2, ["MINE", "holds a run already"]),
        ("BASE DATA -o MINE --resume", 1, ["MINE", "damaged"]),
        ("OTHER DATA -o RUN --resume", 2, ["base: the run was started with another one"]),
        ("BASE DATA -o RUN --resume", 2, ["adapter: the run was started with one"]),
        ("BASE DATA -o RUN --resume --set stage2.optimizer.lr=9", 2, ["stage2.optimizer.lr differ"]),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(
    arguments, code, words, data, untrained, adapter, whole_run, tmp_path
):
    places = {name: tmp_path / name.lower() for name in ("NEW", "EMPTY", "BAD", "MINE")}
    places |= {name.upper(): path for name, path in untrained.items()}
    places |= {"DATA": data, "ADAPTER": adapter, "RUN": whole_run}
    for name, file in (("EMPTY", "none"), ("BAD", "one.png"), ("MINE", SETTINGS)):
        places[name].mkdir()
        (places[name] / file).write_bytes(b"somebody's")
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    result = CliRunner().invoke(main, [str(places.get(text, text)) for text in arguments.split()])
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert str(places.get(word, word)) in result.stderr
    assert not places["NEW"].exists()
    assert {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")} == before


def test_starting_over_removes_the_earlier_run(data, base, tmp_path):
    request = DistillRequest(data, tmp_path / "run", base, changed(), stop_after_s=0.0)
    assert not distill(request, SILENT)
    (tmp_path / "run" / WEIGHTS).write_bytes(b"of an earlier run")
    with pytest.raises(LitemedError, match="holds a run already"):
        distill(request, SILENT)
    assert not distill(dataclasses.replace(request, changes=changed(run={"seed": 3}), overwrite=True), SILENT)
    assert not (tmp_path / "run" / WEIGHTS).exists()
    stored = json.loads((tmp_path / "run" / SETTINGS).read_text())["stages"]
    assert stored["stage1"]["run"]["seed"] == stored["stage2"]["run"]["seed"] == 3
