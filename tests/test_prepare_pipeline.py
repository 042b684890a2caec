"""The command litemed-prepare, from files to folders: exact, parallel, resumable, plain about faults."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import nibabel
import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from litemed.runtime.files import FolderLock
from litemed.runtime.inputs.cases import read_case
from litemed.runtime.modalities import MODALITIES
from litemed.runtime.preprocess import preprocess
from litemed.train.prepare.cli import main
from litemed.train.prepare.store import Slices


def prepare(*arguments: object) -> Result:
    """Run the command in this process; the last of two --workers counts."""
    return CliRunner().invoke(main, ["--workers", "1", *map(str, arguments)])


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def labelled_folder(root: Path, modality: str, count: int) -> None:
    for number in range(count):
        image = np.random.default_rng(number).integers(0, 256, (200, 240, 3)).astype(np.uint8)
        labels = np.zeros((200, 240), np.uint8)
        labels[20:120, 30:150] = 1
        labels[130:180, 100 + number : 200] = 2
        write_png(root / modality / f"images/{number:03d}.png", cv2.GaussianBlur(image, (9, 9), 3))
        write_png(root / modality / f"labels/{number:03d}.png", labels)


def test_real_pairs_become_slices_and_cases_that_show_the_network_the_same(shared, tmp_path):
    """The first pair of every modality."""
    for out, *cases in (("slices",), ("cases", "--cases")):
        finished = prepare(shared("data/open/index.csv"), "-o", tmp_path / out, "--limit", 1, *cases)
        assert finished.exit_code == 0, finished.stderr
    slices = Slices.open(tmp_path / "slices")
    compared = set()
    for i in range(len(slices)):
        image, labels = slices[i]
        info = slices.info(i)
        counts = np.bincount(labels.ravel())
        assert len(counts) == info.objects + 1 >= 2
        assert counts[1:].min() >= 10
        (path,) = (tmp_path / "cases/cases").glob(f"?DBox_{info.modality}*{info.case}.npz")
        case = read_case(path)
        plane = case.image[info.z] if case.is_volume else case.image
        assert (preprocess(image)[0] == preprocess(plane)[0]).all()
        compared.add(info.case)
    assert len(compared) == len(MODALITIES) == len(list((tmp_path / "cases/gts").iterdir()))


def test_every_kind_of_input_and_what_the_manifest_says(tmp_path):
    source = tmp_path / "in"
    labelled_folder(source, "Fundus", 2)
    labels = np.zeros((40, 50, 6), np.uint8)
    labels[10:30, 10:40, 1:4] = 1
    labels[0:2, 0:2, 5] = 2
    for folder, array in (("images", np.where(labels == 1, 60, -1000).astype(np.int16)), ("labels", labels)):
        (source / "val/CT/organs" / folder).mkdir(parents=True)
        image = nibabel.Nifti1Image(array, np.diag([-1.0, -1, 3, 1]))
        nibabel.save(image, source / "val/CT/organs" / folder / "case.nii.gz")
    block = np.zeros((3, 30, 30), np.uint8)
    block[:, 5:25, 5:25] = 1
    np.savez(source / "MR_Brain_1.npz", imgs=block, gts=block)
    finished = prepare(source, "-o", tmp_path / "data", "--val-fraction", 0, "--window", "60,100")
    assert finished.exit_code == 0, finished.stderr
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert [list(count.values())[:6] for count in manifest["counts"]] == [
        ["CT", "organs", "val", 1, 3, 3],
        ["Fundus", "in", "train", 2, 2, 4],
        ["MR", "in", "train", 1, 3, 3],
    ]
    assert list(manifest["total"].values()) == [4, 8, 10, 1, 0, 3, 0]
    assert {entry["source"] for entry in manifest["terms"]} == {"organs", "in"}
    image, _ = Slices.open(tmp_path / "data", split="val")[0]
    # The level, in the middle of the window, is mid-grey; air is black.
    assert set(np.unique(image[80:120, 80:120])) == {128}
    assert image[0, 0] == 0


@pytest.mark.parametrize("colours", [(255, 200, 90), (255, 255, 255)], ids=["grey", "same colour"])
def test_masks_with_a_palette_give_the_boxes_of_its_indices_and_lossy_ones_none(tmp_path, colours):
    """The image may be a JPEG, its labels not."""
    labelled_folder(tmp_path / "in", "Microscopy", 2)
    folder = tmp_path / "in/Microscopy/labels"
    labels = cv2.imread(str(folder / "000.png"), cv2.IMREAD_UNCHANGED)
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([value for colour in colours for value in [colour] * 3])
    palette.save(folder / "000.png")
    (folder / "001.png").unlink()
    Image.fromarray(labels * 100).save(folder / "001.jpg")
    for out, *cases in (("slices",), ("cases", "--cases")):
        finished = prepare(tmp_path / "in", "-o", tmp_path / out, *cases)
        assert finished.exit_code == 1
        why = "a lossy file (JPEG) does not keep labels; save them as PNG"
        assert finished.stderr == f"error: {folder / '001.jpg'}: {why}\n"
    (path,) = (tmp_path / "cases/cases").iterdir()
    assert read_case(path).boxes.xyxy.tolist() == [[30, 20, 149, 119], [100, 130, 199, 179]]


@pytest.mark.parametrize("arguments", [(), ("--cases",)])
def test_bad_pairs_are_one_line_each_and_the_rest_goes_on(tmp_path, arguments):
    source, out = tmp_path / "in", tmp_path / "out"
    labelled_folder(source, "US", 6)
    write_png(source / "US/labels/000.png", np.ones((30, 30), np.uint8))
    (source / "US/images/001.png").write_bytes(b"no picture")
    (source / "US/labels/002.png").unlink()
    (source / "US/images/003.jpg").write_bytes(b"two of this name")
    np.savez(source / "US/float.npz", imgs=np.ones((9, 9), np.uint8), gts=np.full((9, 9), 0.5))
    (source / "scan_1.npz").write_bytes((source / "US/float.npz").read_bytes())
    finished = prepare(source, "-o", out, *arguments)
    assert finished.exit_code == 1
    wanted = {
        "labels/000.png": "labels have shape (30, 30), the image (200, 240)",
        "images/001.png": "not a PNG, JPEG or TIFF image",
        "images/002.png": "one file 002.*",
        "images/003.jpg": "one file 003.*",
        "float.npz": "labels hold 0.5",
        "scan_1.npz": "modality unknown",
    }
    manifest = json.loads((out / "manifest.json").read_text())
    problems = manifest["problems"]
    assert sorted(finished.stderr.splitlines()) == sorted(f"error: {line}" for line in problems)
    assert len(problems) == len(wanted)
    for file, reason in wanted.items():
        assert any(file in line and reason in line for line in problems)
    assert manifest["total"]["cases"] == 2


def test_each_value_of_a_mask_is_an_object_as_the_help_says(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[5:25, 5:25], labels[30:60, 30:60] = 128, 255
    write_png(tmp_path / "US/images/a.png", labels)
    write_png(tmp_path / "US/labels/a.png", labels)
    done = prepare(tmp_path / "US", "-o", tmp_path / "out", "--cases")
    assert (done.exit_code, done.stderr) == (0, "")
    (gts,) = (tmp_path / "out/gts").iterdir()
    found = np.load(gts)["gts"]
    assert sorted(set(found[labels == 128]) | set(found[labels == 255])) == [1, 2]
    assert "128 and 255 are two" in " ".join(prepare("--help").stdout.split())


@pytest.mark.parametrize("arguments", [[], ["--cases"], ["--workers", "2"]])
def test_spacing_that_looks_like_another_order_is_told_of_each_volume(arguments, tmp_path):
    labels = np.zeros((6, 40, 40), np.uint8)
    labels[1:5, 5:30, 5:30] = 1
    (tmp_path / "in/MR").mkdir(parents=True)
    for name, spacing in (
        ("xyz", (0.7, 0.7, 5)),
        ("zyx", (5, 0.7, 0.7)),
        ("same", (1, 1, 1)),
        ("mm", "none"),
    ):
        about = {} if spacing == "none" else {"spacing": spacing}
        np.savez(tmp_path / f"in/MR/{name}.npz", imgs=labels * 90, gts=labels, **about)
    np.savez(tmp_path / "in/MR/flat.npz", imgs=labels[2] * 90, gts=labels[2], spacing=(0.7, 0.7, 5))
    for _ in range(2):  # what is kept is told of as well
        done = prepare(tmp_path / "in/MR", "-o", tmp_path / "out", *arguments)
        line = "spacing 0.7, 0.7, 5 is read as z, y, x, but looks like x, y, z"
        assert done.stderr.splitlines() == [f"warning: {tmp_path / 'in/MR/xyz.npz'}: {line}"]
        assert done.exit_code == 0


def test_a_repaired_or_repainted_pair_is_taken_in_the_next_run(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    labelled_folder(source, "US", 3)
    good = (source / "US/images/001.png").read_bytes()
    (source / "US/images/001.png").write_bytes(good[:100])
    assert prepare(source, "-o", out).exit_code == 1
    for content in (good, (source / "US/images/002.png").read_bytes()):
        before = tree(out)
        (source / "US/images/001.png").write_bytes(content)
        assert prepare(source, "-o", out).exit_code == 0
        assert tree(out) != before
    assert prepare(source, "-o", tmp_path / "fresh").exit_code == 0
    assert tree(out) == tree(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("source", "out", "option", "message"),
    [
        ("foreign", "out", "", "no pair of image and labels found"),
        ("source", "out", "--window=liver", "window 'liver'"),
        ("source", "out", "--loose=0.1", "--loose need --cases"),
        ("source", "out", "--cases --jitter=0.1 --loose=0.4", "choose one"),
        ("source", "foreign", "", "take another folder"),
        ("source", "foreign/thesis.txt", "", "a folder"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(tmp_path, source, out, option, message):
    labelled_folder(tmp_path / "source", "US", 1)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("precious")
    before = tree(tmp_path)
    finished = prepare(tmp_path / source, "-o", tmp_path / out, *option.split())
    assert finished.exit_code == (1 if out.endswith(".txt") else 2)
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert tree(tmp_path) == before


def test_a_folder_keeps_to_its_settings_and_a_manifest_to_its_input(tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for modality in ("US", "OCT"):
        labelled_folder(source, modality, 2)
    assert prepare(source, "-o", out).exit_code == 0
    first = tree(out)
    for arguments in (("--min-area", 20), ("--cases",)):
        finished = prepare(source, "-o", out, *arguments)
        assert finished.exit_code == 2
        assert "with the same settings" in finished.stderr
        assert tree(out) == first
    with FolderLock(out):
        finished = prepare(source, "-o", out)
    assert finished.exit_code == 1
    assert "another process" in finished.stderr
    assert prepare(source / "OCT", "-o", out, "--modality", "OCT").exit_code == 0
    assert set(Slices.open(out).indices_by_modality()) == {"OCT"}


def session_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


@pytest.fixture(scope="module")
def source_and_result(tmp_path_factory):
    """A source of many shards, which take a second to make, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    labelled_folder(folder / "in", "US", 5)
    for number in range(15):
        (folder / f"in/OCT/set{number:02d}").mkdir(parents=True)
        for part in ("images", "labels"):
            (folder / f"in/OCT/set{number:02d}" / part).symlink_to(folder / "in/US" / part)
    finished = prepare(folder / "in", "-o", folder / "whole")
    assert finished.exit_code == 0, finished.stderr
    return folder / "in", tree(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "ending"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, source_and_result, workers, ending):
    source, whole = source_and_result
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "litemed.train.prepare.cli", source, "-o", out, "--workers", str(workers)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(out.glob("*/*.json"))) < 3 and process.poll() is None:
        time.sleep(0.002)
    # Ctrl-C reaches all, as in a terminal; only the parent is killed: its workers must notice and end.
    (os.killpg if ending == signal.SIGINT else os.kill)(process.pid, ending)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    if ending == signal.SIGINT:
        assert stderr == "interrupted: give the same command again to go on\n"
    deadline = time.monotonic() + 60
    while any(session_of(one) == process.pid for one in psutil.process_iter()):
        assert time.monotonic() < deadline, "a worker is still there a minute after its parent ended"
        time.sleep(0.1)
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/*.json")}
    assert 3 <= len(finished) < 16

    assert prepare(source, "-o", out).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert tree(out) == whole


def test_preparing_needs_no_torch(tmp_path):
    labelled_folder(tmp_path / "in", "US", 1)
    code = "import sys\nsys.modules['torch'] = None\nfrom litemed.train.prepare.cli import main\nmain()"
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--workers", "1"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    assert len(Slices.open(tmp_path / "out")) == 1
