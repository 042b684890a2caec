"""The harness of Table 4: its cases, its baseline, what it measures, keeps and shows."""

from __future__ import annotations

import csv
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.benchmarks.table4.agreement import compare
from litemed.benchmarks.table4.cli import main
from litemed.benchmarks.table4.contenders import BASELINE, PROPOSED, Contender
from litemed.benchmarks.table4.processes import ContenderError, run_process
from litemed.benchmarks.table4.progress import Progress
from litemed.benchmarks.table4.rows import QUICK, ROWS, Prepared, Row, draw, find_rows, prepare, workload
from litemed.benchmarks.table4.runner import Task, plan
from litemed.benchmarks.table4.stages import StageClock, read_timing, write_timings
from litemed.runtime.boxes import Boxes
from litemed.runtime.readers import read_case

Find = Callable[[str], pathlib.Path]

SMALL = "2DBox_US_0525"
MANY = "2DBox_X-Ray_0053"
COPY = "Copy=cp {input}/*.npz {output}/"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table4(bundle: pathlib.Path, output: pathlib.Path, *more: object) -> Result:
    """Measure one small row, once, with a model that takes no time."""
    standard = ["--rows", SMALL, "--repeats", 1, "--clock", "process", "--engine", "onnxruntime"]
    return invoke("table4", "--model", bundle, "-o", output, "--threads", 1, *standard, *more)


def content(output: pathlib.Path) -> dict[str, Any]:
    return json.loads((output / "table4.json").read_text())


# The cases


def test_there_are_14_rows_of_the_modalities_and_counts_of_the_paper() -> None:
    assert len({row.name for row in ROWS}) == 14
    assert sum(row.is_volume for row in ROWS) == 7
    assert [row.objects for row in ROWS] == [6, 6, 1, 6, 6, 1, 1, 1, 34, 1, 1, 1, 19, 241]
    assert {row.name for row in find_rows(QUICK)} == set(QUICK)
    assert find_rows(()) == ROWS


@pytest.mark.parametrize("name", [SMALL, MANY, "2DBox_Microscope_0008", "3DBox_MR_0121"])
def test_a_stand_in_has_the_stated_shape_and_count_and_is_always_the_same(name: str) -> None:
    (row,) = find_rows([name])
    first, second = draw(row), draw(row)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.shape == row.shape
    assert len(Boxes.parse(first.boxes, first.image.shape)) == row.objects
    assert first.image.std() > 10


def test_coverage_is_the_share_of_slices_that_each_object_spans() -> None:
    (row,) = find_rows(["3DBox_MR_0121"])
    for coverage in (0.1, 0.5):
        boxes = draw(row, coverage).boxes
        np.testing.assert_allclose(
            boxes[:, 5] - boxes[:, 2] + 1, coverage * row.shape[0], atol=2
        )  # the tips of an object may be less than a pixel


def test_a_stand_in_is_drawn_where_the_real_file_is_absent(tmp_path: pathlib.Path) -> None:
    (row,) = find_rows([SMALL])
    drawn = prepare(row, tmp_path / "real", tmp_path / "drawn")
    assert drawn.stand_in
    real = tmp_path / "real" / f"{SMALL}.npz"
    real.parent.mkdir()
    np.savez(real, imgs=np.zeros(row.shape, np.uint8), boxes=[[5, 6, 70, 80]])
    found = prepare(row, tmp_path / "real", tmp_path / "drawn")
    assert (found.stand_in, found.path) == (False, real)
    assert found.sha256 != drawn.sha256


# The baseline


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["2DBox_Golden_five", "2DBox_Golden_one", "2DBox_Golden_upscaled", "3DBox_Golden_three"]
)
def test_the_baseline_gives_the_published_label_maps(
    name: str, golden_checkpoint: Find, shared: Find, golden_expected: dict[str, np.ndarray]
) -> None:
    from litemed.benchmarks.table4.baseline import Baseline
    from litemed.models.checkpoint import read_checkpoint

    case = read_case(shared(f"golden/cases/{name}.npz"))
    clock = StageClock()
    labels = Baseline(read_checkpoint(golden_checkpoint("plain")).model()).segment(case, clock)
    expected = golden_expected[f"plain_sequential_{name}"]
    assert (labels.shape, labels.dtype) == (expected.shape, expected.dtype)
    assert (labels == expected).mean() >= 0.999
    prompts = workload(case)[1]
    # As published: an image is encoded once, a volume's slice for every box.
    assert (clock.slices, clock.boxes) == (prompts if case.is_volume else 1, prompts)


@pytest.mark.slow
def test_the_baseline_is_a_column_of_its_own(
    golden_checkpoint: Find, box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = table4(box_bundle, tmp_path, "--checkpoint", golden_checkpoint("plain"))
    assert run.exit_code == 0, run.output
    seconds = {m["contender"]: m["seconds"] for m in content(tmp_path)["measurements"]}
    line = next(x for x in run.stdout.splitlines() if x.startswith(f"| {SMALL} †"))
    assert line.endswith(f"| {seconds[BASELINE] / seconds[PROPOSED]:.1f} |")
    (compared,) = (a for a in content(tmp_path)["agreements"] if a["contender"] == BASELINE)
    assert 0 <= compared["dice"] <= 1


# A run


def test_a_run_writes_tables_and_charts(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    published = tmp_path / "published.csv"
    published.write_text(f"case,seconds\n{SMALL},12.5\n")
    output = tmp_path / "out"
    run = table4(box_bundle, output, "--clock", "both", "--published", published, "--note", "A remark")
    assert run.exit_code == 0, run.output
    text = (output / "table4.md").read_text()
    assert text == run.stdout
    assert "- A remark" in text
    assert f"| {SMALL} † | 256×256×3 | 1 |" in text
    assert "12.5" in text
    assert "left" in run.stderr
    with (output / "table4.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["column"], line["clock"]) for line in lines] == [
        ("Ablation", "process"),
        ("Ablation", "warm"),
        (PROPOSED, "process"),
        (PROPOSED, "warm"),
    ]
    assert all(float(line["median_s"]) > 0 and float(line["peak_mib"]) > 20 for line in lines)
    assert all(line["slices_encoded"] == line["boxes_decoded"] == "1" for line in lines)
    (agreement,) = content(output)["agreements"]
    assert (agreement["contender"], agreement["dice"], agreement["equal"]) == ("Ablation", 1.0, 1.0)
    machine = content(output)["machine"]
    assert machine["cpu"]
    assert machine["versions"]["onnxruntime"]
    assert content(output)["contenders"][0]["digest"]
    for clock in ("process", "warm"):
        name = f"seconds-{clock}"
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ElementTree.fromstring((output / f"{name}.svg").read_text()).tag.endswith("svg")  # noqa: S314


def test_real_files_are_not_marked(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    np.savez(
        tmp_path / f"{SMALL}.npz", imgs=draw(find_rows([SMALL])[0]).image, boxes=np.array([[9, 9, 99, 99]])
    )
    run = table4(box_bundle, tmp_path / "out", "--cases", tmp_path)
    assert run.exit_code == 0, run.output
    assert "†" not in run.stdout


def test_what_was_measured_is_not_measured_again(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    count, output = tmp_path / "count", tmp_path / "out"
    column = f"Copy=echo x >> {count}; cp {{input}}/*.npz {{output}}/"
    first = table4(box_bundle, output, "--columns", column, "--repeats", 2)
    assert first.exit_code == 0, first.output
    assert count.read_text() == "x\n" * 2
    before = content(output)

    again = table4(box_bundle, output, "--columns", column, "--repeats", 2)
    assert (again.exit_code, again.stdout) == (0, first.stdout)
    assert count.read_text() == "x\n" * 2
    assert content(output)["measurements"] == before["measurements"]

    # As if it had been interrupted before the last measurement of the command.
    last = max(i for i, m in enumerate(before["measurements"]) if m["contender"] == "Copy")
    del before["measurements"][last]
    (output / "table4.json").write_text(json.dumps(before))
    resumed = table4(box_bundle, output, "--columns", column, "--repeats", 2)
    assert resumed.exit_code == 0, resumed.output
    assert count.read_text() == "x\n" * 3
    assert resumed.stderr.count(" MiB; ") == 1


def test_a_command_that_fails_is_told_in_one_line_and_costs_the_others_nothing(
    box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    columns = ["--columns", "Bad=echo no {input} {output} >/dev/null; echo broken >&2; exit 3"]
    columns += ["--columns", "Lazy=true {input} {output}", "--columns", COPY]
    run = table4(box_bundle, tmp_path, *columns)
    assert run.exit_code == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert errors == [
        f"error: {SMALL} Bad process: exit code 3: broken",
        f"error: {SMALL} Lazy process: wrote no {SMALL}.npz into its output folder",
    ]
    assert {m["contender"] for m in content(tmp_path)["measurements"]} == {"Ablation", PROPOSED, "Copy"}
    # The copy is measured, but what it wrote is no label map.
    (copy,) = (a for a in content(tmp_path)["agreements"] if a["contender"] == "Copy")
    assert copy["dice"] is None
    assert "segs" in copy["problem"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "2DBox_nowhere"], "2DBox_nowhere"),
        (["--columns", "no equals sign"], "no equals sign"),
        (["--columns", "Baseline=true {input} {output}"], "Baseline"),
        (["--columns", "X=true {input}"], "{output}"),
        (["--columns", COPY, "--columns", COPY], "Copy"),
        (["--checkpoint", "absent.pth"], "absent.pth"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], said: str, box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run = table4(box_bundle, tmp_path / "out", *arguments)
    assert run.exit_code == 2
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_other_faults_are_one_line(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = table4(tmp_path / "no-bundle", tmp_path / "out")
    assert (run.exit_code, len(run.stderr.splitlines())) == (1, 1)
    assert "no-bundle" in run.stderr

    np.savez(tmp_path / f"{SMALL}.npz", imgs=np.zeros((8, 8), np.uint8), boxes=[[1, 1, 5, 5]])
    run = table4(box_bundle, tmp_path / "out", "--cases", tmp_path)
    assert run.exit_code == 2
    assert "(8, 8)" in run.stderr.splitlines()[-1]

    stranger = tmp_path / "out" / "table4.json"
    stranger.write_text("{}")
    run = table4(box_bundle, tmp_path / "out")
    assert run.exit_code == 1
    assert str(stranger) in run.stderr.splitlines()[-1]
    assert stranger.read_text() == "{}"


def test_measurements_of_another_machine_are_not_mixed_in(
    box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert table4(box_bundle, tmp_path).exit_code == 0
    other = content(tmp_path)
    other["machine"]["cpu"] = "Another CPU"
    (tmp_path / "table4.json").write_text(json.dumps(other))
    run = table4(box_bundle, tmp_path)
    assert run.exit_code == 2
    assert "Another CPU" in run.stderr.splitlines()[-1]


def test_version_and_help() -> None:
    assert invoke("--version").output.startswith("litemed-bench") or "0.1.0" in invoke("--version").output
    for command in ("table4", "ratios"):
        assert "Examples:" in invoke(command, "--help").output


# The parts


def _prepared(name: str) -> Prepared:
    return Prepared(Row(name, (4, 4, 3), 1), pathlib.Path(f"{name}.npz"), name, True, 1, 1)


def test_contenders_take_turns_at_being_first() -> None:
    columns = [Contender(title, "command", title, title) for title in "ABC"]
    tasks = plan([_prepared("one"), _prepared("two")], columns, ["process", "warm"], repeats=3)
    order = [(task.repeat, task.prepared.row.name, task.contender.title) for task in tasks]
    assert [title for _, _, title in order] == list("ABCABCBCABCACABCAB")
    assert order == sorted(order, key=lambda one: one[:2])  # a pass through all rows for each repeat
    assert all(task.clock == "process" for task in tasks)  # a foreign command has no warm clock
    assert len({task.key for task in tasks}) == len(tasks)


def test_the_time_left_is_that_of_earlier_measurements_alike() -> None:
    from litemed.benchmarks.table4.store import Measurement

    def earlier(row: str, seconds: float) -> Measurement:
        return Measurement("", "A", row, "process", 0, seconds, 1.0, None, None, None, 0.0)

    progress = Progress(4, [earlier("one", 3.0), earlier("two", 5.0)])
    contender = Contender("A", "command", "", "")
    tasks = [Task(contender, _prepared(name), "process", 1) for name in ("one", "two", "two")]
    assert progress.left(tasks) == "about 13 s left"


def test_peak_memory_is_that_of_the_process_and_its_children() -> None:
    hold = "import time; x = bytearray(300 << 20); time.sleep(0.5)"
    alone = run_process([sys.executable, "-c", hold])
    assert 300 <= alone.peak_mib < 500
    assert alone.seconds >= 0.5
    child = run_process(["/bin/sh", "-c", f"{sys.executable} -c '{hold}'; true"])
    assert 300 <= child.peak_mib < 500


def test_a_command_that_is_not_there_is_an_error_of_its_own() -> None:
    with pytest.raises(ContenderError, match="cannot be started"):
        run_process(["/nowhere/at/all"])


def test_timings_come_back_from_an_output_folder(tmp_path: pathlib.Path) -> None:
    assert read_timing(tmp_path, "case") is None
    clock = StageClock(slices=2, boxes=3)
    with clock.timing("read"):
        pass
    write_timings(tmp_path, [clock.result("case")])
    assert read_timing(tmp_path, "case") == clock.result("case")
    assert read_timing(tmp_path, "another") is None


@given(
    hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 3)),
    hnp.arrays(np.uint16, (5, 6), elements=st.integers(0, 3)),
)
def test_agreement_is_the_mean_dice_of_the_labels_present(first: np.ndarray, second: np.ndarray) -> None:
    dice = [
        2 * ((first == i) & (second == i)).sum() / ((first == i).sum() + (second == i).sum())
        for i in (1, 2, 3)
        if (first == i).any() or (second == i).any()
    ]
    found = compare(first, second)
    assert found.dice == pytest.approx(np.mean(dice) if dice else 1.0)
    assert found.equal == pytest.approx((first == second).mean())


# The ratios


@pytest.mark.slow
def test_ratios_to_the_published_procedure(
    golden_checkpoint: Find, box_bundle: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "ratios.json"
    options = ["--part", "encoder", "--part", "process", "--repeats", 1, "--json", path]
    run = invoke("ratios", "--model", box_bundle, "--checkpoint", golden_checkpoint("plain"), *options)
    assert run.exit_code == 0, run.output
    found = json.loads(path.read_text())
    assert set(found["times"]) == {"published", "onnxruntime float32", "openvino float32"}
    for contender, parts in found["times"].items():
        assert list(parts) == ["encoder", "whole process, 256 x 256 image, 1 box"]
        for part, times in parts.items():
            assert len(times["seconds"]) == 1
            slow = found["times"]["published"][part]["seconds"][0]
            assert found["ratios"][contender][part] == pytest.approx(slow / times["seconds"][0])
        assert parts["whole process, 256 x 256 image, 1 box"]["peak_mib"] > 30
    assert f"**{found['ratios']['openvino float32']['encoder']:.1f}x**" in run.stdout


def test_ratios_without_a_checkpoint_say_so(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = invoke("ratios", "--model", box_bundle, "--checkpoint", tmp_path / "absent.pth")
    assert run.exit_code == 2
    assert "absent.pth: cannot be read" in run.stderr


def test_a_table_begun_anew_keeps_no_label_maps(box_bundle: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """What made them may not be what runs now, and the new table would compare with them."""
    output = tmp_path / "out"
    assert table4(box_bundle, output).exit_code == 0
    left = output / "labels" / "left.npz"
    left.write_bytes(b"of an earlier model")
    assert table4(box_bundle, output, "--repeats", 2).exit_code == 0
    assert left.exists()
    (output / "table4.json").rename(output / "earlier.json")
    assert table4(box_bundle, output).exit_code == 0
    assert not left.exists()
