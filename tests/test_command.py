"""How commands end: one line and an exit code."""

import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from litemed.runtime.command import Command, run_command
from litemed.runtime.errors import BundleError, InputError, UsageError


def ending(capsys: pytest.CaptureFixture[str], outcome: Any, debug: bool = False) -> tuple[int, list[str]]:
    def work() -> bool | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as ended:
        run_command(work, debug=debug, interrupted="give the same command again", extra="train")
    printed = capsys.readouterr()
    assert printed.out == ""
    return ended.value.code, printed.err.splitlines()


@pytest.mark.parametrize(
    ("outcome", "code", "lines"),
    [
        (None, 0, []),
        (True, 0, []),
        (False, 1, []),
        (InputError("a.npz: no boxes"), 1, ["error: a.npz: no boxes"]),
        (BundleError("b: damaged"), 1, ["error: b: damaged"]),
        (UsageError("name one"), 2, ["error: name one"]),
        (
            ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"),
            2,
            ["error: torch is not installed; in the checkout: pip install '.[train]'"],
        ),
        (OSError(28, "No space left on device", "b"), 1, ["error: [Errno 28] No space left on device: 'b'"]),
        (KeyboardInterrupt(), 130, ["interrupted: give the same command again"]),
    ],
)
def test_the_exit_code_tells(capsys, outcome, code, lines):
    assert ending(capsys, outcome) == (code, lines)


def test_a_traceback_is_for_debugging_and_faults_of_our_own_are_not_hidden(capsys):
    code, lines = ending(capsys, InputError("a.npz: no boxes"), debug=True)
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "error: a.npz: no boxes"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0 > 0, debug=False, interrupted="")
    for name, extra in (("litemed.lost", "train"), ("lost", None)):
        with pytest.raises(ModuleNotFoundError):
            run_command(
                lambda name=name: bool(importlib.import_module(name)),
                debug=False,
                interrupted="",
                extra=extra,
            )


@pytest.mark.parametrize(
    ("module", "arguments", "package"),
    [
        ("litemed.train.cli", [".", "--base", "."], "torch"),
        ("litemed.train.distill.cli", [".", "."], "safetensors"),
    ],
)
def test_without_the_extra_the_training_commands_say_what_to_install(module, arguments, package):
    """In a process of its own, whose modules nobody has imported before."""
    code = f"import sys; sys.modules[{package!r}] = None; from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "-o", "RUN"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {package} is not installed; in the checkout: pip install '.[train]'\n"


LAST_OF_THREE = """
import click
from pathlib import Path
from litemed.runtime.command import Command, run_command

@click.command(cls=Command)
def main():
    def work():
        for i in range(3):
            click.echo(f"line {i}")
            click.echo(f"note {i}", err=True)
            Path(f"{i}.txt").write_text("result")
    run_command(work, debug=False, interrupted="")

main()
"""


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("streams", "code", "notes"),
    [
        ("> /dev/full", 1, "No space left on device"),
        ("| true", 1, "Broken pipe"),
        ("2> /dev/full", 0, None),
        (">&- 2>&- <&-", 0, None),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_the_work_goes_on_where_nothing_can_be_printed(tmp_path, streams, code, notes, encoding):
    """And no file gets a number of a closed stream, into which libraries print."""
    (tmp_path / "command.py").write_text(LAST_OF_THREE)
    shell = f"set -o pipefail; export PYTHONIOENCODING={encoding}; '{sys.executable}' command.py {streams}"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert {path.read_text() for path in tmp_path.glob("?.txt")} == {"result"}
    assert len(list(tmp_path.glob("?.txt"))) == 3
    if notes:
        line = f"error: standard output: {notes}; not all lines were written"
        assert done.stderr.splitlines() == ["note 0", "note 1", "note 2", line]


@pytest.mark.parametrize(
    "line",
    [
        "run missing -o out",
        "run . -o out --model missing",
        "export missing -o out",
        "export --inspect missing",
        "export . --adapter missing -o out",
        "train missing --base . -o out",
        "train . --base missing -o out",
        "distill missing . -o out",
        "prepare missing -o out",
        "eval missing . -o out",
        "eval . missing -o out",
        "bench speed --model missing",
    ],
)
def test_what_does_not_exist_is_wrong_use_in_every_command(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *arguments = line.split()
    (command,) = importlib.metadata.entry_points(group="console_scripts", name=f"litemed-{name}")
    done = CliRunner().invoke(command.load(), arguments)
    assert done.exit_code == 2
    assert "missing" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run", "train", "distill", "prepare", "export", "eval", "bench"])
def test_every_command_is_such_a_command(name):
    (command,) = importlib.metadata.entry_points(group="console_scripts", name=f"litemed-{name}")
    assert isinstance(command.load(), Command)
