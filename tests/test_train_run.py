"""A run from prepared data to weights: it learns, stops and resumes exactly."""

import csv
import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from litemed.benchmarks.phantoms import draw_volume
from litemed.models.adapter import decoder_path
from litemed.models.checkpoint import read_checkpoint
from litemed.models.encoders import LIGHT
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.lora_folding import fold_adapter
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import UsageError
from litemed.train.cli import main
from litemed.train.loop import Trainer
from litemed.train.network import TrainedNetwork
from litemed.train.optimise import averaged
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.run import Request, Stop, train
from litemed.train.run_files import STATE, Reporter, TrainingError, read_state

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "run": {"size": 64, "epochs": 2, "batch_size": 2, "samples_per_epoch": 4, "average": 0.5},
    "optimizer": {"lr": 1e-3},
    "validation": {"slices_per_modality": 1},
    "hardware": {"workers": 0, "device": "cpu"},
}
SILENT = Reporter(None)
WEIGHTS = [f"{kind}{part}.safetensors" for kind in ("best", "last") for part in ("", ".decoder")]


def changed(**tables: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(TINY, "tiny"), (tables, "test")]


@pytest.fixture(scope="module")
def whole_run(data, base, tmp_path_factory):
    """Return a run of adapters and decoder, with an average of the weights, that was not stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(Request(data, folder, base, changed()), SILENT)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def assert_equal_runs(one: Path, other: Path) -> None:
    times = {"seconds", "samples_per_second", "wait_share"}
    logs = [[{k: v for k, v in row.items() if k not in times} for row in rows(run)] for run in (one, other)]
    assert logs[0] == logs[1]
    for name in WEIGHTS:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_run_leaves_what_it_promises(whole_run, base, data):
    assert {path.name for path in whole_run.iterdir()} == {*WEIGHTS, "log.csv", "run.json", STATE}
    for name in ("best", "last"):
        adapter = whole_run / f"{name}.safetensors"
        assert adapter.stat().st_size < 1_000_000
        folded = fold_adapter(read_checkpoint(base), adapter)
        assert weights_digest(folded.state) != weights_digest(read_checkpoint(base).state)
    start, *found = rows(whole_run)
    assert (start["epoch"], start["loss"]) == ("0", "")
    assert 0 <= float(start["dsc"]) <= 1
    assert [(row["epoch"], row["samples"]) for row in found] == [("1", "4"), ("2", "4")]
    for row in found:
        parts = float(row["dice"]) + float(row["focal"]) + float(row["iou"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
        macro = (float(row["dsc_CT"]) + float(row["dsc_US"])) / 2
        assert float(row["dsc"]) == pytest.approx(macro, abs=1e-5)
    said = report(whole_run)
    assert (said["status"], said["epochs_done"]) == ("finished", 2)
    assert said["config"]["optimizer"]["lr"] == 1e-3
    assert said["inputs"]["base"]["sha256"] == read_checkpoint(base).sha256
    assert said["inputs"]["data"]["folder"] == str(data)


def test_a_base_of_loralib_saved_in_evaluation_mode_counts_once_if_told(data, base, tmp_path):
    """And keeps to that: a run that is resumed has the base that it was started from."""
    state, layer = load_file(base), "image_encoder.layers.1.blocks.0.attn.proj"
    a, b = torch.ones(4, 128) / 50, torch.ones(128, 4) / 50
    state[f"{layer}.weight"] += b @ a / 4
    right = state[f"{layer}.weight"]
    merged = tmp_path / "merged.safetensors"
    save_file(state | {f"{layer}.lora_A": a, f"{layer}.lora_B": b}, merged)
    for alpha in (1.0, 0.0):
        folder = tmp_path / f"{alpha}"
        decoder = changed(run={"tune": "decoder"})
        request = Request(data, folder, merged, decoder, stop_after_s=0.0, loralib_alpha=alpha)
        with (tmp_path / "log").open("w") as log:
            assert not train(request, Reporter(log))
        told = "merged.safetensors: LoRA of loralib is added with alpha 1" in (tmp_path / "log").read_text()
        assert told == (alpha == 1.0)
        kept = read_state(folder).model
        assert any(torch.equal(value, right) for value in kept.values()) == (alpha == 0.0)
    resumed = dataclasses.replace(request, resume=True, changes=[], loralib_alpha=1.0)
    with pytest.raises(UsageError, match="base: the run was started with another one"):
        train(resumed, SILENT)


@pytest.mark.slow
def test_stopped_wherever_it_asks_and_resumed_for_more_epochs_equals_not_stopped(
    whole_run, data, base, tmp_path, monkeypatch
):
    """After each step, and after each slice that is scored, before training, too."""
    folder = tmp_path / "stopped"
    request = Request(data, folder, base, changed(run={"epochs": 1}))
    places = []
    for asked in itertools.cycle(range(3)):
        left = iter(range(asked))
        monkeypatch.setattr(Stop, "is_set", lambda self, left=left: next(left, None) is None)
        finished = train(request, SILENT)
        request = dataclasses.replace(request, resume=True, changes=[])
        if finished and report(folder)["epochs_done"] == 2:
            break
        if finished:
            request = dataclasses.replace(request, changes=[({"run": {"epochs": 2}}, "test")])
        else:
            assert report(folder)["status"] == "stopped"
            places.append(tuple(read_state(folder).progress[name] for name in ("epoch", "step")))
    assert set(places) == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)}
    assert_equal_runs(folder, whole_run)
    one, other = read_state(folder), read_state(whole_run)
    assert one.schedule == other.schedule
    for number, moments in one.optimizer["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, other.optimizer["state"][number][key])


@pytest.mark.slow
def test_two_runs_of_all_weights_on_two_threads_are_equal(data, base, tmp_path):
    """The gradients of the encoder's attention biases were added up as the threads came."""
    settings = changed(run={"tune": "all", "epochs": 1})
    torch.set_num_threads(2)
    try:
        for name in ("one", "other"):
            assert train(Request(data, tmp_path / name, base, settings), SILENT)
    finally:
        torch.set_num_threads(1)
    one, other = (tmp_path / name / "last.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_average_of_the_weights_is_what_is_written(whole_run):
    state = read_state(whole_run)
    tensors = load_file(decoder_path(whole_run / "last.safetensors"))
    moved = [name for name, value in tensors.items() if not torch.equal(state.model[f"model.{name}"], value)]
    assert len(moved) > len(tensors) / 2
    for name in moved:
        assert torch.equal(state.average[f"module.model.{name}"], tensors[name])


def test_the_average_follows_the_weights_and_copies_indices():
    network = TrainedNetwork(LiteMedSAM(64), "all")
    average = averaged(network, 0.9)
    assert averaged(network, 0.0) is None
    name = "model.mask_decoder.iou_token.weight"
    expected = None
    for _ in range(4):
        with torch.no_grad():
            network.get_parameter(name).add_(1.0)
        average.update_parameters(network)
        now = network.state_dict()[name]
        expected = now.clone() if expected is None else 0.9 * expected + 0.1 * now  # the first one is copied
    assert torch.allclose(average.module.state_dict()[name], expected, atol=1e-6)
    indices = {name: value for name, value in network.named_buffers() if not value.is_floating_point()}
    assert any("offset_index" in name for name in indices)
    for name, value in average.module.named_buffers():
        assert value.is_floating_point() or torch.equal(value, indices[name])


@pytest.mark.slow
def test_loader_processes_change_nothing(whole_run, data, base, tmp_path):
    # OpenCV's threads at work before the processes are forked once made these wait for ever.
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)
    assert train(Request(data, tmp_path / "run", base, changed(hardware={"workers": 2})), SILENT)
    assert_equal_runs(tmp_path / "run", whole_run)


@pytest.mark.slow
def test_a_short_run_of_all_weights_lowers_the_loss_and_raises_the_dsc(data, untrained, tmp_path):
    longer = {"samples_per_epoch": 24, "epochs": 4, "tune": "all", "average": 0.0}
    assert train(Request(data, tmp_path / "run", untrained["light"], changed(run=longer)), SILENT)
    _, first, *later = rows(tmp_path / "run")
    assert float(later[-1]["loss"]) < 0.85 * float(first["loss"])
    assert max(float(row["dsc"]) for row in later) > float(first["dsc"]) + 0.1
    found = read_checkpoint(tmp_path / "run/best.safetensors")
    assert (found.layout, found.encoder) == ("plain", LIGHT)


@pytest.mark.slow
def test_slices_that_cannot_be_used_and_absent_modalities_are_named(prepare_drawn, base, tmp_path):
    folder = prepare_drawn(tmp_path / "data", ("CT", "US"), too_small=4)
    few = {"samples_per_epoch": 12, "epochs": 1, "batch_size": 12}
    with (tmp_path / "log").open("w") as log:
        assert train(Request(folder, tmp_path / "run", base, changed(run=few)), Reporter(log))
    said = (tmp_path / "log").read_text()
    assert "warning: no training slices of MR, PET, XRay" in said
    assert "drawn instead: CT 87.8%, US 12.2%" in said
    assert "/drawn/picture" in said
    assert "no object of at least 4 pixels at size 64" in said
    row = rows(tmp_path / "run")[-1]
    assert int(row["skipped"]) > 0
    assert int(row["samples"]) + int(row["skipped"]) == 12
    assert f"skipped {row['skipped']} slices" in said


def test_a_run_that_does_no_better_than_its_start_says_so(data, base, tmp_path):
    """With a rate of next to nothing the weights stay as they are."""
    stay = changed(optimizer={"lr": 1e-12, "weight_decay": 0.0}, run={"epochs": 1, "tune": "decoder"})
    with (tmp_path / "log").open("w") as log:
        assert train(Request(data, tmp_path / "run", base, stay), Reporter(log))
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("warning: no epoch scored above the weights that training began from: DSC 0.")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return a folder of one drawn test volume."""
    folder = tmp_path_factory.mktemp("volumes")
    drawn = draw_volume(4, 48, 64, 1)
    np.savez(folder / "one.npz", imgs=drawn.image, gts=drawn.labels)
    pair = Pair("MR", "drawn", "one", "val", folder / "one.npz", None)
    prepare(Found((pair,)), folder / "cases", Settings(cases=True))
    return folder / "cases"


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_volumes_are_scored_beside_slices_and_count_as_the_setting_says(data, base, volumes, tmp_path, share):
    settings = changed(validation={"volume_share": share}, run={"epochs": 1})
    with (tmp_path / "log").open("w") as log:
        assert train(Request(data, tmp_path / "run", base, settings, volumes=volumes), Reporter(log))
    for row in rows(tmp_path / "run"):
        assert row["dsc_volumes"] == row["dsc_volumes_MR"]
    score = (1 - share) * float(row["dsc"]) + share * float(row["dsc_volumes"])
    assert report(tmp_path / "run")["best"] == pytest.approx(score, abs=1e-5)
    assert report(tmp_path / "run")["inputs"]["volumes"]["folder"] == str(volumes)
    assert (
        f" DSC {float(row['dsc']):.4f} of volumes {float(row['dsc_volumes']):.4f}"
        in (tmp_path / "log").read_text()
    )
    with pytest.raises(UsageError, match="volumes: the run was started with one"):
        train(Request(data, tmp_path / "run", base, resume=True), SILENT)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_line(data, base, tmp_path):
    request = Request(data, tmp_path / "run", base, changed(optimizer={"lr": 1e25}, run={"epochs": 5}))
    with pytest.raises(TrainingError, match=r"not finite: lower optimizer\.lr"):
        train(request, SILENT)
    assert report(tmp_path / "run")["status"] == "failed"


def test_the_first_signal_asks_to_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Stop(None) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize(("command", "sent"), [("train", signal.SIGTERM), ("distill", signal.SIGINT)])
def test_a_signal_leaves_a_run_that_can_be_resumed(data, base, tmp_path, command, sent):
    """To the whole group of processes, as a terminal and `timeout` send it, loader processes included."""
    config, folder = tmp_path / "tiny.toml", tmp_path / "run"
    config.write_text(
        "run = {size = 64, samples_per_epoch = 600, batch_size = 2}\nhardware = {workers = 1}\n"
        "validation = {slices_per_modality = 1}\n"
        + ("distillation = {views = 50}" if command == "distill" else "")
    )
    own = ["litemed.train.cli", data, "--base", base]
    if command == "distill":
        own, folder = ["litemed.train.distill.cli", base, data], folder / "stage1"
    line = [sys.executable, "-m", *own, "-o", tmp_path / "run", "--config", config, "--device", "cpu"]
    process = subprocess.Popen(
        list(map(str, line)), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    assert process.stderr is not None
    while "before training" not in process.stderr.readline():
        assert time.monotonic() < deadline
    os.killpg(process.pid, sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted: go on from the last state with --resume"
    assert "Traceback" not in said
    assert report(folder)["status"] == "stopped"
    assert 0 <= read_state(folder).progress["step"] < 300


def test_a_signal_counts_as_an_interrupt_though_the_time_is_over_too(data, base, tmp_path, monkeypatch):
    scores = {"skipped": 0, "dsc": 0.5}
    monkeypatch.setattr(Trainer, "_validate", lambda self: os.kill(os.getpid(), signal.SIGTERM) or scores)
    with pytest.raises(KeyboardInterrupt):
        train(Request(data, tmp_path / "run", base, changed(), stop_after_s=0.0), SILENT)
    assert read_state(tmp_path / "run").progress["step"] == 1


def test_starting_over_removes_the_earlier_run(data, base, tmp_path):
    folder = tmp_path / "run"
    request = Request(data, folder, base, changed(schedule={"kind": "cosine"}), stop_after_s=0.0)
    assert not train(request, SILENT)
    longer = dataclasses.replace(request, resume=True, changes=[({"run": {"epochs": 9}}, "test")])
    with pytest.raises(UsageError, match="over which the cosine falls"):
        train(longer, SILENT)
    for name in ("best.safetensors", "log.csv", "notes.txt"):
        (folder / name).write_text("mine")
    over = dataclasses.replace(request, overwrite=True)
    assert not train(over, SILENT)
    assert {path.name for path in folder.iterdir()} == {"run.json", STATE, "notes.txt"}
    with pytest.raises(UsageError, match="--overwrite empties"):
        train(dataclasses.replace(over, base=folder / "base.safetensors"), SILENT)


def call(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_trains_stops_and_says_what_to_do_next(data, base, tmp_path):
    config = tmp_path / "tiny.toml"
    config.write_text("[run]\nsize = 64\nepochs = 1\nbatch_size = 2\n[hardware]\nworkers = 0\n")
    first = call(
        data, "--base", base, "-o", tmp_path / "run", "--config", config, "--set", "run.samples_per_epoch=4",
        "--tune", "decoder", "--stop-after", 0,
    )  # fmt: skip
    assert (first.exit_code, "stopped; go on with --resume" in first.stdout) == (0, True)
    second = call(data, "--base", base, "-o", tmp_path / "run", "--resume")
    assert second.exit_code == 0
    assert "run/best.safetensors" in second.stdout
    assert "epoch 1/1 loss" in second.stderr
    assert read_checkpoint(tmp_path / "run/best.safetensors").layout == "plain"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("DATA --base BASE", 2, ["-o"]),
        ("DATA -o NEW", 2, ["weights to start from"]),
        ("DATA -o NEW --base LIGHT", 2, ["light", "no layers for LoRA", "--tune decoder or --tune all"]),
        ("DATA -o RUN --base BASE", 2, ["RUN", "--resume", "--overwrite"]),
        ("DATA -o RUN --base LIGHT --overwrite", 2, ["no layers for LoRA"]),
        ("DATA -o RUN --base BASE --resume --overwrite", 2, ["choose one"]),
        ("DATA -o RUN --base BASE --resume --set optimizer.lr=1", 2, ["optimizer.lr differ"]),
        ("DATA -o RUN --base OTHER --resume", 2, ["base: the run was started with another one"]),
        ("MORE -o RUN --base BASE --resume", 2, ["data: the run was started with another one"]),
        ("DATA -o NEW --base BASE --resume", 1, ["state.pt", "no run to resume"]),
        ("DATA -o NEW --base BASE --volumes DATA", 1, ["DATA", "no volumes of the split val"]),
        ("DATA -o NEW --base BASE --set run.size=100", 2, ["run.size", "100"]),
        (
            "DATA -o NEW --base BASE --set sampling={weights={MR=1},others=0}",
            2,
            ["draws only MR", "of CT, US"],
        ),
        ("DATA -o NEW --base BASE --config missing.toml", 2, ["missing.toml"]),
        ("DATA -o NEW --base missing.pth", 2, ["missing.pth"]),
        ("EMPTY -o NEW --base BASE", 1, ["EMPTY", "litemed-prepare"]),
        ("VAL -o NEW --base BASE", 1, ["VAL", "no training slices"]),
        ("CUT -o NEW --base BASE", 1, ["CUT", ".npy"]),
        ("DATA -o NEW --base BASE --device cuda", 2, ["cuda", "no GPU"]),
        ("DATA -o BASE --base BASE", 1, ["BASE"]),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(
    arguments, code, words, prepare_drawn, data, untrained, whole_run, tmp_path
):
    """And nothing is written, nor an earlier run changed."""
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (tmp_path / "empty").mkdir()
    places = {name.upper(): path for name, path in untrained.items()}
    places |= {"DATA": data, "RUN": whole_run, "NEW": tmp_path / "new", "EMPTY": tmp_path / "empty"}
    for name, count in (("MORE", 6), ("CUT", 6), ("VAL", 0)):
        if name in arguments:
            places[name] = prepare_drawn(tmp_path / name, ("US",), training=count)
    if "CUT" in arguments:
        shard = next(path for path in places["CUT"].rglob("*.npy") if not path.name.endswith(".index.npy"))
        shard.write_bytes(shard.read_bytes()[:-100])
    before = {path.name: path.stat().st_mtime_ns for path in whole_run.iterdir()}
    result = call(*(places.get(word, word) for word in arguments.split()))
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert str(places.get(word, word)) in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in whole_run.iterdir()} == before
    if "sampling" not in arguments:
        assert not (tmp_path / "new").exists()


def test_help_and_version_load_no_framework():
    code = (
        "import sys\n"
        "from litemed.train.cli import main\n"
        "from litemed.train.distill.cli import main as distill\n"
        "for option in ('--help', '--version', '--print-config'):\n"
        "    main([option], standalone_mode=False)\n"
        "distill(['--help'], standalone_mode=False)\n"
        "assert not {'torch', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "litemed-train data --base lite_medsam.pth -o run" in done.stdout
