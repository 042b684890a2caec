"""Peak memory of `litemed-run` on the two cases that ask most of it.

    python -m litemed.benchmarks.memory BUNDLE --json memory.json

Each case runs in a process of its own, from reading the npz to writing the result; what counts is that
process's peak resident memory (VmHWM), libraries included. The cases are drawn: 241 objects in an image of
1920 x 2560, and 6 in a volume of (287, 512, 512) whose boxes all span the first `--slices` slices. With the
slices only the label map grows (72 MiB at most); all 287 of them run for minutes.
"""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

import click
import numpy as np

from litemed.benchmarks.phantoms import Phantom, draw_image, draw_volume

ENGINES = ("onnxruntime", "openvino")
TARGET_MIB = 1536

_RUN = """
import pathlib, sys
from litemed.runtime.cli import main
try:
    main(sys.argv[2:])
finally:
    pathlib.Path(sys.argv[1]).write_text(pathlib.Path("/proc/self/status").read_text())
"""


@dataclass(frozen=True)
class Peak:
    """What one process took: peak resident memory in MiB, and the case's seconds as its report has them."""

    case: str
    engine: str
    boxes: int
    slices: int
    peak_mib: float
    seconds: float


def image_case() -> Phantom:
    """Return 241 objects in an image of 1920 x 2560 pixels."""
    return draw_image(1920, 2560, 241)


def volume_case(slices: int) -> Phantom:
    """Return 6 objects in a volume of (287, 512, 512) voxels, whose boxes span the first `slices` slices."""
    phantom = draw_volume(287, 512, 512, 6, coverage=0.5)
    boxes = phantom.boxes.copy()
    boxes[:, 2], boxes[:, 5] = 0, slices - 1
    return Phantom(phantom.image, phantom.labels, boxes, phantom.spacing)


def measure(
    case: pathlib.Path, boxes: int, slices: int, bundle: pathlib.Path, engine: str, threads: int
) -> Peak:
    """Run one case file in a fresh process. Raises CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        status, out = pathlib.Path(folder, "status"), pathlib.Path(folder, "out")
        command = [sys.executable, "-c", _RUN, status, case, "-o", out, "--model", bundle, "--quiet"]
        command += ["--engine", engine, "--threads", threads]
        subprocess.run([str(part) for part in command], check=True)
        kib = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]
        seconds = (out / "efficiency.csv").read_text().splitlines()[1].rpartition(",")[2]
    return Peak(case.stem, engine, boxes, slices, round(int(kib) / 1024, 1), float(seconds))


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path))
@click.option("--engine", type=click.Choice(ENGINES), multiple=True, default=ENGINES, show_default=True)
@click.option("--slices", type=click.IntRange(1, 287), default=16, show_default=True, help="Of the volume.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=pathlib.Path))
def main(
    bundle: pathlib.Path, engine: tuple[str, ...], slices: int, threads: int, json_path: pathlib.Path | None
) -> None:
    """Print the peak memory of segmenting two large cases with BUNDLE."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, covered, draw in (
            ("2DBox_1920x2560", 1, image_case),
            ("3DBox_287x512x512", slices, lambda: volume_case(slices)),
        ):
            phantom = draw()
            case = pathlib.Path(folder, f"{name}.npz")
            np.savez_compressed(case, imgs=phantom.image, boxes=phantom.boxes)
            for one in engine:
                peaks.append(measure(case, len(phantom.boxes), covered, bundle, one, threads))
    click.echo(f"{'case':<20}{'engine':<13}{'boxes':>6}{'slices':>8}{'peak MiB':>10}{'seconds':>9}")
    for peak in peaks:
        click.echo(
            f"{peak.case:<20}{peak.engine:<13}{peak.boxes:>6}{peak.slices:>8}"
            f"{peak.peak_mib:>10.0f}{peak.seconds:>9.1f}"
        )
    machine = {
        "machine": platform.platform(),
        "python": platform.python_version(),
        "threads": threads,
        "versions": {tool: importlib.metadata.version(tool) for tool in ("litemed", "numpy", *engine)},
    }
    click.echo(f"target: under {TARGET_MIB} MiB each; {json.dumps(machine)}")
    if json_path:
        json_path.write_text(
            json.dumps(machine | {"peaks": [asdict(peak) for peak in peaks]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
