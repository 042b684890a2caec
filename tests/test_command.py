"""How commands end: one line and an exit code."""

import importlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom.data
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


@pytest.fixture(scope="module")
def given(box_bundle, tmp_path_factory):
    """Return a folder with a bundle and a case of each kind of file, and a pair of NIfTI."""
    folder = tmp_path_factory.mktemp("given")
    shutil.copytree(box_bundle, folder / "bundle")
    volume = np.zeros((8, 8, 4), np.int16)
    volume[2:6, 2:6] = 1
    for name in ("MR_a.nii", "label.nii"):
        nibabel.save(nibabel.nifti1.Nifti1Image(volume, np.eye(4)), folder / name)
    (folder / "MR_a.json").write_text('{"boxes": [[1, 1, 1, 6, 6, 2]]}')
    shutil.copy(Path(pydicom.data.__file__).parent / "test_files/MR_small.dcm", folder / "b.dcm")
    (folder / "b.json").write_text('{"boxes": [[1, 1, 6, 6]]}')
    (folder / "index.csv").write_text("modality,image,label\nMR,MR_a.nii,label.nii\n")
    np.savez(folder / "c.npz", imgs=volume[..., 0].astype(np.uint8), boxes=[[1, 1, 6, 6]])
    return folder


EXTRAS = {
    "run b.dcm -o out --model bundle": (1, "medical", ["pydicom", "highdicom"]),
    "run MR_a.nii -o out --model bundle": (1, "medical", ["nibabel"]),
    "run b.dcm -o out --model bundle --dry-run": (1, "medical", ["pydicom", "highdicom"]),
    "run c.npz -o out --model bundle --engine openvino": (2, "openvino", ["openvino"]),
    "export c.npz -o out": (2, "export", ["torch", "onnx", "onnxsim", "openvino", "safetensors"]),
    "train . --base c.npz -o out": (2, "train", ["torch", "safetensors", "tqdm", "scipy"]),
    "distill c.npz . -o out": (2, "train", ["torch", "safetensors", "tqdm", "scipy"]),
    "prepare index.csv -o out --workers 1": (2, "train", ["nibabel", "scipy", "tqdm"]),
    "prepare index.csv -o out --workers 2": (2, "train", ["nibabel", "scipy", "tqdm"]),
    "eval . . -o out": (2, "eval", ["scipy"]),
    "bench speed --model bundle": (2, "bench", ["psutil", "tqdm"]),
    "bench table4 --model bundle -o out": (2, "bench", ["matplotlib", "psutil", "tqdm"]),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "package"), [(line, package) for line, (*_, packages) in EXTRAS.items() for package in packages]
)
def test_without_a_package_of_an_extra_one_line_says_what_to_install(line, package, given, tmp_path):
    """In processes of their own, those that a command starts as well."""
    code, extra, _ = EXTRAS[line]
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    name, *arguments = line.replace("out", str(tmp_path / "out")).split()
    done = subprocess.run(
        [Path(sys.executable).with_name(f"litemed-{name}"), *arguments],
        cwd=given,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert package in done.stderr.lower()
    assert done.stderr.endswith(f"; in the checkout: pip install '.[{extra}]'\n")
    assert not list((tmp_path / "out").glob("*.[!jc]*"))  # no result, but the report of a run


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


def test_a_library_that_warns_prints_no_line_of_its_own(tmp_path):
    """NumPy warns of what Python 2 has written."""
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (4L, 6L), }".ljust(117) + "\n"
    npy = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(range(24))
    boxes = io.BytesIO()
    np.save(boxes, np.array([[1, 1, 4, 3]]))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs.npy", npy)
        archive.writestr("boxes.npy", boxes.getvalue())
    given = [sys.executable, "-m", "litemed.runtime.cli", path, "-o", tmp_path / "out", "--dry-run"]
    done = subprocess.run([*given, "--quiet"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a: boxes: 1")
    assert "created on Python 2" in subprocess.run([*given, "--debug"], capture_output=True, text=True).stderr
