"""A run from prepared data to weights: it learns, stops and resumes exactly."""

from __future__ import annotations

import csv
import dataclasses
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
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from litemed.benchmarks.phantoms import draw_image
from litemed.models.adapter import decoder_path, fold_adapter
from litemed.models.checkpoint import read_checkpoint, untrained_checkpoint
from litemed.models.encoders import ENCODERS, LIGHT
from litemed.models.litemedsam import LiteMedSAM
from litemed.models.weight_files import weights_digest
from litemed.runtime.errors import LitemedError, UsageError
from litemed.train.cli import main
from litemed.train.errors import TrainingError
from litemed.train.loop import Trainer
from litemed.train.network import TrainedNetwork
from litemed.train.optimise import averaged
from litemed.train.prepare.pipeline import prepare
from litemed.train.prepare.slices import Settings
from litemed.train.prepare.sources import Found, Pair
from litemed.train.progress import Reporter
from litemed.train.run import Request, Stop, train
from litemed.train.run_files import STATE, read_state

pytestmark = pytest.mark.usefixtures("one_thread")


TINY: dict[str, Any] = {
    "run": {"size": 64, "epochs": 2, "batch_size": 2, "samples_per_epoch": 4},
    "optimizer": {"lr": 1e-3},
    "validation": {"slices_per_modality": 1},
    "hardware": {"workers": 0, "device": "cpu"},
}
SILENT = Reporter(None)


@pytest.fixture(scope="module")
def data(prepare_drawn, tmp_path_factory) -> Path:
    return prepare_drawn(tmp_path_factory.mktemp("data") / "two", ("CT", "US"))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_file(untrained_checkpoint().state, path)
    return path


def changed(**tables: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    return [(TINY, "tiny"), (tables, "test")]


@pytest.fixture(scope="module")
def whole_run(data, base, tmp_path_factory) -> Path:
    """Return a run of the default kind (adapters and decoder) that was not stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(Request(data, folder, base, changed()), SILENT)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(folder: Path) -> list[dict[str, str]]:
    times = ("seconds", "samples_per_second", "wait_share")
    return [{key: value for key, value in row.items() if key not in times} for row in rows(folder)]


def test_a_run_leaves_what_it_promises(whole_run, base):
    names = {path.name for path in whole_run.iterdir()}
    weights = {f"{kind}{part}.safetensors" for kind in ("best", "last") for part in ("", ".decoder")}
    assert names == weights | {"log.csv", "run.json", STATE}
    for name in ("best", "last"):
        adapter = whole_run / f"{name}.safetensors"
        assert adapter.stat().st_size < 1_000_000
        folded = fold_adapter(read_checkpoint(base), adapter)
        assert weights_digest(folded.state) != weights_digest(read_checkpoint(base).state)


def test_the_log_has_a_row_for_each_epoch_and_a_column_for_each_modality(whole_run):
    base, *found = rows(whole_run)
    assert (base["epoch"], base["loss"]) == ("0", "")
    assert 0 <= float(base["dsc"]) <= 1
    assert [row["epoch"] for row in found] == ["1", "2"]
    for row in found:
        assert row["samples"] == "4"
        parts = float(row["dice"]) + float(row["focal"]) + float(row["iou"])
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
        macro = (float(row["dsc_CT"]) + float(row["dsc_US"])) / 2
        assert float(row["dsc"]) == pytest.approx(macro, abs=1e-5)


def test_the_report_says_what_was_done_with_what(whole_run, base, data):
    report = json.loads((whole_run / "run.json").read_text())
    assert (report["status"], report["epochs_done"], report["skipped_slices"]) == ("finished", 2, 0)
    assert report["config"]["optimizer"]["lr"] == 1e-3
    assert report["inputs"]["base"]["sha256"] == read_checkpoint(base).sha256
    assert report["inputs"]["data"]["folder"] == str(data)
    assert report["dsc_before"] == pytest.approx(float(rows(whole_run)[0]["dsc"]), abs=1e-6)
    assert report["versions"]["torch"] == torch.__version__
    assert set(report["files"]) >= {"best.safetensors", "last.decoder.safetensors", "log.csv"}


def test_stopped_after_every_step_and_resumed_equals_not_stopped(whole_run, data, base, tmp_path):
    folder = tmp_path / "stopped"
    request = Request(data, folder, base, changed(), stop_after_s=0.0)
    finished = train(request, SILENT)
    stops = 0
    while not finished:
        stops += 1
        assert json.loads((folder / "run.json").read_text())["status"] == "stopped"
        finished = train(dataclasses.replace(request, resume=True, changes=[]), SILENT)
    assert stops >= 3  # within epochs, and between them
    for name in ("best", "last"):
        for part in (Path(f"{name}.safetensors"), decoder_path(Path(f"{name}.safetensors"))):
            assert (folder / part).read_bytes() == (whole_run / part).read_bytes()
    assert without_times(folder) == without_times(whole_run)
    one, other = read_state(folder), read_state(whole_run)
    assert one.schedule == other.schedule
    for number, moments in one.optimizer["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, other.optimizer["state"][number][key])


def test_an_average_of_the_weights_is_what_is_written_and_resumes_exactly(data, base, tmp_path):
    """Stopped after every step or not, the adapter is the same, and it is not that of the last step."""
    request = Request(data, tmp_path / "whole", base, changed(run={"average": 0.5}))
    assert train(request, SILENT)
    stopped = dataclasses.replace(request, folder=tmp_path / "stopped", stop_after_s=0.0)
    finished = train(stopped, SILENT)
    while not finished:
        finished = train(dataclasses.replace(stopped, resume=True, changes=[]), SILENT)
    written = (tmp_path / "whole" / "last.safetensors").read_bytes()
    assert written == (tmp_path / "stopped" / "last.safetensors").read_bytes()
    state = read_state(tmp_path / "whole")
    tensors = load_file(decoder_path(tmp_path / "whole" / "last.safetensors"))
    moved = [name for name, value in tensors.items() if not torch.equal(state.model[f"model.{name}"], value)]
    assert len(moved) > len(tensors) / 2
    for name in moved:
        assert torch.equal(state.average[f"module.model.{name}"], tensors[name])


def test_the_average_follows_the_weights():
    network = TrainedNetwork(LiteMedSAM(64), "decoder")
    average = averaged(network, 0.9)
    assert averaged(network, 0.0) is None
    name = "model.mask_decoder.iou_token.weight"
    expected = network.state_dict()[name].clone()
    for step in range(4):
        with torch.no_grad():
            network.get_parameter(name).add_(1.0)
        average.update_parameters(network)
        now = network.state_dict()[name]
        expected = now.clone() if step == 0 else 0.9 * expected + 0.1 * now  # the first one is copied
    assert torch.allclose(average.module.state_dict()[name], expected, atol=1e-6)


def test_indices_are_not_averaged():
    network = TrainedNetwork(LiteMedSAM(64), "all")
    average = averaged(network, 0.9999)
    for _ in range(3):
        average.update_parameters(network)
    indices = {name: value for name, value in network.named_buffers() if not value.is_floating_point()}
    assert any("offset_index" in name for name in indices)
    for name, value in average.module.named_buffers():
        assert value.is_floating_point() or torch.equal(value, indices[name])


def test_a_run_goes_on_for_more_epochs(whole_run, data, base, tmp_path):
    short = Request(data, tmp_path / "run", base, changed(run={"epochs": 1}))
    assert train(short, SILENT)
    longer = dataclasses.replace(short, resume=True, changes=[({"run": {"epochs": 2}}, "test")])
    assert train(longer, SILENT)
    assert (tmp_path / "run/last.safetensors").read_bytes() == (whole_run / "last.safetensors").read_bytes()


def test_loader_processes_change_nothing(whole_run, data, base, tmp_path):
    # OpenCV's threads at work before the processes are forked once made these wait for ever.
    cv2.setNumThreads(4)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (0, 0), 3)
    assert train(Request(data, tmp_path / "run", base, changed(hardware={"workers": 2})), SILENT)
    assert (tmp_path / "run/last.safetensors").read_bytes() == (whole_run / "last.safetensors").read_bytes()
    assert without_times(tmp_path / "run") == without_times(whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_a_short_run_of_all_weights_lowers_the_loss_and_raises_the_dsc(data, encoder, tmp_path):
    path = tmp_path / "base.safetensors"
    save_file(untrained_checkpoint(encoder=encoder).state, path)
    longer = {"samples_per_epoch": 24, "epochs": 4, "tune": "all"}
    assert train(Request(data, tmp_path / "run", path, changed(run=longer)), SILENT)
    _, first, *later = rows(tmp_path / "run")
    assert float(later[-1]["loss"]) < 0.85 * float(first["loss"])
    assert max(float(row["dsc"]) for row in later) > float(first["dsc"]) + 0.1
    found = read_checkpoint(tmp_path / "run/best.safetensors")
    assert (found.layout, found.encoder) == ("plain", encoder)


def test_slices_that_cannot_be_used_are_counted_and_named(prepare_drawn, base, tmp_path):
    folder = prepare_drawn(tmp_path / "data", ("US",), too_small=4)
    request = Request(folder, tmp_path / "run", base, changed(run={"samples_per_epoch": 6, "epochs": 1}))
    with (tmp_path / "log").open("w") as log:
        assert train(request, Reporter(log))
    said = (tmp_path / "log").read_text()
    assert "warning: skipped US/drawn/picture" in said
    assert "no object of at least 4 pixels at size 64" in said
    row = rows(tmp_path / "run")[-1]
    assert int(row["skipped"]) > 0
    assert int(row["samples"]) + int(row["skipped"]) == 6
    assert f"skipped {row['skipped']} slices" in said
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert report["skipped_slices"] == int(row["skipped"])


def test_absent_modalities_are_warned_of(data, base, tmp_path):
    with (tmp_path / "log").open("w") as log:
        train(Request(data, tmp_path / "run", base, changed(), stop_after_s=0.0), Reporter(log))
    said = (tmp_path / "log").read_text()
    assert "warning: no training slices of MR, PET, XRay" in said
    assert "drawn instead: CT 87.8%, US 12.2%" in said


def test_a_run_that_does_no_better_than_its_start_says_so(data, base, tmp_path):
    """With a rate of next to nothing the weights stay as they are."""
    stay = changed(optimizer={"lr": 1e-12, "weight_decay": 0.0}, run={"epochs": 1, "tune": "decoder"})
    with (tmp_path / "log").open("w") as log:
        assert train(Request(data, tmp_path / "run", base, stay), Reporter(log))
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("warning: no epoch scored above the weights that training began from (DSC 0.")
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert report["best"] <= report["dsc_before"]


def test_a_loss_that_is_not_finite_ends_the_run_with_a_line(data, base, tmp_path):
    request = Request(data, tmp_path / "run", base, changed(optimizer={"lr": 1e25}, run={"epochs": 5}))
    with pytest.raises(TrainingError, match=r"not finite: lower optimizer\.lr"):
        train(request, SILENT)
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "failed"


def test_the_first_signal_asks_to_stop_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Stop(None) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_can_be_resumed(data, base, tmp_path, sent):
    """To the whole group of processes, as a terminal and `timeout` send it, loader processes included."""
    config = tmp_path / "tiny.toml"
    config.write_text(
        "run = {size = 64, epochs = 1, batch_size = 1, samples_per_epoch = 300}\nhardware = {workers = 1}\n"
    )
    command = [sys.executable, "-m", "litemed.train.cli", data, "--base", base, "-o", tmp_path / "run"]
    process = subprocess.Popen(
        [*map(str, command), "--config", str(config)],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    assert process.stderr is not None
    while "before training" not in process.stderr.readline():
        assert time.monotonic() < deadline
    os.killpg(process.pid, sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted: go on from the last state with --resume"
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "stopped"
    assert 0 <= read_state(tmp_path / "run").progress["step"] < 300


def test_a_resumed_run_keeps_settings_base_and_data(prepare_drawn, whole_run, data, base, tmp_path):
    def resume(**changes: Any) -> None:
        request = Request(data, whole_run, base, resume=True)
        train(dataclasses.replace(request, **changes), SILENT)

    with pytest.raises(UsageError, match=r"optimizer\.lr differ"):
        resume(changes=[({"optimizer": {"lr": 1.0}}, "test")])
    other = tmp_path / "other.safetensors"
    save_file(untrained_checkpoint(9).state, other)
    with pytest.raises(UsageError, match="--base is not what the run was started on"):
        resume(base=other)
    with pytest.raises(UsageError, match="DATA is not what the run was started on"):
        resume(data=prepare_drawn(tmp_path / "more", ("US", "CT")))


def test_starting_over_removes_the_earlier_run(data, base, tmp_path):
    folder = tmp_path / "run"
    request = Request(data, folder, base, changed(run={"epochs": 1}))
    assert train(request, SILENT)
    assert (folder / "best.safetensors").exists()
    (folder / "notes.txt").write_text("mine")
    over = dataclasses.replace(request, overwrite=True, stop_after_s=0.0)
    assert not train(over, SILENT)
    assert not (folder / "best.safetensors").exists()
    assert not (folder / "log.csv").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert read_state(folder).progress["step"] == 1
    inside = dataclasses.replace(over, base=folder / "base.safetensors")
    with pytest.raises(UsageError, match="--overwrite empties"):
        train(inside, SILENT)


def test_a_signal_counts_as_an_interrupt_though_the_time_is_over_too(data, base, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda self, batch: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        train(Request(data, tmp_path / "run", base, changed(), stop_after_s=0.0), SILENT)
    assert read_state(tmp_path / "run").progress["step"] == 1


def test_a_cosine_keeps_the_epochs_it_falls_over(data, base, tmp_path):
    cosine = changed(schedule={"kind": "cosine"})
    request = Request(data, tmp_path / "run", base, cosine, stop_after_s=0.0)
    assert not train(request, SILENT)
    longer = dataclasses.replace(request, resume=True, changes=[({"run": {"epochs": 9}}, "test")])
    with pytest.raises(UsageError, match="over which the cosine falls"):
        train(longer, SILENT)


def call(*arguments: object) -> Result:
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
        (["DATA"], 2, ["-o"]),
        (["DATA", "-o", "NEW"], 2, ["--base"]),
        (["DATA", "-o", "RUN", "--resume"], 2, ["--base"]),
        (["DATA", "-o", "NEW", "--base", "LIGHT"], 2, ["light", "--tune decoder", "--tune all"]),
        (["DATA", "-o", "RUN", "--base", "BASE"], 2, ["RUN", "--resume", "--overwrite"]),
        (["DATA", "-o", "RUN", "--base", "BASE", "--resume", "--overwrite"], 2, ["choose one"]),
        (["DATA", "-o", "NEW", "--base", "BASE", "--resume"], 1, ["state.pt", "no run to resume"]),
        (["DATA", "-o", "NEW", "--base", "BASE", "--set", "run.size=100"], 2, ["run.size", "100"]),
        (["DATA", "-o", "NEW", "--base", "BASE", "--set", "run.speed=1"], 2, ["'speed'", "run.speed=1"]),
        (
            ["DATA", "-o", "NEW", "--base", "BASE", "--set", "sampling={weights={MR=1}, others=0}"],
            2,
            ["draws only MR", "of CT, US"],
        ),
        (["DATA", "-o", "NEW", "--base", "BASE", "--set", "lora.rank=0"], 2, ["lora.rank = 0"]),
        (["DATA", "-o", "NEW", "--base", "BASE", "--config", "missing.toml"], 2, ["missing.toml"]),
        (["DATA", "-o", "NEW", "--base", "DATA/manifest.json"], 1, ["manifest.json", "safetensors"]),
        (["DATA", "-o", "NEW", "--base", "missing.pth"], 1, ["missing.pth"]),
        (["EMPTY", "-o", "NEW", "--base", "BASE"], 1, ["EMPTY", "litemed-prepare"]),
        (["DATA", "-o", "NEW", "--base", "BASE", "--device", "cuda"], 2, ["cuda", "no GPU"]),
        (["DATA", "-o", "BASE", "--base", "BASE"], 1, ["BASE"]),
    ],
)
def test_what_is_wrong_is_one_line_on_stderr(arguments, code, words, data, base, whole_run, tmp_path):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    (tmp_path / "empty").mkdir()
    if "LIGHT" in arguments:
        save_file(untrained_checkpoint(encoder=LIGHT).state, tmp_path / "light.safetensors")
    places = {
        "DATA": data,
        "BASE": base,
        "LIGHT": tmp_path / "light.safetensors",
        "RUN": whole_run,
        "NEW": tmp_path / "new",
        "EMPTY": tmp_path / "empty",
    }

    def placed(text: str) -> str:
        for name, path in places.items():
            text = text.replace(name, str(path))
        return text

    before = {path.name: path.stat().st_mtime_ns for path in whole_run.iterdir()}
    result = call(*map(placed, arguments))
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert placed(word) in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in whole_run.iterdir()} == before


def test_data_without_training_slices_are_refused(base, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    phantom = draw_image(96, 96, 2, seed=1)
    np.savez(folder / "a.npz", imgs=phantom.image, gts=phantom.labels)
    pair = Pair("US", "drawn", "a", "val", folder / "a.npz", None)
    prepare(Found((pair,)), folder / "data", Settings())
    with pytest.raises(LitemedError, match="no training slices"):
        train(Request(folder / "data", tmp_path / "run", base, changed()), SILENT)


def test_a_cut_shard_is_refused_before_anything_is_written(prepare_drawn, base, tmp_path):
    folder = prepare_drawn(tmp_path / "raw", ("US",))
    shard = next(path for path in folder.rglob("*.npy") if not path.name.endswith(".index.npy"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(LitemedError, match=shard.name):
        train(Request(folder, tmp_path / "run", base, changed()), SILENT)
    assert not (tmp_path / "run").exists()


def test_help_and_version_load_no_framework():
    code = (
        "import sys\n"
        "from litemed.train.cli import main\n"
        "for option in ('--help', '--version', '--print-config'):\n"
        "    main([option], standalone_mode=False)\n"
        "assert not {'torch', 'cv2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "litemed-train data --base lite_medsam.pth -o run" in done.stdout


def test_a_base_that_lora_does_not_go_to_is_refused_before_an_earlier_run_gives_way(data, tmp_path):
    light, folder = tmp_path / "light.safetensors", tmp_path / "run"
    save_file(untrained_checkpoint(encoder=LIGHT).state, light)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="no layers for LoRA"):
            train(Request(data, folder, light, changed(), overwrite=overwrite), SILENT)
        assert folder.exists() is overwrite
        folder.mkdir(exist_ok=True)
        (folder / STATE).write_bytes(b"an earlier run")
    assert (folder / STATE).read_bytes() == b"an earlier run"
