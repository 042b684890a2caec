"""The runtime asks nothing of an operating system that Windows or macOS lacks."""

import subprocess
import sys

import cv2
import numpy as np

ELSEWHERE = """
import concurrent.futures, importlib, os, pkgutil, platform, signal, subprocess, sys

import click, cv2, numpy as np

for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None
for name in (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "fchmod", "fork", "forkpty", "getegid",
    "geteuid", "getgid", "getloadavg", "getuid", "killpg", "mkfifo", "register_at_fork", "sched_getaffinity",
    "sched_setaffinity", "sysconf", "uname", "wait4",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)

import litemed.runtime

for module in pkgutil.walk_packages(litemed.runtime.__path__, "litemed.runtime."):
    if not module.name.endswith("openvino_engine"):  # an extra
        importlib.import_module(module.name)
try:
    litemed.runtime.files.open_plain(litemed.runtime.files.Path(sys.argv[4]))
except OSError as error:
    assert error.strerror == "is a symbolic link"
else:
    sys.exit("followed a link")
segmenter = litemed.runtime.load(engine="onnxruntime", threads=1, cache=sys.argv[3])
image = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
assert segmenter.segment(image, [[5, 5, 40, 50]]).shape == (60, 80)
del sys.modules["fcntl"]  # macOS has it, and Windows its own locks
sys.argv[1:] = [sys.argv[1], "-o", sys.argv[2], "--engine", "onnxruntime", "--threads", "1"]
litemed.runtime.cli.main()
"""


def test_the_runtime_works_without_what_posix_alone_has(tmp_path):
    cases, output = tmp_path / "cases", tmp_path / "out"
    cases.mkdir()
    image = np.random.default_rng(1).integers(0, 256, (40, 50), np.uint8)
    np.savez(cases / "grey.npz", imgs=image, boxes=[[5, 5, 30, 30]])
    assert cv2.imwrite(str(cases / "picture.png"), image)
    (cases / "picture.json").write_text('{"boxes": [[5, 5, 30, 30]]}')
    (tmp_path / "link").symlink_to(cases / "grey.npz")
    command = [sys.executable, "-c", ELSEWHERE, cases, output, tmp_path / "cache", tmp_path / "link"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("grey", "picture"):
        with np.load(output / f"{name}.npz", allow_pickle=False) as stored:
            assert stored["segs"].shape == (40, 50)
