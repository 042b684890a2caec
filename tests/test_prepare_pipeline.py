"""The command litemed-prepare, from files to folders: exact, parallel, resumable, plain about faults."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel
import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result

from litemed.runtime.errors import InputError
from litemed.runtime.modalities import MODALITIES
from litemed.runtime.preprocess import preprocess
from litemed.runtime.readers import read_case
from litemed.train.prepare.cli import main
from litemed.train.prepare.pipeline import prepare_slices
from litemed.train.prepare.readers import read_pair
from litemed.train.prepare.settings import Settings
from litemed.train.prepare.sources import SourceOptions, find_pairs
from litemed.train.prepare.store import Slices, verify


def command(*arguments: object) -> list[str]:
    workers = () if "--workers" in arguments else ("--workers", "1")
    return [sys.executable, "-m", "litemed.train.prepare.cli", *map(str, arguments), *workers]


def prepare(*arguments: object) -> Result:
    """Run the command in this process, as those do who do not ask for workers."""
    return CliRunner().invoke(main, command(*arguments)[3:])


def errors(finished: Result | subprocess.CompletedProcess[str]) -> list[str]:
    return finished.stderr.splitlines()


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def labelled_folder(root: Path, modality: str, count: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (200, 240, 3)).astype(np.uint8), (9, 9), 3)
        labels = np.zeros((200, 240), np.uint8)
        labels[20:120, 30:150] = 1
        labels[130:180, 100 + number : 200] = 2
        write_png(root / modality / f"images/{number:03d}.png", image)
        write_png(root / modality / f"labels/{number:03d}.png", labels)


@pytest.fixture(scope="module")
def real_rows(shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the smallest two pairs of every modality, of different sources where there are several."""
    index = shared("data/open/index.csv")
    with index.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows.sort(key=lambda row: (index.parent / row["image"]).stat().st_size)
    chosen: list[dict[str, str]] = []
    for modality in dict.fromkeys(row["modality"] for row in rows):
        of_modality = [row for row in rows if row["modality"] == modality]
        first = of_modality[0]
        second = next((row for row in of_modality if row["source"] != first["source"]), of_modality[1])
        chosen += [first, second]
    for row in chosen:
        row["image"] = str(index.parent / row["image"])
        row["label"] = str(index.parent / row["label"])
    path = tmp_path_factory.mktemp("real") / "index.csv"
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return path


@pytest.fixture(scope="module")
def real_slices(real_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Slices:
    out = tmp_path_factory.mktemp("slices")
    finished = prepare(real_rows, "-o", out, "--workers", 2)
    assert finished.exit_code == 0, finished.stderr
    verify(out)
    return Slices.open(out)


def test_real_pairs_of_all_modalities_become_slices(real_rows: Path, real_slices: Slices) -> None:
    slices = real_slices
    assert set(slices.indices_by_modality()) == set(MODALITIES)
    pairs = {(p.source, p.case): p for p in find_pairs([real_rows], SourceOptions()).pairs}
    seen = set()
    for i in range(len(slices)):
        image, labels = slices[i]
        info = slices.info(i)
        seen.add((info.source, info.case))
        assert image.dtype == np.uint8
        assert image.shape[:2] == labels.shape
        assert max(labels.shape) == 256
        counts = np.bincount(labels.ravel(), minlength=info.objects + 1)
        assert len(counts) == info.objects + 1 >= 2
        assert counts[1:].min() >= 10
        assert pairs[info.source, info.case].split == info.split
    assert seen == set(pairs)


def test_real_pairs_of_all_modalities_become_cases(real_rows: Path, tmp_path: Path) -> None:
    arguments = ("--cases", "--max-slices", 4, "--max-boxes", 8, "--window", "soft tissue")
    finished = prepare(real_rows, "-o", tmp_path / "out", *arguments)
    assert finished.exit_code == 0, finished.stderr
    cases = sorted((tmp_path / "out/cases").glob("*.npz"))
    pairs = {(p.source, p.case): p for p in find_pairs([real_rows], SourceOptions()).pairs}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert sorted(entry["file"] for entry in manifest["cases"]) == [path.name for path in cases]
    assert {entry["modality"] for entry in manifest["cases"]} == set(MODALITIES)
    assert {entry["source"] for entry in manifest["terms"]} == {source for source, _ in pairs}
    for entry in manifest["cases"]:
        case = read_case(tmp_path / "out/cases" / entry["file"])
        with np.load(tmp_path / "out/gts" / entry["file"]) as archive:
            truth = archive["gts"]
        assert 1 <= len(case.boxes) == truth.max() <= 8
        assert case.boxes.clipped == ()
        for label, (x0, y0, x1, y1) in enumerate(case.boxes.xyxy, start=1):
            *_, y, x = np.nonzero(truth == label)
            assert (x.min(), y.min()) == (x0, y0)
            assert max(x.max(), x.min() + 1) == x1
            assert max(y.max(), y.min() + 1) == y1
        if case.is_volume:
            assert len(truth) <= 4
        else:
            original = read_pair(pairs[entry["source"], entry["case"]])
            assert (case.image == original.image).all()
            assert not (truth[original.labels == 0]).any()


def test_slices_and_cases_show_the_network_the_same(
    real_rows: Path, real_slices: Slices, tmp_path: Path
) -> None:
    assert prepare(real_rows, "-o", tmp_path / "out", "--cases").exit_code == 0
    slices = real_slices
    number = {(slices.info(i).source, slices.info(i).case, slices.info(i).z): i for i in range(len(slices))}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    compared = set()
    for entry in manifest["cases"]:
        case = read_case(tmp_path / "out/cases" / entry["file"])
        planes = case.image if case.is_volume else case.image[None]
        for z, plane in enumerate(planes):
            i = number.get((entry["source"], entry["case"], z))
            if i is not None:
                assert (preprocess(slices[i][0])[0] == preprocess(plane)[0]).all()
                compared.add(entry["modality"])
    assert compared == set(MODALITIES)


def test_every_kind_of_input_and_what_the_manifest_says(tmp_path: Path) -> None:
    source = tmp_path / "in"
    labelled_folder(source, "Fundus", 2)
    volume = np.full((40, 50, 6), -1000, np.int16)
    volume[10:30, 10:40, 1:4] = 60
    labels = np.zeros(volume.shape, np.uint8)
    labels[10:30, 10:40, 1:4] = 1
    labels[0:2, 0:2, 5] = 2
    for folder, array in (("images", volume), ("labels", labels)):
        (source / "val/CT/organs" / folder).mkdir(parents=True)
        image = nibabel.Nifti1Image(array, np.diag([-1.0, -1, 3, 1]))
        nibabel.save(image, source / "val/CT/organs" / folder / "case.nii.gz")
    np.savez(
        source / "MR_Brain_1.npz", imgs=np.ones((3, 30, 30), np.uint8), gts=np.ones((3, 30, 30), np.uint8)
    )
    finished = prepare(source, "-o", tmp_path / "data", "--val-fraction", 0, "--window", "60,100")
    assert finished.exit_code == 0, finished.stderr
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    assert [
        (c["modality"], c["source"], c["split"], c["cases"], c["slices"], c["objects"])
        for c in manifest["counts"]
    ] == [
        ("CT", "organs", "val", 1, 3, 3),
        ("Fundus", "in", "train", 2, 2, 4),
        ("MR", "in", "train", 1, 3, 3),
    ]
    assert manifest["total"] == {
        "cases": 4,
        "slices": 8,
        "objects": 10,
        "volume_objects_too_small": 1,
        "slice_objects_too_small": 0,
        "slices_without_object": 3,
        "cases_without_object": 0,
    }
    assert manifest["settings"]["window"] == {"level": 60, "width": 100}
    image, _ = Slices.open(tmp_path / "data", modalities=["CT"])[0]
    # The level, in the middle of the window, is mid-grey; air is black.
    assert set(np.unique(image[80:120, 80:120])) == {128}
    assert image[0, 0] == 0


def test_bad_pairs_are_one_line_each_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "in"
    labelled_folder(source, "US", 6)
    write_png(source / "US/labels/000.png", np.ones((30, 30), np.uint8))
    (source / "US/images/001.png").write_bytes(b"no picture")
    (source / "US/labels/002.png").unlink()
    np.savez(source / "US/float.npz", imgs=np.ones((9, 9), np.uint8), gts=np.full((9, 9), 0.5))
    np.savez(source / "US/negative.npz", imgs=np.ones((9, 9), np.uint8), gts=np.full((9, 9), -1))
    (source / "scan_1.npz").write_bytes((source / "US/float.npz").read_bytes())
    for arguments in ((), ("--cases",)):
        out = tmp_path / f"out{len(arguments)}"
        finished = prepare(source, "-o", out, "--workers", 2, *arguments)
        assert finished.exit_code == 1
        lines = errors(finished)
        wanted = {
            "labels/000.png": "labels have shape (30, 30), the image (200, 240)",
            "images/001.png": "not a PNG, JPEG or TIFF image",
            "images/002.png": "no file 002.*",
            "float.npz": "labels hold 0.5",
            "negative.npz": "negative value -1",
            "scan_1.npz": "modality unknown",
        }
        assert len(lines) == len(wanted)
        for file, reason in wanted.items():
            (line,) = (line for line in lines if file in line)
            assert line.startswith("error: ")
            assert reason in line
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["total"]["cases"] == 3
        assert {Path(entry["name"]).name for entry in manifest["failed"]} == {
            "000",
            "001",
            "float",
            "negative",
        }
        assert len(manifest["problems"]) == 2
    assert len(Slices.open(tmp_path / "out0")) == 3


def test_bad_rows_of_an_index_are_one_line_each_and_the_rest_goes_on(tmp_path: Path) -> None:
    labelled_folder(tmp_path, "US", 2)
    volume = nibabel.Nifti1Image(np.zeros((20, 20, 4), np.float32), np.eye(4))
    nibabel.save(volume, tmp_path / "whole.nii.gz")
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "whole.nii.gz").read_bytes()[:-30])
    assert cv2.imwrite(str(tmp_path / "half.tif"), np.full((200, 240), 0.5, np.float32))
    rows = {
        "good": ("US", "US/images/000.png", "US/labels/000.png", ""),
        "no image": ("US", "gone.png", "US/labels/000.png", "gone.png: no such file"),
        "no label": ("US", "US/images/000.png", "lost.png", "lost.png: no such file"),
        "modality": ("Thermo", "US/images/000.png", "US/labels/000.png", "line 5: unknown modality 'Thermo'"),
        "volume": ("CT", "cut.nii.gz", "whole.nii.gz", "cut.nii.gz: voxels cannot be read"),
        "fractions": ("US", "US/images/001.png", "half.tif", "half.tif: labels hold 0.5"),
        "kinds": ("MR", "whole.nii.gz", "US/labels/001.png", "not of the image's type"),
    }
    with (tmp_path / "index.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["modality", "case", "image", "label", "split"])
        writer.writerows([row[0], case, *row[1:3], "train"] for case, row in rows.items())
    finished = prepare(tmp_path / "index.csv", "-o", tmp_path / "out")
    assert finished.exit_code == 1
    wanted = [reason for *_, reason in rows.values() if reason]
    lines = errors(finished)
    assert len(lines) == len(wanted)
    for reason in wanted:
        assert sum(line.startswith("error: ") and reason in line for line in lines) == 1, reason
    assert {Slices.open(tmp_path / "out").info(0).case} == {"good"}
    assert len(Slices.open(tmp_path / "out")) == 1


@pytest.mark.parametrize("change", ["repaired", "repainted"])
def test_a_changed_pair_is_taken_in_the_next_run(tmp_path: Path, change: str) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    labelled_folder(source, "US", 3)
    image = source / "US/images/001.png"
    good = image.read_bytes()
    if change == "repaired":
        image.write_bytes(good[:100])
    assert prepare(source, "-o", out).exit_code == (1 if change == "repaired" else 0)
    before = tree(out)
    if change == "repaired":
        image.write_bytes(good)
    else:
        write_png(image, np.full((200, 240), 77, np.uint8))
    assert prepare(source, "-o", out).exit_code == 0
    assert prepare(source, "-o", tmp_path / "fresh").exit_code == 0
    assert tree(out) == tree(tmp_path / "fresh") != before


def test_a_folder_that_is_being_changed_cannot_be_opened(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "in", "US", 1)
    found = find_pairs([tmp_path / "in"], SourceOptions())
    prepare_slices(found, tmp_path / "out", Settings())

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_slices(found, tmp_path / "out", Settings(), on_progress=interrupt)
    with pytest.raises(InputError, match="to its end first"):
        Slices.open(tmp_path / "out")


def test_what_failed_for_want_of_a_package_is_tried_again(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / "in/MR" / name).mkdir(parents=True)
        volume = nibabel.Nifti1Image(np.ones((30, 30, 3), np.uint8), np.eye(4))
        nibabel.save(volume, tmp_path / "in/MR" / name / "a.nii")
    script = "import sys; sys.modules['nibabel'] = None; from litemed.train.prepare.cli import main; main()"
    arguments = [str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--workers", "1"]
    without = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert without.returncode == 1
    assert errors(without) == [
        "error: nibabel, which reads NIfTI, is not installed; in the checkout: pip install '.[train]'"
    ]
    assert prepare(*arguments).exit_code == 0
    assert len(Slices.open(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}", "-o", "{out}"], "no pair of image and labels found"),
        (["{missing}", "-o", "{out}"], "no such file or folder"),
        (["{source}", "-o", "{out}", "--modality", "Thermo"], "--modality Thermo: unknown"),
        (["{source}", "-o", "{out}", "--window", "liver"], "window 'liver'"),
        (["{source}", "-o", "{out}", "--min-area", "0"], "min area pixels 0"),
        (["{source}", "-o", "{out}", "--jitter", "0.1"], "--jitter needs --cases"),
        (["{source}", "-o", "{out}", "--cases", "--jitter", "2"], "jitter 2.0"),
        (["{source}", "-o", "{out}", "--split", "holdout"], "split 'holdout'"),
        (["{source}", "-o", "{out}", "--limit", "0"], "limit 0"),
        (["{source}", "-o", "{out}", "--val-fraction", "2"], "validation fraction 2.0"),
        (["{source}", "-o", "{foreign}"], "not made by litemed-prepare"),
        (["{source}", "-o", "{file}"], "a folder"),
    ],
)
def test_wrong_use_is_one_line_and_nothing_is_written(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {name: tmp_path / name for name in ("source", "empty", "missing", "out", "foreign", "file")}
    labelled_folder(places["source"], "US", 1)
    places["empty"].mkdir()
    places["foreign"].mkdir()
    (places["foreign"] / "thesis.txt").write_text("precious")
    places["file"].write_text("precious")
    before = tree(tmp_path)
    finished = prepare(*(argument.format(**places) for argument in arguments))
    assert finished.exit_code == (1 if "{file}" in arguments else 2)
    (line,) = errors(finished)
    assert line.startswith("error: ")
    assert message in line
    assert tree(tmp_path) == before


def test_a_folder_keeps_to_its_settings_and_input_unless_told(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    labelled_folder(source, "US", 2)
    labelled_folder(source, "OCT", 2)
    assert prepare(source, "-o", out).exit_code == 0
    first = tree(out)
    for arguments in (("--min-area", 20), ("--cases",)):
        finished = prepare(source, "-o", out, *arguments)
        assert finished.exit_code == 2
        assert "was prepared with other settings" in finished.stderr
        assert tree(out) == first
    finished = prepare(source / "US", "-o", out, "--modality", "US")
    assert finished.exit_code == 2
    assert "holds OCT/" in finished.stderr
    assert tree(out) == first
    assert (
        prepare(source / "OCT", "-o", out, "--modality", "OCT", "--min-area", 20, "--overwrite").exit_code
        == 0
    )
    assert set(Slices.open(out).indices_by_modality()) == {"OCT"}
    assert not (out / "US/in-train-00000.npy").exists()


def test_other_settings_make_all_shards_anew(tmp_path: Path) -> None:
    labelled_folder(tmp_path / "in", "US", 2)
    assert prepare(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    other = ("--min-area", 7000, "--overwrite")
    assert prepare(tmp_path / "in", "-o", tmp_path / "out", *other).exit_code == 0
    assert prepare(tmp_path / "in", "-o", tmp_path / "fresh", *other).exit_code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
    assert Slices.open(tmp_path / "out").objects.tolist() == [1, 1]


def test_parallel_and_serial_give_the_same_bytes(tmp_path: Path) -> None:
    for seed, modality in enumerate(("US", "OCT", "Fundus")):
        labelled_folder(tmp_path / "in", modality, 4, seed)
    for workers in (1, 2):
        assert prepare(tmp_path / "in", "-o", tmp_path / f"w{workers}", "--workers", workers).exit_code == 0
    assert tree(tmp_path / "w1") == tree(tmp_path / "w2")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A source of many shards, which take some seconds to make, and what comes of it without interruption."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    source = folder / "in"
    labelled_folder(source, "US", 5)
    for number in range(30):
        (source / f"OCT/set{number:02d}").mkdir(parents=True)
        for part in ("images", "labels"):
            (source / f"OCT/set{number:02d}" / part).symlink_to(source / "US" / part)
    finished = prepare(source, "-o", folder / "whole", "--workers", 2)
    assert finished.exit_code == 0, finished.stderr
    return source, tree(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "ending"), [(1, signal.SIGKILL), (2, signal.SIGKILL), (2, signal.SIGINT)]
)
def test_an_interrupted_run_goes_on_to_the_same_result(
    tmp_path: Path, uninterrupted: tuple[Path, dict[str, bytes]], workers: int, ending: signal.Signals
) -> None:
    source, whole = uninterrupted
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(source, "-o", out, "--workers", workers),
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    records: list[Path] = []
    while len(records) < 3 and process.poll() is None:
        time.sleep(0.002)
        records = list(out.glob("*/*.json"))
    # Only the parent is killed: its workers must notice and end.
    os.kill(process.pid, ending)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    if ending == signal.SIGINT:
        assert "give the same command again" in stderr
    wait_for_the_end_of_session(process.pid)
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/*.json")}
    assert 3 <= len(finished) < 31

    again = prepare(source, "-o", out, "--workers", workers)
    assert again.exit_code == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert tree(out) == whole


def wait_for_the_end_of_session(session: int) -> None:
    """Wait until no process of the session is left: workers must not outlive their parent."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(belongs_to(process, session) for process in psutil.process_iter()):
            return
        time.sleep(0.1)
    pytest.fail("a worker is still there a minute after its parent ended")


def belongs_to(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_two_processes_do_not_work_on_one_folder(tmp_path: Path) -> None:
    from litemed.runtime.files import FolderLock

    labelled_folder(tmp_path / "in", "US", 1)
    (tmp_path / "out").mkdir()
    with FolderLock(tmp_path / "out"):
        finished = prepare(tmp_path / "in", "-o", tmp_path / "out")
    assert finished.exit_code == 1
    assert "another process" in finished.stderr


def test_version_loads_nothing_heavy_and_preparing_needs_no_torch(tmp_path: Path) -> None:
    assert "litemed-prepare scans -o data" in prepare("--help").stdout
    labelled_folder(tmp_path / "in", "US", 1)
    script = (
        "import sys, litemed.train.prepare.cli as cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'nibabel', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "sys.modules['torch'] = None\n"
        f"cli.main([{str(tmp_path / 'in')!r}, '-o', {str(tmp_path / 'out')!r}, '--workers', '1'])\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(Slices.open(tmp_path / "out")) == 1
