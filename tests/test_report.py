"""The report of a run and its log: complete, shared with other runs, and refused if none of ours."""

import csv
import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import OutputError
from litemed.runtime.method import Method
from litemed.runtime.report import (
    REPORT,
    CaseReport,
    FileRecord,
    Settings,
    describe_environment,
    litemed_version,
    load_report,
)
from litemed.runtime.report_files import EFFICIENCY, LOG, TABLES, ReportFile

SETTINGS = Settings(
    litemed="0.1.0",
    bundle="b",
    bundle_sha256="0" * 64,
    engine="openvino",
    precision="int8",
    method=Method(merge="argmax"),
)
ENVIRONMENT = {"engine_version": "1", "threads": 1}
STAGES = ("read", "preprocess", "encode", "decode", "merge", "write", "total")
DONE = CaseReport(
    case="a, with comma",
    status="done",
    warnings=("one", "two"),
    seconds=dict(zip(STAGES, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2.125), strict=True)),
    encodings=3,
    decodings=7,
    inputs=(FileRecord("in/a.png", "1" * 64), FileRecord("in/a.json", "2" * 64)),
    settings_sha256=SETTINGS.sha256,
    output=FileRecord("a.npz", "3" * 64),
    overlay=FileRecord("a.png", "4" * 64),
)
METHODS = [Method(), Method(merge="argmax"), Method(volume="box"), Method(zoom="off"), Method(propagate=True)]
FAILED = CaseReport(case="b", status="failed", error='b.npz: no "boxes" \u00e9')


def write(folder: Path, *entries: CaseReport) -> ReportFile:
    report = ReportFile(folder, SETTINGS, ENVIRONMENT)
    for entry in entries:
        report.put(entry)
    report.summarise()
    return report


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    write(tmp_path, FAILED, DONE)
    assert load_report(tmp_path / REPORT) == (DONE, FAILED)
    report = json.loads((tmp_path / REPORT).read_text())
    assert report["schema"] == 2
    assert (report["settings"], report["environment"]) == (dataclasses.asdict(SETTINGS), ENVIRONMENT)
    assert report["updated"].endswith("+00:00")
    assert 1 < report["peak_memory_mib"] < 100_000


def test_efficiency_lists_the_seconds_of_finished_cases(tmp_path):
    write(tmp_path, FAILED, DONE, dataclasses.replace(DONE, case="c", status="skipped"))
    with (tmp_path / EFFICIENCY).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["case", "seconds"], ["a, with comma", "2.1250"], ["c", "2.1250"]]


def test_entries_are_added_and_replaced_by_name(tmp_path):
    report, others = write(tmp_path, DONE, FAILED), ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    report.put(dataclasses.replace(FAILED, error="another"))
    assert others.get("b") == report.get("b") == dataclasses.replace(FAILED, error="another")
    assert others.get(DONE.case) == DONE
    assert others.get("c") is None
    others.put(dataclasses.replace(FAILED, case="c"))
    report.summarise()  # what another process is at, too
    others.put(dataclasses.replace(DONE, case="d"))
    assert report.get("d")
    others.summarise()
    assert [entry.case for entry in load_report(tmp_path / REPORT)] == [DONE.case, "b", "c", "d"]
    assert set(os.listdir(tmp_path)) == {REPORT, *TABLES}


def test_while_a_run_goes_on_a_case_costs_one_line_and_a_kill_loses_at_most_that(tmp_path):
    report = ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    sizes = []
    for number in range(50):
        report.put(dataclasses.replace(DONE, case=f"{number:02}"))
        sizes.append((tmp_path / LOG).stat().st_size)
    assert os.listdir(tmp_path) == [LOG]
    assert len(set(np.diff(sizes))) == 1
    with (tmp_path / LOG).open("r+b") as file:
        file.truncate(sizes[-1] - 9)
    after = ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    assert (after.get("48"), after.get("49")) == (dataclasses.replace(DONE, case="48"), None)
    after.put(FAILED)
    after.summarise()
    assert len(load_report(tmp_path / REPORT)) == 50
    with (tmp_path / LOG).open("wb") as file:  # nor does one in its very first line
        file.write(b'{"ca')
    assert ReportFile(tmp_path, SETTINGS, ENVIRONMENT).get("b") == FAILED


def test_what_did_not_fit_on_the_disk_is_no_entry(tmp_path, monkeypatch):
    report = write(tmp_path, DONE)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="cannot be written: No space left"):
            report.put(FAILED)
    report.put(dataclasses.replace(FAILED, error="another"))
    report.summarise()
    assert len(load_report(tmp_path / REPORT)) == 2


def put_many(folder: Path, prefix: str) -> None:
    report = ReportFile(folder, SETTINGS, ENVIRONMENT)
    for number in range(15):
        report.put(dataclasses.replace(DONE, case=f"{prefix}{number}"))
        if number % 5 == 4:
            report.summarise()


def test_processes_that_write_at_once_lose_no_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=put_many, args=(tmp_path, prefix)) for prefix in "xyz"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(load_report(tmp_path / REPORT)) == 45
    assert set(os.listdir(tmp_path)) == {REPORT, *TABLES}


@pytest.mark.parametrize("field", ["litemed", "bundle_sha256", "engine"])
def test_every_setting_that_decides_labels_is_in_the_hash(field):
    assert dataclasses.replace(SETTINGS, **{field: "other"}).sha256 != SETTINGS.sha256
    assert len({dataclasses.replace(SETTINGS, method=one).sha256 for one in METHODS}) == len(METHODS)
    assert dataclasses.replace(SETTINGS).sha256 == SETTINGS.sha256


def test_the_environment_is_the_present_one(box_bundle):
    environment = describe_environment(open_engine("onnxruntime", Bundle.open(box_bundle), 2))
    assert (environment["engine_version"], environment["threads"]) == (onnxruntime.__version__, 2)
    assert (environment["numpy"], environment["opencv"]) == (np.__version__, cv2.__version__)
    assert environment["cpu"]
    assert str(environment["platform"]).startswith("Linux")


def test_the_version_is_that_of_the_package():
    assert litemed_version() == "0.1.0"


def as_json(tmp_path: Path) -> dict:
    write(tmp_path, DONE)
    return json.loads((tmp_path / REPORT).read_text())


@pytest.mark.parametrize("text", ["mine", "mine\n", "{}\n", '{"case": 5}\n', "[" * 100_000 + "\n"])
def test_a_log_of_other_origin_is_refused_and_kept(text, tmp_path):
    (tmp_path / LOG).write_text(text)
    with pytest.raises(OutputError, match=r"report\.jsonl: not a report of this version"):
        ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    assert (tmp_path / LOG).read_text() == text


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "nonsense", '{"schema": 1}', '{"schema": 2}', "[" * 100_000, "\xff"]
)
def test_a_file_that_is_no_report_is_refused_and_kept(text, tmp_path):
    (tmp_path / REPORT).write_text(text, encoding="latin1")
    with pytest.raises(OutputError, match=r"report\.json: not a report of this version"):
        ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    assert (tmp_path / REPORT).read_text(encoding="latin1") == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data(), value=st.sampled_from([None, 5, "x", [], {}, [5], {"x": 5}, "nan", True]))
def test_a_report_with_anything_in_the_wrong_place_is_read_or_refused(data, value, tmp_path):
    for name in (REPORT, *TABLES, LOG):
        (tmp_path / name).unlink(missing_ok=True)
    content = as_json(tmp_path)
    place = data.draw(st.sampled_from([content, content["cases"][0]]))
    key = data.draw(st.sampled_from(sorted(place)))
    if data.draw(st.booleans()):
        place[key] = value
    else:
        del place[key]
    path = tmp_path / REPORT
    path.write_text(json.dumps(content))
    try:
        report = ReportFile(tmp_path, SETTINGS, ENVIRONMENT)
    except OutputError:
        return
    # What is let through can be written again.
    report.put(FAILED)
    report.summarise()
    assert load_report(path)
