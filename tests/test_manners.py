"""How commands behave for programs round them: JSON lines, exit codes, completion of what is typed."""

import json
from importlib.metadata import entry_points

import numpy as np
import pytest
from click.testing import CliRunner

from litemed.runtime.cli import main
from litemed.runtime.console import Console
from litemed.runtime.report import CaseReport


@pytest.fixture
def cases(tmp_path):
    folder = tmp_path / "cases"
    folder.mkdir()
    for name in ("a", "b"):
        np.savez(folder / f"{name}.npz", imgs=np.eye(40, dtype=np.uint8), boxes=[[4, 5, 20, 90]])
    (folder / "bad.npz").write_bytes(b"PK")
    return folder


@pytest.fixture
def run(cases, tmp_path, box_bundle):
    fixed = ["-o", str(tmp_path / "out"), "--model", str(box_bundle), "--engine", "onnxruntime"]

    def invoke(*arguments: object):
        return CliRunner().invoke(main, [str(cases), *fixed, *map(str, arguments)])

    return invoke


def test_as_json_each_event_is_one_object_on_stderr(run, cases, tmp_path):
    done = run("--log-format", "json", "--verbose")
    assert (done.exit_code, done.stdout) == (1, "")
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(list(event)[:2] == ["time", "event"] for event in events)
    messages = [(event["level"], event["text"]) for event in events if event["event"] == "message"]
    assert [level for level, _ in messages] == ["note"]
    started = [event["case"] for event in events if event["event"] == "case_started"]
    assert started == ["a", "b", "bad"]
    finished = [event for event in events if event["event"] == "case_finished"]
    assert [(event["case"], event["status"], event["finished"]) for event in finished] == [
        *(("a", "done", 1), ("b", "done", 2), ("bad", "failed", 3))
    ]
    assert "clipped" in finished[0]["warnings"][0]
    assert finished[0]["seconds"]["total"] > 0
    assert finished[0]["seconds_left"] >= 0
    assert finished[2]["error"].startswith(f"{cases / 'bad.npz'}: ")
    assert finished[2]["seconds_left"] == 0
    last = {"done": 2, "skipped": 0, "failed": 1, "report": str(tmp_path / "out/report.json")}
    assert events[-1] == {"time": events[-1]["time"], "event": "run_finished", **last}


def test_as_json_an_error_that_ends_the_run_is_an_object_too(run):
    wrong = run("--log-format", "json", "--modality", "film")
    assert wrong.exit_code == 2
    (event,) = map(json.loads, wrong.stderr.splitlines())
    assert (event["event"], event["level"]) == ("message", "error")
    assert "film" in event["text"]


def test_lines_of_a_log_say_how_long_the_others_take(capsys, monkeypatch):
    now = iter([100.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    console = Console(debug=False, quiet=False)
    console.case_started("a", 1, 6)
    console.case_finished(CaseReport("a", "done", seconds={"total": 9.5}), None)
    assert capsys.readouterr().out == "[1/6] a: 9.50 s, encodings: 0, masks: 0; about 0:00:50 left\n"


@pytest.mark.parametrize("script", entry_points(group="console_scripts", name="litemed-run"))
def test_the_shell_completes_options_and_their_values(script):
    def complete(words: str, number: int) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(number)}
        return invoke("bash_complete", **asked).splitlines()

    def invoke(what: str, **environment: str) -> str:
        variables = {"_LITEMED_RUN_COMPLETE": what, **environment}
        done = CliRunner().invoke(script.load(), [], prog_name=script.name, env=variables)
        assert done.exit_code == 0
        return done.stdout

    for shell in ("bash", "zsh", "fish"):
        assert "_LITEMED_RUN_COMPLETE=" in invoke(f"{shell}_source")
    assert complete("litemed-run --log-f", 1) == ["plain,--log-format"]
    assert complete("litemed-run --log-format j", 2) == ["plain,json"]
    assert complete("litemed-run cases -o segs --vol", 4) == ["plain,--volume", "plain,--volume-index"]
