"""Every command on a machine smaller than ours: nothing but its output folder can be written to."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from litemed.benchmarks.phantoms import draw_image

# Of shared memory a megabyte, where docker gives 64, for batches of size 64, not 256: two loader processes
# have more of them ready than that.
SMALL = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=1m tmpfs /dev/shm
mount --bind "$1" "$1"
for place in /tmp /var/tmp; do ! mountpoint -q $place || mount -o remount,bind,ro $place; done
mount -o remount,bind,ro /
cd /
if touch /tmp/written 2> /dev/null; then exit 99; fi
unset HOME TMPDIR XDG_CACHE_HOME
"""
SIZES = "--set run.size=64 --set run.samples_per_epoch=64 --set run.batch_size=16"
QUICK = f"{SIZES} --set hardware.workers=2 --device cpu"
NO_FOLDER = "name one by TMPDIR\n"
STAGES = "--set stage1.run.epochs=1 --set stage2.run.epochs=1 --set distillation.views=32"
COMMANDS = {
    "prepare": "train.prepare.cli SCANS -o WORK/data",
    "train": f"train.cli WORK/data --base BASE -o WORK/run --set run.epochs=1 {QUICK}",
    "distill": f"train.distill.cli BASE WORK/data -o WORK/light {STAGES} {QUICK}",
    "export": "export.cli BASE -o WORK/bundle --size 64 --verify quick",
    "run": "runtime.cli SCANS/cases -o WORK/segs --model WORK/bundle --overlay WORK/pictures",
    "eval": "benchmarks.evaluate.cli WORK/segs SCANS/gts -o WORK/scores",
}


def small(work: Path, line: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command there, on one CPU and with stdout closed."""
    cpu = min(os.sched_getaffinity(0))
    script = (
        f"{SMALL} exec env {' '.join(variables)} taskset -c {cpu} '{sys.executable}' -m litemed.{line} >&-"
    )
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", str(work)],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_every_command_works_or_ends_in_a_line(untrained, tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespaces")
    scans, work = tmp_path / "scans", tmp_path / "work"
    for folder in ("US/train", "cases", "gts"):
        (scans / folder).mkdir(parents=True)
    work.mkdir()
    for number in range(4):
        phantom = draw_image(64, 64, 1, seed=number)
        name = f"2DBox_US_{number:04}.npz"
        np.savez(scans / "US/train" / name, imgs=phantom.image, gts=phantom.labels)
        np.savez(scans / "cases" / name, imgs=phantom.image, boxes=phantom.boxes)
        np.savez(scans / "gts" / name, gts=phantom.labels)
    places = {
        "SCANS/": f"{scans}/",
        "SCANS": f"{scans / 'US'}",
        "WORK": f"{work}",
        "BASE": f"{untrained['base']}",
    }
    for name, line in COMMANDS.items():
        for word, place in places.items():
            line = line.replace(word, place)
        done = small(work, line)
        if done.stderr.endswith(NO_FOLDER):
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            done = small(work, line, f"TMPDIR={work}")
        assert done.returncode == 0, (name, done.stderr)
        assert "Traceback" not in done.stderr
    assert len(list((work / "segs").glob("*.npz"))) == 4
    done = small(work, f"benchmarks.bench table4 -o {work / 'table4'} --rows 2DBox_US_0525")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(NO_FOLDER)
