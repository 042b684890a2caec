"""The benchmark of loading and training: what it times, and that it says on what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from litemed.benchmarks.phantoms import draw_image
from litemed.benchmarks.training_speed import Speeds, as_markdown, main, report
from litemed.train.config import Config
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import Found, Pair

SMALL = ("run.size=64", "run.batch_size=2", "hardware.device=cpu", "hardware.workers=1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pairs = []
    for number in range(3):
        phantom = draw_image(96, 96, 2, seed=number)
        path = tmp_path / f"{number}.npz"
        np.savez(path, imgs=phantom.image, gts=phantom.labels)
        pairs.append(Pair("US", "drawn", path.stem, "train", "instance", path, None))
    prepare_slices(Found(tuple(pairs)), tmp_path / "data", Settings())
    return tmp_path / "data"


def settings(*changes: str) -> list[str]:
    return [part for change in (*SMALL, *changes) for part in ("--set", change)]


def test_it_times_loader_step_and_both_and_says_on_what(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "results/speed.of.training"
    turns = ("--batches", "2", "--loads", "3", "--turns", "2", "--note", "Two shared cores.")
    done = CliRunner().invoke(main, ["--data", str(data), "-o", str(out), *turns, *settings()])
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.parent.iterdir()} == {f"{out.name}.json", f"{out.name}.md"}
    assert (out.parent / f"{out.name}.md").read_text() == done.stdout
    assert "- Two shared cores.\n" in done.stdout
    result = json.loads((out.parent / f"{out.name}.json").read_text())
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert (result["settings"]["batch_size"], result["settings"]["size"]) == (2, 64)
    seconds = result["seconds_per_batch"]
    for name, key in (("loader alone", "loader_s"), ("step alone", "step_s"), ("together", "together_s")):
        rate = result["samples_per_second"][name]
        assert len(seconds[key]) == 2
        assert rate["lowest"] == pytest.approx(2 / max(seconds[key]))
        assert rate["highest"] == pytest.approx(2 / min(seconds[key]))
        assert f"| {name} |" in done.stdout
    assert all(waited < both for waited, both in zip(seconds["waited_s"], seconds["together_s"], strict=True))
    assert 0 < result["waited_share"] < 1


def test_waiting_is_of_the_time_of_both_and_idling_beyond_the_step() -> None:
    speeds = Speeds(
        loader_s=[9.0], step_s=[3.0, 2.0, 9.0], together_s=[4.0, 4.0, 5.0], waited_s=[1.0, 0.5, 0.5]
    )
    assert speeds.waited_share == pytest.approx(2 / 13)
    assert speeds.idle_share == pytest.approx(1 - 3 / 4)
    assert Speeds([1.0], [2.0], [1.9], [0.1]).idle_share == 0


def test_a_gpu_is_named_with_its_idle_share_and_memory_and_a_cpu_has_neither() -> None:
    speeds = Speeds([0.1], [0.75], [1.0], [0.01])
    result = report(Config(), speeds, torch.device("cpu"), workers=2, load=0.5)
    assert result["settings"]["precision"] == "float32"
    assert "GPU" not in as_markdown(result, ())
    result |= {"idle_share": speeds.idle_share, "gpu_peak_bytes": 3 * 2**30}
    result["machine"]["gpu"] = "Some GPU"
    text = as_markdown(result, ())
    assert "- Machine: Some GPU, " in text
    assert "The GPU idles 25.0% of it; its peak memory is 3.0 GiB." in text


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ("run.speed=1", 2, "'speed'"),
        ("run.size=100", 2, "100"),
        ("run.tune=lora+decoder", 1, "litemed-prepare"),
    ],
)
def test_what_is_wrong_is_one_line(change: str, code: int, words: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--data", str(tmp_path), *settings(change)])
    assert done.exit_code == code
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
