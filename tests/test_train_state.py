"""What a run writes: its state is exact and never executed; its log; the learning rate over the run."""

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch

from litemed.train.config import Config, Schedule
from litemed.train.optimise import LearningRate
from litemed.train.run_files import (
    FORMAT,
    STATE,
    State,
    TrainingError,
    read_state,
    write_state,
)


def a_state() -> State:
    return State(
        config=dataclasses.asdict(Config()),
        inputs={"base": {"sha256": "digest"}},
        model={"weight": torch.randn(3, 2)},
        average=None,
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        schedule={"best": float("inf")},
        progress={"epoch": 3, "best": None, "history": [{"loss": 0.25, "dsc": None}]},
    )


def test_a_state_comes_back_as_it_went(tmp_path):
    state = a_state()
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert torch.equal(found.model["weight"], state.model["weight"])
    assert dataclasses.replace(found, model=state.model, optimizer=state.optimizer) == state
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def damaged(path: Path, how: str) -> None:
    if how == "pickle":
        torch.save({"format": FORMAT, "model": Payload()}, path)
    elif how == "bare pickle":
        path.write_bytes(pickle.dumps(Payload()))
    elif how == "truncated":
        write_state(path.parent, a_state())
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "other":
        torch.save({"model": {}}, path)
    elif how == "incomplete":
        torch.save({"format": FORMAT, "model": {}}, path)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["pickle", "bare pickle", "truncated", "other", "incomplete", "empty"])
def test_a_damaged_state_is_refused_in_one_line_and_not_run(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    damaged(tmp_path / STATE, how)
    with pytest.raises(TrainingError, match=r"state\.pt: .*--overwrite") as caught:
        read_state(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def rates(settings: Schedule, losses: list[float], steps: int = 2) -> list[float]:
    """Return the rate at each step of epochs with those losses, at a highest rate of 1."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LearningRate(optimizer, settings, steps * len(losses))
    found = []
    for epoch, loss in enumerate(losses):
        for step in range(steps):
            schedule.before_step(epoch * steps + step)
            found.append(optimizer.param_groups[0]["lr"])
        schedule.after_epoch(loss)
    return found


def test_the_plateau_lowers_the_rate_when_the_loss_has_stayed_for_longer_than_the_patience():
    found = rates(Schedule(), [1, *[0.9] * 7, 0.8], steps=1)
    assert found == pytest.approx([*[1] * 8, 0.9])


def test_the_cosine_falls_to_nothing_and_warming_up_rises_to_it():
    cosine = rates(Schedule(kind="cosine"), [1.0] * 10)
    assert cosine[0] == 1
    assert cosine[10] == pytest.approx(0.5)
    assert cosine[-1] < 0.01
    warm = rates(Schedule(kind="cosine", warmup_steps=4), [1.0] * 10)
    assert warm == pytest.approx([0.25 * cosine[0], 0.5 * cosine[1], 0.75 * cosine[2], *cosine[3:]])
    assert rates(Schedule(warmup_steps=2), [1.0] * 2) == pytest.approx([0.5, 1, 1, 1])


def test_groups_of_weights_keep_the_ratio_of_their_rates():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.5)]
    for settings in (Schedule(kind="cosine", warmup_steps=3), Schedule()):
        optimizer = torch.optim.AdamW([dict(group) for group in groups])
        schedule = LearningRate(optimizer, settings, 12)
        for step in range(12):
            schedule.before_step(step)
            schedule.after_epoch(1.0)
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(first / 2)
        assert first < 0.95
