"""--max-memory: what a case may need is told from its header, and is more than it takes, but not by far."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from test_raster import write

from litemed.runtime.errors import UsageError
from litemed.runtime.inputs.memory import case_bytes, parse_size

CODE = """
import json, sys, tracemalloc
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.inputs.pictures import decode_picture
from litemed.runtime.inputs.scaling import Scaling
for path in sys.argv[1:]:
    read_case(path, Scaling("MR"))  # imports
    tracemalloc.start()
    case = read_case(path, Scaling("MR"))
    values = case.values()
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Volumes of 2 million voxels in every way that takes memory in a way of its own."""
    folder = tmp_path_factory.mktemp("volumes")
    stored = np.random.default_rng(0).integers(-999, 999, (128, 128, 128), np.int16)
    boxes = [[9, 9, 60, 70, 80, 62]]
    for name, dtype in (("i2.nii", "i2"), ("i2.nii.gz", "i2"), ("f8.nii.gz", "f8"), ("u1.nii.gz", "u1")):
        nibabel.save(nibabel.Nifti1Image(stored.astype(dtype), np.eye(4)), folder / f"MR_{name}")
    scaled = nibabel.Nifti1Image(stored * 0.37, np.eye(4))
    scaled.set_data_dtype(np.int16)
    nibabel.save(scaled, folder / "MR_scaled.nii.gz")
    for name in ("raw.nrrd", "raw.mha"):
        write(folder / f"MR_{name}", stored)
    np.savez_compressed(folder / "grey.npz", imgs=stored.astype(np.uint8), boxes=boxes)
    np.savez(folder / "rgb.npz", imgs=np.stack([stored.astype(np.uint8)] * 3, -1), boxes=boxes)
    for path in folder.glob("MR_*"):
        path.with_name(f"{path.name.split('.')[0]}.json").write_text(json.dumps({"boxes": boxes}))
    return sorted(path for path in folder.iterdir() if path.suffix != ".json")


def test_reading_takes_less_than_is_told_and_not_far_less(volumes):
    told = [case_bytes(path) for path in volumes]
    run = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, volumes)], capture_output=True, text=True, check=True
    )
    taken = list(map(int, run.stdout.split()))
    factors = {path.name: most / took for path, most, took in zip(volumes, told, taken, strict=True)}
    # A label map and a picture come on top, which of values of 8 bits are as much again.
    assert all(1 < factor < 5 for factor in factors.values()), sorted(factors.items())


def test_what_may_need_more_fails_by_one_line_and_the_others_are_done(volumes, box_bundle, tmp_path):
    small = tmp_path / "small.npz"
    np.savez(small, imgs=np.eye(40, dtype=np.uint8), boxes=[[4, 5, 20, 22]])
    big = next(path for path in volumes if path.name.startswith("MR_f8"))
    fixed = [*("-o", tmp_path / "out", "--model", box_bundle, "--engine", "onnxruntime", "--quiet")]
    command = [sys.executable, "-m", "litemed.runtime.cli", big, small, *fixed, "--max-memory", "470MB"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        f"error: {big}: may need 528 MiB of memory, and 470 are allowed by --max-memory; "
        "allow more, or cut it into parts"
    ]
    assert (tmp_path / "out/small.npz").is_file()


def test_sizes_are_read_as_people_write_them():
    assert [parse_size(text) for text in ("2GB", "1.5 GiB", "500m", "1048576")] == [
        *(2 * 2**30, 3 * 2**29, 500 * 2**20, 2**20)
    ]
    for text in ("", "two", "-1GB", "0", "1PB"):
        with pytest.raises(UsageError, match="--max-memory"):
            parse_size(text)
