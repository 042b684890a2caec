"""litemed-bench: the cases of Table 4, its baseline, what is measured, kept and shown; the table of speed."""

import dataclasses
import json
import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from litemed.benchmarks.bench import main
from litemed.benchmarks.measure import run_process, turns
from litemed.benchmarks.report import PROPOSED, PUBLISHED, Contender
from litemed.benchmarks.table4.table4 import ABLATION, DEFAULT, FAST, ROWS, draw, find_rows, run_table4
from litemed.runtime.boxes import Boxes
from litemed.runtime.errors import LitemedError
from litemed.runtime.inputs.cases import read_case

Find = Callable[[str], pathlib.Path]

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = "2DBox_US_0525"
MANY = "2DBox_X-Ray_0053"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table4(bundle: pathlib.Path, output: pathlib.Path, *more: object) -> Result:
    """Measure one small row, once, with a model that takes no time."""
    standard = ["--rows", SMALL, "--repeats", 1, "--threads", 1]
    return invoke("table4", "--model", bundle, "-o", output, *standard, *more)


def content(output: pathlib.Path) -> dict[str, Any]:
    return json.loads((output / "table4.json").read_text())


@pytest.fixture(scope="module")
def run(box_bundle, tmp_path_factory):
    """Return the folder and the result of a run without the baseline."""
    output = tmp_path_factory.mktemp("table4")
    return output, table4(box_bundle, output)


# The cases


def test_there_are_14_rows_of_the_modalities_and_counts_of_the_paper():
    assert [row.objects for row in ROWS] == [6, 6, 1, 6, 6, 1, 1, 1, 34, 1, 1, 1, 19, 241]
    assert [row.name[:2] for row in ROWS] == ["3D"] * 7 + ["2D"] * 7
    assert find_rows(()) == ROWS


@pytest.mark.parametrize("name", [SMALL, MANY, "3DBox_MR_0121"])
def test_a_stand_in_has_the_stated_shape_and_count_and_is_always_the_same(name):
    (row,) = find_rows([name])
    first, second = draw(row), draw(row)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.shape == row.shape
    assert len(Boxes.parse(first.boxes, first.image.shape)) == row.objects
    assert first.image.std() > 10


# The baseline


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2DBox_Golden_five", "2DBox_Golden_upscaled", "3DBox_Golden_three"])
def test_the_baseline_gives_the_published_label_maps(name, golden_checkpoint, shared, golden_expected):
    from litemed.benchmarks.table4.baseline import Baseline
    from litemed.models.checkpoint import read_checkpoint

    case = read_case(shared(f"golden/cases/{name}.npz"))
    expected = golden_expected[f"plain_sequential_{name}"]
    if case.is_volume:  # the last box, which no other one's mask lies over
        expected = expected == len(case.boxes)
        case = dataclasses.replace(case, boxes=Boxes(case.boxes.xyxy[-1:], case.boxes.z[-1:]))
    labels = Baseline(read_checkpoint(golden_checkpoint("plain")).model()).segment(case)
    assert labels.shape == expected.shape
    assert (labels == expected).mean() >= 0.999


# A run of Table 4


def test_a_run_writes_tables_and_a_chart(run):
    output, result = run
    assert result.exit_code == 0, result.output
    text = (output / "table4.md").read_text()
    assert text == result.stdout
    assert f"| {SMALL} †, 256×256×3, boxes: 1 | " in text
    measured = content(output)["measurements"]
    assert [one["contender"] for one in measured] == [ABLATION, PROPOSED, FAST, DEFAULT]
    assert all(one["seconds"] > 0 and one["peak_mib"] > 20 for one in measured)
    assert [one["dice"] for one in measured] == [1.0, None, 1.0, 1.0]
    assert "onnxruntime" in content(output)["machine"]
    assert "boxes" in content(output)["contenders"][PROPOSED]
    assert ElementTree.fromstring((output / "seconds.svg").read_text()).tag.endswith("svg")  # noqa: S314


@pytest.mark.slow
def test_real_files_are_not_marked_and_the_baseline_is_a_column(box_bundle, tmp_path):
    (row,) = find_rows([SMALL])
    np.savez(tmp_path / f"{SMALL}.npz", imgs=draw(row).image, boxes=np.array([[9, 9, 99, 99]]))
    weights = ["--checkpoint", ROOT / "weights" / "light.safetensors"]
    result = table4(box_bundle, tmp_path / "out", "--cases", tmp_path, *weights)
    assert result.exit_code == 0, result.output
    assert f"{SMALL} †" not in result.stdout
    measured = {one["contender"]: one for one in content(tmp_path / "out")["measurements"]}
    times = measured[PUBLISHED]["seconds"] / measured[PROPOSED]["seconds"]
    assert f"**{times:.1f}x**" in result.stdout
    assert 0 <= measured[PUBLISHED]["dice"] <= 1


def shell(title: str, line: str) -> Contender:
    """Return a contender that runs a line of the shell with the case as $0 and the folder as $2."""
    return Contender(title, line, ("/bin/sh", "-c", line))


def test_a_run_goes_on_where_it_was_interrupted_and_a_failure_costs_the_others_nothing(tmp_path, capfd):
    mask = tmp_path / "mask.npz"
    np.savez(mask, segs=np.zeros((256, 256), np.uint8))
    write = f'mkdir -p "$2" && cp {mask} "$2/{SMALL}.npz"'
    flag, count = tmp_path / "flag", tmp_path / "count"
    columns = [
        shell(PROPOSED, f"echo x >> {count}; {write}"),
        shell("Bad", f"test -e {flag} || {{ echo broken >&2; exit 3; }}; {write}"),
        shell("Lazy", f"test -e {flag} || exit 0; {write}"),
    ]

    def measure(repeats: int) -> tuple[str, bool]:
        return run_table4(find_rows([SMALL]), columns, tmp_path / "out", repeats=repeats)

    text, complete = measure(1)
    assert not complete
    assert f"- {SMALL}, Bad failed: exit code 3: broken." in text
    assert f"{SMALL}, Lazy failed: " in text
    assert f"error: {SMALL}, Bad: exit code 3: broken" in capfd.readouterr().err
    flag.touch()
    assert measure(2)[1]  # what failed is tried again
    assert count.read_text() == "x\n" * 3
    before = content(tmp_path / "out")["measurements"]
    assert len(before) == 6
    assert measure(2)[1]
    assert content(tmp_path / "out")["measurements"] == before
    assert count.read_text() == "x\n" * 3


def test_faults_are_one_line(run, box_bundle, tmp_path):
    def refused(said: str, code: int, *arguments: object, bundle: pathlib.Path = box_bundle) -> None:
        result = table4(bundle, tmp_path, *arguments)
        assert result.exit_code == code
        assert said in result.stderr.splitlines()[-1]

    refused("2DBox_nowhere", 2, "--rows", "2DBox_nowhere")
    refused("absent.pth", 2, "--checkpoint", "absent.pth")
    refused("no-bundle", 2, bundle=tmp_path / "no-bundle")
    np.savez(tmp_path / f"{SMALL}.npz", imgs=np.zeros((8, 8), np.uint8), boxes=[[1, 1, 5, 5]])
    refused("(8, 8)", 2, "--cases", tmp_path)
    # What is not of this command is not overwritten, and what was measured otherwise is not mixed in.
    kept = tmp_path / "table4.json"
    kept.write_text("{}")
    refused(str(kept), 1)
    assert kept.read_text() == "{}"
    for part in ("machine", "contenders"):
        kept.write_text(json.dumps(content(run[0]) | {part: {}}))
        refused(f"another {part}", 2)
    for arguments in (["--checkpoint", "absent.pth"], ["--model", "a=shipped"] * 2):
        result = invoke("speed", *arguments)
        assert (result.exit_code, arguments[1].partition("=")[0] in result.stderr) == (2, True)


# The parts


def test_contenders_take_turns_at_being_first():
    columns = [shell(title, "") for title in "ABC"]
    order = ["".join(one.title for one in turns(columns, repeat)) for repeat in range(4)]
    assert order == ["ABC", "BCA", "CAB", "ABC"]


def test_peak_memory_is_that_of_the_process():
    alone = run_process([sys.executable, "-c", "import time; x = bytearray(300 << 20); time.sleep(0.5)"])
    assert 300 <= alone.peak_mib < 500
    assert alone.seconds >= 0.5
    with pytest.raises(LitemedError, match="cannot be started"):
        run_process(["/nowhere/at/all"])


# Speed


@pytest.mark.slow
def test_speed_of_a_model_against_the_published_procedure(box_bundle, tmp_path):
    weights = ["--checkpoint", ROOT / "weights" / "light.safetensors"]
    result = invoke("speed", "--model", f"one={box_bundle}", *weights, "--repeats", 1, "-o", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "speed.md").read_text() == result.stdout
    found = json.loads((tmp_path / "speed.json").read_text())
    seconds = {(one["contender"], one["row"]): one["seconds"] for one in found["measurements"]}
    contenders = (PUBLISHED, "one, onnxruntime float32", "one, openvino float32")
    rows = ("encoder", "decoder, 1 box", "decoder, 6 boxes", "slice, 1 box", "slice, 6 boxes", "process")
    assert list(seconds) == [(title, row) for title in contenders for row in rows]
    for title in contenders[1:]:
        times = seconds[PUBLISHED, "encoder"] / seconds[title, "encoder"]
        assert f"**{times:.1f}x**" in result.stdout
