"""Every command on a machine smaller than ours: one CPU, nothing but its output folder can be written to."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from litemed.benchmarks.phantoms import draw_image

# Batches are as much smaller than usual as this shared memory is smaller than docker's 64 MB: one, of
# 8 x 7 x 64 x 64 bytes, is more than there is.
SMALL = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=128k tmpfs /dev/shm
mount --bind "$1" "$1"
for place in /tmp /var/tmp; do ! mountpoint -q $place || mount -o remount,bind,ro $place; done
mount -o remount,bind,ro /
cd /
if touch /tmp/written 2> /dev/null; then exit 99; fi
"""
TRAIN = "--set run.size=64 --set run.samples_per_epoch=8 --set run.batch_size=8"
STAGES = "--set stage1.run.epochs=1 --set stage2.run.epochs=1 --set distillation.views=8"
QUICK = "--size 64 --verify quick"
COMMANDS = [
    "train.prepare.cli {scans}/US -o {work}/data --workers 2",
    f"train.cli {{work}}/data --base {{light}} --tune decoder -o {{work}}/run --set run.epochs=1 {TRAIN}",
    f"train.distill.cli {{base}} {{work}}/data -o {{work}}/distilled {STAGES} {TRAIN}",
    f"export.cli {{work}}/run/last.safetensors -o {{work}}/bundle {QUICK}",
    "runtime.cli {scans}/cases -o {work}/segs --model {work}/bundle --overlay {work}/pictures",
    "benchmarks.evaluate.cli {work}/segs {scans}/gts -o {work}/scores --workers 2",
    "benchmarks.bench speed --model {work}/bundle --repeats 1 -o {work}/speed",
]


def small(work: Path, line: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command there, with stdout closed."""
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    script = f'{SMALL} shift; exec env {" ".join(variables)} "$@" >&-'
    cpu = str(min(os.sched_getaffinity(0)))
    command = ["taskset", "-c", cpu, sys.executable, "-B", "-m", *f"litemed.{line}".split()]
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, "bash", str(work), *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def places(untrained, tmp_path_factory):
    """Return by name the folder of drawn cases, the one that can be written to, and weights."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespace of mounts, as root or without")
    scans, work = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("work")
    for folder in ("US/train", "cases", "gts"):
        (scans / folder).mkdir(parents=True)
    for number in range(4):
        phantom = draw_image(64, 64, 1, seed=number)
        name = f"2DBox_US_{number:04}.npz"
        np.savez(scans / "US/train" / name, imgs=phantom.image, gts=phantom.labels)
        np.savez(scans / "cases" / name, imgs=phantom.image, boxes=phantom.boxes)
        np.savez(scans / "gts" / name, gts=phantom.labels)
    return {"scans": scans, "work": work, **untrained}


@pytest.mark.slow
def test_every_command_works(places):
    work = places["work"]
    (work / "scratch").mkdir()
    for line in COMMANDS:
        needs_none = line.startswith("export.")
        done = small(work, line.format(**places), *[f"TMPDIR={work}/scratch"] * (not needs_none))
        assert done.returncode == 0, (line, done.stderr)
        for sign in ("Traceback", "Error", "error:", "telemetry"):
            assert sign not in done.stderr, line
    assert (work / "run/last.safetensors").is_file()
    assert (work / "distilled/light.safetensors").is_file()
    assert len(list((work / "segs").glob("*.npz"))) == 4


@pytest.mark.slow
def test_without_a_folder_for_temporary_files_a_line_says_what_to_set(places):
    done = small(places["work"], COMMANDS[-1].replace("-o {work}/", "-o {work}/no-").format(**places))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "temporary directory" in done.stderr
    assert done.stderr.endswith("name one by TMPDIR\n")


PEAK = """
import json, resource, sys
from click.testing import CliRunner
from litemed.runtime.cli import main
peaks = []
for case in sys.argv[2:]:
    line = [case, "-o", f"{case}.out", "--model", sys.argv[1], "--engine", "onnxruntime", "--threads", "1"]
    done = CliRunner().invoke(main, [*line, "--overlay", f"{case}.out"])
    assert done.exit_code == 0, done.output
    peaks.append(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


def write_grey(path: Path, image: np.ndarray) -> None:
    np.savez_compressed(path.with_suffix(".npz"), imgs=image, boxes=[[0, 0, *image.shape[::-1]]])


def write_deep(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image * np.uint16(200)).save(path.with_suffix(".png"))


def write_palette(path: Path, image: np.ndarray) -> None:
    picture = Image.fromarray(image)
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(path.with_suffix(".png"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is in other units elsewhere")
@pytest.mark.parametrize(
    ("write", "bytes_of_pixel"),
    [(write_grey, 2), (write_deep, 2), (write_palette, 4)],  # grey or colours, and the labels
)
def test_a_large_image_takes_little_more_memory_than_itself_and_its_labels(
    write, bytes_of_pixel, box_bundle, tmp_path
):
    cases = []
    for name, side in (("small", 300), ("large", 7000)):
        image = np.zeros((side, side), np.uint8)
        image[side // 4 : side // 2] = 200
        path = tmp_path / name
        write(path, image)
        path.with_suffix(".json").write_text(json.dumps({"boxes": [[0, 0, side, side]]}))
        (case,) = (one for one in tmp_path.glob(f"{name}.*") if one.suffix != ".json")
        cases.append(case)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, box_bundle, *cases], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)
    assert large - small < bytes_of_pixel * 7000**2 + 90 * 2**20
