"""Cases in folders below: found once, whatever links there are, and results in folders of the same names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from click.testing import CliRunner

from litemed.runtime.cli import main
from litemed.runtime.inputs.cases import list_cases
from litemed.runtime.inputs.subfolders import find_below
from litemed.runtime.jobs import plan_jobs
from litemed.runtime.report import REPORT, load_report


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (32, 40), np.uint8)
    np.savez(path, imgs=image, boxes=[[4, 5, 20, 22]])
    return path


@pytest.fixture
def study(tmp_path):
    """A tree with one name in three folders, a DICOM series with an index above it, loops, hidden files."""
    root = tmp_path / "study"
    for number, name in enumerate(("a.npz", "one/a.npz", "one/deep/er/a.npz", ".hidden/b.npz", "one/.c.npz")):
        put(root / name, number)
    series = root / "dicom/series"
    series.mkdir(parents=True)
    shipped = Path(pydicom.data.__file__).parent / "test_files"
    shutil.copy(shipped / "CT_small.dcm", series / "slice")
    shutil.copy(shipped / "CT_small.dcm", root / "dicom/DICOMDIR")
    (root / "dicom/series.json").write_text(json.dumps({"boxes": [[10, 10, 60, 60]]}))
    (root / "one/loop").symlink_to(root, target_is_directory=True)
    (root / "one/again").symlink_to(root / "one/deep", target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    (root / "empty").mkdir()
    return root


def names(root: Path, *leave_out: Path) -> list[str]:
    found, ways = find_below([root], leave_out)
    jobs = plan_jobs(list_cases(found), Path("out"), None, ways=ways)
    assert all(job.refusal is None for job in jobs)
    return [job.name for job in jobs]


def test_each_case_below_is_found_once_by_its_folder_and_name(study):
    assert names(study) == ["a", "dicom/series", "one/a", "one/again/er/a"]


def test_results_keep_folders_and_the_next_run_skips_them_all(study, box_bundle):
    out = study / "segs"  # among the cases, and not taken for some
    arguments = [str(study), "-o", str(out), "--overlay", str(out / "shown"), "--model", str(box_bundle)]
    arguments += ["--engine", "onnxruntime", "--recursive", "--html"]
    first = CliRunner().invoke(main, arguments)
    assert (first.exit_code, first.stderr.count("\n")) == (0, 1), first.output  # of weights not trained
    kept = {str(path.relative_to(out)) for path in out.rglob("*.*") if path.suffix not in (".csv", ".html")}
    assert {one for one in kept if "shown" not in one} == {
        *("a.npz", "dicom/series.dcm", "one/a.npz", "one/again/er/a.npz", REPORT)
    }
    assert {one for one in kept if "shown" in one} == {
        *("shown/a.png", "shown/dicom/series.png", "shown/one/a.png", "shown/one/again/er/a.png")
    }
    assert (out / "report.html").read_text().count("data:image/jpeg;base64,") == 4
    segs = [np.load(out / f"{name}.npz")["segs"] for name in ("a", "one/a")]
    assert segs[0].shape == segs[1].shape == (32, 40)
    assert [case.case for case in load_report(out / REPORT)] == [
        "a",
        "dicom/series",
        "one/a",
        "one/again/er/a",
    ]
    (study / "boxes.csv").write_text("case,x0,y0,x1,y1\na,1,1,9,9\n")
    refused = CliRunner().invoke(main, [*arguments, "--prompts", str(study / "boxes.csv")])
    assert (refused.exit_code, "several cases are called a" in refused.stderr) == (2, True)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0
    assert "4 skipped, 0 failed" in again.stdout


def test_results_go_to_no_folder_that_a_link_names_elsewhere(study, tmp_path, box_bundle):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/one").symlink_to(tmp_path / "elsewhere")
    arguments = [str(study), "-o", str(tmp_path / "out"), "--model", str(box_bundle), "--recursive"]
    run = CliRunner().invoke(main, [*arguments, "--engine", "onnxruntime"])
    assert run.exit_code == 1
    assert run.stderr.count("is a link out of the folder of results") == 2
    assert not list((tmp_path / "elsewhere").iterdir())
