"""`litemed-eval` end to end on real files, good and bad, and the arithmetic of its tables."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from click.testing import CliRunner, Result

from litemed.benchmarks.evaluate.cli import main
from litemed.benchmarks.evaluate.metrics import ClassScore, score_classes
from litemed.benchmarks.evaluate.scores import CaseResult, CaseScore, read_truth
from litemed.benchmarks.evaluate.summary import summarise
from litemed.benchmarks.phantoms import boxes_of
from litemed.train.prepare.cli import main as prepare


def run_cli(*arguments: object, expect: int = 0, workers: int = 1) -> Result:
    """Run the command in this process; its exit code must be the one expected."""
    given = [str(argument) for argument in (*arguments, "--workers", workers)]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == expect, done.output
    return done


def score(data: pathlib.Path, *more: object, expect: int = 0) -> Result:
    """Score the run `good` of the fixture into its folder `out`."""
    return run_cli(data / "good", data / "gts", "-o", data / "out", *more, expect=expect)


def errors_of(done: Result) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def write(path: pathlib.Path, **arrays: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def data(tmp_path):
    """Five cases of three modalities with ground truth, the cases themselves, and two runs."""
    shapes = ((40, 50), (44, 48), (36, 60), (6, 36, 40), (5, 40, 40))
    names = ("2DBox_US_0001", "2DBox_US_0002", "2DBox_X-Ray_0001", "3DBox_CT_0001", "3DBox_CT_0002")
    random = np.random.default_rng(0)
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        truth = np.zeros(shape, np.uint8)
        truth[..., 4:14, 3:15] = 1
        truth[..., 18:30, 10:34] = 2
        image = np.clip(60 + 50 * truth.astype(int) + random.integers(-9, 9, shape), 0, 255).astype(np.uint8)
        spacing = {"spacing": [2.5, 0.8, 0.8]} if len(shape) == 3 else {}
        write(tmp_path / "gts" / f"{name}.npz", gts=truth, **spacing)
        write(tmp_path / "cases" / f"{name}.npz", imgs=image, boxes=boxes_of(truth, 2), **spacing)
        write(tmp_path / "good" / f"{name}.npz", segs=np.roll(truth, number % 2, axis=-1))
        write(tmp_path / "poor" / f"{name}.npz", segs=np.roll(truth, 3 + number, axis=-1))
    return tmp_path


ONES = np.ones((6, 36, 40), np.uint8)


class TestCommand:
    def test_scores_are_those_of_the_metrics(self, data):
        write(data / "good" / "2DBox_US_9999.npz", segs=np.zeros((4, 4), np.uint8))
        (data / "gts" / "notes.txt").write_text("not a case")
        done = score(data)
        cases = {row["case"]: row for row in rows_of(data / "out" / "cases.csv")}
        classes = rows_of(data / "out" / "classes.csv")
        assert len(cases) == 5
        assert len(classes) == 10
        for name, row in cases.items():
            true = read_truth(data / "gts" / f"{name}.npz")
            truth, spacing = true.labels, true.spacing
            segs = np.load(data / "good" / f"{name}.npz")["segs"]
            expected = score_classes(truth, segs, spacing)
            assert float(row["dsc"]) == pytest.approx(np.mean([s.dsc for s in expected]), abs=1e-6)
            assert float(row["nsd"]) == pytest.approx(np.mean([s.nsd for s in expected]), abs=1e-6)
            assert row["problem"] == ""
            listed = [
                [float(r[key]) for key in ("label", "dsc", "nsd")] for r in classes if r["case"] == name
            ]
            assert listed == [pytest.approx([s.label, s.dsc, s.nsd], abs=1e-6) for s in expected]
        assert done.stdout == (data / "out" / "table.md").read_text()
        written = {"table.md", "table.csv", "cases.csv", "classes.csv", "report.json"}
        assert {path.name for path in (data / "out").iterdir()} == written

        # The average is the macro average over the modalities.
        table = {row["modality"]: row for row in rows_of(data / "out" / "table.csv")}
        assert [row["cases"] for row in table.values()] == ["2", "2", "1", "5"]
        assert list(table) == ["CT", "US", "XRay", "Average"]
        of_modality = [
            np.mean([float(row["dsc"]) for row in cases.values() if row["modality"] == modality])
            for modality in ("CT", "US", "XRay")
        ]
        assert float(table["Average"]["dsc"]) == pytest.approx(np.mean(of_modality), abs=2e-6)

    def test_several_runs_and_trivial_predictors_side_by_side(self, data):
        runs = (f"tuned={data / 'good'}", data / "gts", "--run", f"base={data / 'poor'}")
        trivial = ("--cases", data / "cases", "--trivial")
        done = run_cli(*runs, *trivial, "-o", data / "out")
        # Processes do not change the result.
        run_cli(*runs, *trivial, "-o", data / "out2", workers=2)
        for path in (data / "out").iterdir():
            assert (data / "out2" / path.name).read_bytes() == path.read_bytes()
        report = json.loads((data / "out" / "report.json").read_text())
        assert report["runs"] == [
            "tuned",
            "base",
            "filled box",
            "ellipse/ellipsoid",
            "Otsu in box",
            "GrabCut",
        ]
        assert (report["settings"]["seed"], report["settings"]["resamples"]) == (0, 2000)
        by_run = {score["run"]: score["dsc"]["value"] for score in report["overall"]["scores"]}
        # The objects are rectangles: the box is the answer.
        assert by_run["filled box"] == 1
        first = report["differences"][0]
        assert first["run"] == "base"
        assert first["dsc"]["value"] == pytest.approx(by_run["tuned"] - by_run["base"])
        assert 0 < first["dsc"]["low"] <= first["dsc"]["value"] <= first["dsc"]["high"]
        assert "seed 0" in done.stdout
        assert "best trivial predictor: filled box, DSC 1.000" in done.stdout
        assert "does not beat every trivial predictor: CT, US, XRay" in done.stdout
        titles = "| Modality | Cases | base DSC | base NSD | tuned DSC | tuned NSD | filled box DSC"
        assert done.stdout.startswith(titles)

    def test_bad_predictions_count_as_0_and_are_named(self, data):
        marker, good = data / "executed", data / "good"

        class Payload:
            def __reduce__(self) -> tuple[object, tuple[object, ...]]:
                return pathlib.Path.touch, (marker,)

        whole = (good / "2DBox_US_0002.npz").read_bytes()
        small = np.zeros((44, 48), int)
        for content, word in (
            (None, "no prediction"),
            (whole[: len(whole) // 2], "truncated"),
            ({"segs": np.array([Payload()], dtype=object)}, "pickled"),
            ({"labels": small}, "no array 'segs'"),
            ({"segs": small.astype(np.float32)}, "float32"),
            ({"segs": small - 1}, "from -1"),
            ({"segs": small + 65536}, "to 65536"),
            ({"segs": small[1:]}, "shape (43, 48)"),
            ({"segs": np.eye(44, 48, dtype=int) * 255}, "no label of the ground truth, but 255 for 1, 2"),
        ):
            if isinstance(content, dict):
                write(good / "2DBox_US_0002.npz", **content)
            elif content is None:
                (good / "2DBox_US_0002.npz").unlink()
            else:
                (good / "2DBox_US_0002.npz").write_bytes(content)
            done = score(data, expect=1)
            (line,) = errors_of(done)
            assert "good/2DBox_US_0002.npz" in line
            assert word in line
        assert not marker.exists()
        cases = {row["case"]: row for row in rows_of(data / "out" / "cases.csv")}
        table = {row["modality"]: row for row in rows_of(data / "out" / "table.csv")}
        assert [name for name, row in cases.items() if row["problem"]] == ["2DBox_US_0002"]
        assert float(table["US"]["dsc"]) == pytest.approx(float(cases["2DBox_US_0001"]["dsc"]) / 2, abs=1e-6)
        assert "good: 1 of 5 predictions missing or bad, counted as 0" in done.stdout
        assert len(json.loads((data / "out" / "report.json").read_text())["problems"]) == 1

    def test_objects_by_size_and_volumes_apart_from_slices(self, tmp_path):
        """Squares moved by one pixel, a block by one slice: all but one layer of each is common."""
        plane = np.zeros((256, 192), np.uint8)
        plane[10:17, 10:17], plane[40:55, 40:55], plane[100:140, 100:140] = 1, 2, 3
        block = np.zeros((9, 128, 100), np.uint8)
        block[1:6, 30:50, 30:45] = 1
        write(tmp_path / "gts" / "2DBox_US_0001.npz", gts=plane)
        write(tmp_path / "run" / "2DBox_US_0001.npz", segs=np.roll(plane, 1, axis=1))
        write(tmp_path / "gts" / "3DBox_CT_0001.npz", gts=block, spacing=[1.5, 0.7, 0.7])
        write(tmp_path / "run" / "3DBox_CT_0001.npz", segs=np.roll(block, 1, axis=0))
        (tmp_path / "part").mkdir()
        shutil.copy(tmp_path / "run" / "3DBox_CT_0001.npz", tmp_path / "part")
        folders = (tmp_path / "run", tmp_path / "gts", "-o", tmp_path / "out")
        done = run_cli(*folders, "--run", tmp_path / "part", expect=1)
        common = [6 / 7, 14 / 15, 39 / 40, 4 / 5]
        expected = {
            "kinds": [
                ("Slices and images, modalities: 1", 1, np.mean(common[:3]), 0),
                ("Volumes, modalities: 1", 1, common[3], common[3]),
            ],
            # The block is 20 pixels wide of 128: 40 of 256.
            "sizes": [
                ("under 8", 1, common[0], 0),
                ("8 to 16", 1, common[1], 0),
                ("32 to 64", 2, np.mean(common[2:]), common[3] / 2),
            ],
        }
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        for key, rows in expected.items():
            assert [(row["name"], row["count"]) for row in report[key]] == [row[:2] for row in rows]
            for row, (*_, dsc, of_part) in zip(report[key], rows, strict=True):
                run, part = row["scores"]
                assert (run["run"], part["run"]) == ("run", "part")
                # All surfaces are within 1.5 mm or 1 pixel.
                assert (run["dsc"], run["nsd"]) == (pytest.approx(dsc), pytest.approx(1))
                assert part["dsc"] == pytest.approx(of_part)
        assert "| DSC / NSD | Cases | part | run |" in done.stdout
        assert "| Volumes, modalities: 1 | 1 | 0.800 / 1.000 | 0.800 / 1.000 |" in done.stdout
        assert "| Longest side | Objects | part | run |" in done.stdout
        assert "| 32 to 64 | 2 | 0.400 / 0.500 | 0.887 / 1.000 |" in done.stdout
        # Missed objects too: whoever groups them anew gets the same.
        classes = [row for row in rows_of(tmp_path / "out" / "classes.csv") if row["run"] == "part"]
        keys = ("modality", "label", "dsc", "size")
        assert [[row[key] for key in keys] for row in classes] == [
            ["US", "1", "0.000000", "7.000000"],
            ["US", "2", "0.000000", "15.000000"],
            ["US", "3", "0.000000", "40.000000"],
            ["CT", "1", "0.800000", "40.000000"],
        ]
        assert [row["dimensions"] for row in rows_of(tmp_path / "out" / "cases.csv")] == ["2", "2", "3", "3"]
        # Of one kind only, its average is the average.
        (tmp_path / "gts" / "2DBox_US_0001.npz").unlink()
        assert "Volumes" not in run_cli(*folders).stdout

    @pytest.mark.parametrize(
        ("arrays", "word"),
        [
            ({"gts": ONES & 0, "spacing": [1.0, 1.0, 1.0]}, "no label above 0"),
            ({"gts": ONES}, "without `spacing`"),
            ({"gts": ONES, "spacing": [1.0, 1.0]}, "spacing is float64 of shape (2,)"),
            ({"gts": ONES, "spacing": [0.0, 1.0, 1.0]}, "each from 1e-06 to 100"),
            ({"gts": ONES, "spacing": [1e9, 1.0, 1.0]}, "spacing [1000000000.0, 1.0, 1.0]"),
            # Areas would be 0, the score NaN.
            ({"gts": ONES, "spacing": [1e-200] * 3}, "each from 1e-06"),
            ({"gts": ONES.astype(np.float32), "spacing": [1.0, 1.0, 1.0]}, "float32"),
            ({"gts": ONES[0, 0]}, "shape (40,)"),
        ],
    )
    def test_bad_ground_truth_leaves_the_case_out(
        self, data: pathlib.Path, arrays: Mapping[str, object], word: str
    ) -> None:
        write(data / "gts" / "3DBox_CT_0001.npz", **arrays)
        done = score(data, expect=1)
        (error,) = errors_of(done)
        assert "3DBox_CT_0001.npz" in error
        assert word in error
        assert len(rows_of(data / "out" / "cases.csv")) == 4
        assert "1 of 5 cases could not be scored" in done.stdout

    def test_spacing_that_looks_like_x_y_z_is_told_once_a_run(self, data):
        assert "looks like" not in score(data).stdout
        volumes = sorted((data / "gts").glob("3DBox*"))
        for path in volumes:
            with np.load(path) as archive:
                write(path, gts=archive["gts"], spacing=[0.7, 0.7, 5.0])
        told = [line for line in score(data).stdout.splitlines() if "looks like" in line]
        more = f" (and {len(volumes) - 1} more)" if len(volumes) > 1 else ""
        what = "spacing 0.7, 0.7, 5 is read as z, y, x, but looks like x, y, z; NSD depends on it"
        assert told == [f"- {volumes[0]}: {what}{more}"]

    def test_nothing_that_can_be_scored(self, data):
        for path in (data / "gts").iterdir():
            path.write_bytes(b"")
        assert "none of the 5 cases could be scored" in score(data, expect=1).stderr

    def test_bad_case_file_leaves_the_case_out_for_all(self, data):
        write(data / "cases" / "2DBox_US_0001.npz", imgs=np.zeros((9, 9), np.uint8), boxes=[[1, 1, 5, 5]])
        done = score(data, "--cases", data / "cases", "--trivial", expect=1)
        assert "image of (9, 9)" in done.stderr
        assert "2DBox_US_0001" not in {row["case"] for row in rows_of(data / "out" / "cases.csv")}

    def test_wrong_use(self, data):
        (data / "empty").mkdir()
        write(data / "unknown" / "patient7.npz", gts=np.ones((4, 4), np.uint8))
        good, gts, out = data / "good", data / "gts", data / "out"
        for arguments, word in (
            ((good, gts), "--output"),
            ((good, data / "nowhere", "-o", out), "nowhere"),
            ((data / "nowhere", gts, "-o", out), "nowhere"),
            ((good, data / "empty", "-o", out), "no .npz, .nii.gz"),
            ((data / "unknown", data / "unknown", "-o", out), "patient7.npz: no modality known"),
            ((data / "empty", gts, "-o", out), "none of the 5 cases"),
            ((good, gts, "-o", out, "--run", good), "two columns"),
            ((good, gts, "-o", out, "--run", f"GrabCut={data / 'poor'}"), "two columns"),
            ((good, gts, "-o", out, "--trivial"), "--cases"),
            ((good, gts, "-o", out, "--cases", data / "cases"), "--trivial"),
            ((good, gts, "-o", out, "--cases", data / "empty", "--trivial"), "5 case(s)"),
        ):
            done = run_cli(*arguments, expect=2)
            assert word in done.stderr, arguments
        assert not out.exists()

    def test_it_needs_nothing_but_its_extra(self, data):
        absent = ("torch", "onnx", "onnxruntime", "openvino", "psutil", "matplotlib", "nibabel")
        code = (
            f"import sys\nfor name in {absent!r}: sys.modules[name] = None\n"
            "from litemed.benchmarks.evaluate.cli import main\nmain()"
        )
        arguments = [data / "good", data / "gts", "-o", data / "out", "--workers", "1"]
        trivial = ["--cases", data / "cases", "--trivial"]
        subprocess.run([sys.executable, "-c", code, *arguments, *trivial], check=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="CPUs cannot be left out here")
def test_there_is_a_process_for_each_core_that_may_be_used_or_as_many_as_are_given(data, monkeypatch):
    asked = []
    labels = np.zeros((40, 40), np.uint8)
    labels[5:30, 5:30] = 1
    write(data / "pairs/CT/a.npz", imgs=labels * 90, gts=labels)

    def map_here(function, tasks, workers):
        asked.append(workers)
        return map(function, tasks)

    monkeypatch.setattr("litemed.train.prepare.pool.map_in_order", map_here)
    monkeypatch.setattr("litemed.train.prepare.pipeline.map_in_order", map_here)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for given in ([], ["--workers", "3"]):
            lines = (
                (main, "good", "gts", f"scores{len(given)}"),
                (prepare, "pairs/CT", f"slices{len(given)}"),
            )
            for command, *places, out in lines:
                line = [*(str(data / place) for place in places), "-o", str(data / out), *given]
                done = CliRunner().invoke(command, line)
                assert done.exit_code == 0, done.output
    finally:
        os.sched_setaffinity(0, cpus)
    assert asked == [1, 1, 3, 3]


def test_files_of_no_case_are_counted_and_refused_if_asked(data):
    (data / "gts" / "one.txt").write_bytes(b"")
    (data / "good" / "report.json").write_bytes(b"{}")
    line = f"{data / 'gts'}: 1 in it are of no case and were left out: 1 .txt"
    assert f"warning: {line}" in score(data).stderr.splitlines()
    assert line in score(data, "--strict", expect=2).stderr


def result_of(case: str, modality: str, scores: Mapping[str, tuple[float, float]]) -> CaseResult:
    runs = [CaseScore(run, (ClassScore(1, dsc, nsd, 20.0),)) for run, (dsc, nsd) in scores.items()]
    return CaseResult(case, modality, 2, tuple(runs))


class TestSummary:
    def test_intervals_are_those_of_theory_and_differences_are_paired(self):
        # Run b is better than run a by 0.01 on every case.
        scores = np.random.default_rng(0).normal(0.7, 0.1, 400)
        results = [
            result_of(str(i), "CT", {"a": (dsc, dsc / 2), "b": (dsc + 0.01, dsc / 2)})
            for i, dsc in enumerate(scores.tolist())
        ]
        summary = summarise(results)
        np.testing.assert_array_equal(summary.scores, summarise(results).scores)
        half = 1.96 * scores.std() / 20
        expected = scores.mean() + np.array([0, -half, half])
        assert summary.scores[-1, 0, 0] == pytest.approx(expected, abs=0.1 * half)
        assert summary.differences[0, 0] == pytest.approx([-0.01] * 3)
        assert summary.differences[0, 1, 0] == pytest.approx(0)
