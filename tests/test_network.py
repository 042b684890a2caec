"""The engines report to nobody and write nothing, seen from outside the process.

A hook on Python's sockets would not see what C++ does: the whole process runs under strace, in a namespace
without a network, with an empty home.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from litemed.runtime.engines.onnxruntime_engine import silence_onnxruntime
from litemed.runtime.engines.openvino_engine import silent_openvino_import

SEGMENT = """
import sys, time
import numpy as np
import litemed.runtime
for engine in sys.argv[3:]:
    segmenter = litemed.runtime.load(sys.argv[1], engine=engine, threads=1)
    labels = segmenter.segment(np.zeros((3, 40, 50), np.uint8), [[3, 3, 0, 30, 30, 2]])
with open(sys.argv[2], "wb") as file:
    np.savez(file, segs=labels)
time.sleep(0.5)  # for what works behind our back
"""

# Calls that make, move or change a file, or reach out of the process.
CALLS = (
    "trace=network,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,"
    "link,linkat,symlink,symlinkat"
)
WRITES = re.compile(
    r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|\b(creat|mkdir|mkdirat|rename|renameat2?|link|linkat|symlink|symlinkat)\("
)
REACHES = re.compile(r"\b(socket|connect|sendto|sendmsg|bind)\(")  # AF_UNIX is between processes


def traced(code: str, folder: pathlib.Path, *arguments: object) -> list[str]:
    """The system calls of a Python program that matter here, run with an empty home and without a network."""
    if not shutil.which("strace") or not shutil.which("unshare"):
        pytest.skip("strace and unshare are needed to look from outside")
    if subprocess.run(["unshare", "-rn", "strace", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespace or no tracing")
    trace, home = folder / "trace", folder / "home"
    home.mkdir()
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["unshare", "-rn", "strace", "-f", "-qq", "-e", CALLS, "-o", str(trace)]
    command += [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return trace.read_text().splitlines()


def written(calls: list[str]) -> set[str]:
    """Paths of files made or opened for writing, devices and the process's own entries in /proc aside."""
    paths = {path for call in calls if WRITES.search(call) for path in re.findall(r'"([^"]*)"', call)}
    return {path for path in paths if not path.startswith(("/dev/", "/proc/"))}


def test_nothing_is_sent_and_nothing_written_but_the_output(box_bundle, tmp_path):
    output = tmp_path / "out.npz"
    engines = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]
    calls = traced(SEGMENT, tmp_path, box_bundle, output, *engines)
    assert len(calls) > 100
    assert [call for call in calls if REACHES.search(call) and "AF_UNIX" not in call] == []
    assert written(calls) == {str(output)}
    assert list((tmp_path / "home").iterdir()) == []


def test_the_test_sees_what_an_engine_does_by_itself(tmp_path):
    pytest.importorskip("openvino")
    if not written(traced("import openvino, time; time.sleep(0.5)", tmp_path)):
        pytest.skip("this version of OpenVINO writes nothing by itself")
    assert list((tmp_path / "home").iterdir()) != []


def test_telemetry_is_off_whatever_was_imported_or_answered(monkeypatch):
    for name in ("openvino_telemetry", "openvino_telemetry.main"):
        monkeypatch.setitem(sys.modules, name, pytest)
    with pytest.raises(ImportError), silent_openvino_import():
        importlib.import_module("openvino_telemetry")
    assert sys.modules["openvino_telemetry"] is sys.modules["openvino_telemetry.main"] is pytest
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    silence_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
