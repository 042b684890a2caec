"""The engines report to nobody and write nothing, seen from outside the process.

A hook on Python's sockets would not see what C++ does: the whole process runs under strace, in a namespace
without a network, with an empty home.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from litemed.runtime.network import silence_onnxruntime, silent_openvino_import

SEGMENT = """
import sys, time
import numpy as np
import litemed.runtime
segmenter = litemed.runtime.load(sys.argv[1], engine=sys.argv[2], threads=1)
labels = segmenter.segment(np.zeros((3, 40, 50), np.uint8), [[3, 3, 0, 30, 30, 2]])
with open(sys.argv[3], "wb") as file:
    np.savez(file, segs=labels)
time.sleep(1)  # for what works behind our back
"""

NAIVE = """
import sys, time
if sys.argv[2] == "openvino":
    import openvino
else:
    import onnxruntime
time.sleep(1)
"""

# Calls that make, move or change a file, or reach out of the process.
CALLS = (
    "trace=network,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,"
    "link,linkat,symlink,symlinkat"
)
OPENED_TO_WRITE = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC")
MAKES = re.compile(r"\b(creat|mkdir|mkdirat|rename|renameat2?|link|linkat|symlink|symlinkat)\(")


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "home"
    made.mkdir()
    return made


def traced(code: str, home: pathlib.Path, *arguments: object) -> list[str]:
    """The system calls of a Python program that matter here, run with an empty home and without a network."""
    if not shutil.which("strace") or not shutil.which("unshare"):
        pytest.skip("strace and unshare are needed to look from outside")
    if subprocess.run(["unshare", "-rn", "strace", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespace or no tracing")
    trace = home.parent / "trace"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    command = ["unshare", "-rn", "strace", "-f", "-qq", "-e", CALLS, "-o", str(trace)]
    command += [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return trace.read_text().splitlines()


def reached_out(calls: list[str]) -> list[str]:
    """Calls for a socket of any kind but one between processes of this machine."""
    return [
        call
        for call in calls
        if re.search(r"\b(socket|connect|sendto|sendmsg|bind)\(", call) and "AF_UNIX" not in call
    ]


def written(calls: list[str]) -> set[str]:
    """Paths of files made or opened for writing, devices and the process's own entries in /proc aside."""
    paths = set()
    for call in calls:
        if OPENED_TO_WRITE.search(call) or MAKES.search(call):
            paths.update(re.findall(r'"([^"]*)"', call))
    return {path for path in paths if not path.startswith(("/dev/", "/proc/"))}


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_nothing_is_sent_and_nothing_written_but_the_output(
    engine: str, box_bundle: pathlib.Path, home: pathlib.Path
) -> None:
    pytest.importorskip(engine)
    output = home.parent / "out.npz"
    calls = traced(SEGMENT, home, box_bundle, engine, output)
    assert len(calls) > 100
    assert reached_out(calls) == []
    assert written(calls) == {str(output)}
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_test_sees_what_the_engines_do_by_themselves(engine: str, home: pathlib.Path) -> None:
    pytest.importorskip(engine)
    calls = traced(NAIVE, home, "", engine)
    if not written(calls):
        pytest.skip(f"this version of {engine} writes nothing by itself")
    assert list(home.iterdir()) != []


def test_the_telemetry_package_is_hidden_only_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_telemetry", pytest)
    monkeypatch.setitem(sys.modules, "openvino_telemetry.main", pytest)
    with pytest.raises(ImportError), silent_openvino_import():
        import openvino_telemetry
    assert sys.modules["openvino_telemetry"] is sys.modules["openvino_telemetry.main"] is pytest
    import openvino_telemetry

    assert openvino_telemetry is pytest


def test_an_answer_of_the_user_s_is_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    silence_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
