"""Running many cases into a folder: isolated, resumable, shared, reported; on a real engine."""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import onnx
import pytest

import litemed.runtime
from litemed.runtime import report_files
from litemed.runtime.bundle import Bundle
from litemed.runtime.case import Case
from litemed.runtime.engines import open_engine
from litemed.runtime.errors import EngineError, OutputError, UsageError
from litemed.runtime.files import FolderLock, atomic_write, sha256_of_file
from litemed.runtime.folder import RunObserver, run_cases
from litemed.runtime.inputs.npz import write_npz
from litemed.runtime.method import Method
from litemed.runtime.report import REPORT, CaseReport, Settings, load_report
from litemed.runtime.report_files import EFFICIENCY, LOG, TABLES
from litemed.runtime.segmenter import Result, Segmenter

NOISE = np.random.default_rng(0).integers(0, 256, (8, 60, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


@pytest.fixture
def cases(tmp_path):
    """Return a folder of three cases: a colour image, a volume and a PNG."""
    folder = tmp_path / "cases"
    folder.mkdir()
    np.savez_compressed(folder / "colour.npz", imgs=NOISE[0], boxes=[[10, 10, 40, 50], [50, 5, 75, 30]])
    volume_boxes = [[10, 10, 2, 40, 50, 4], [50, 5, 3, 75, 30, 6]]
    np.savez_compressed(
        folder / "volume.npz", imgs=NOISE[..., 0], boxes=volume_boxes, spacing=[2.0, 1.0, 1.0]
    )
    cv2.imwrite(str(folder / "picture.png"), NOISE[1])
    (folder / "picture.json").write_text('{"boxes": [[10, 10, 40, 50]]}')
    return folder


def leave_abandoned(out: Path, name: str) -> None:
    """Leave in ``out`` what a process does that is killed between writing a result and reporting it."""
    out.mkdir()
    (out / f"{name}.npz").write_bytes(b"written, not yet in the report")
    with FolderLock(out, name) as held:
        held.mark()
        (lock,) = out.glob(".*")
        shutil.copy(lock, lock.with_suffix(".kept"))
    # The system lets go of a killed process's lock; its file stays.
    lock.with_suffix(".kept").rename(lock)


class Recorder(RunObserver):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def case_started(self, case: str, number: int, total: int) -> None:
        self.calls.append(("started", case, number, total))

    def slices_done(self, done: int, total: int) -> None:
        self.calls.append(("slices", done, total))

    def case_finished(self, report: CaseReport, error: Exception | None) -> None:
        self.calls.append(("finished", report.case, report.status, error))


def statuses(reports: tuple[CaseReport, ...]) -> dict[str, str]:
    return {report.case: report.status for report in reports}


def labels(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        assert file.files == ["segs"]
        return file["segs"]


def extent(mask: np.ndarray) -> list[int]:
    """Return x0 y0 (z0) x1 y1 (z1) of a mask, the last included."""
    spans = [(axis.min(), axis.max()) for axis in np.nonzero(mask)[::-1]]
    return [int(span[end]) for end in (0, 1) for span in spans]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.npz")}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_every_kind_of_case_gives_the_label_map_of_its_boxes(cases, out, segmenter):
    reports = run_cases([cases], out, segmenter, method=Method(volume="box"))
    assert statuses(reports) == dict.fromkeys(["colour", "picture", "volume"], "done")
    colour, picture, volume = (labels(out / f"{name}.npz") for name in ("colour", "picture", "volume"))
    assert (colour.shape, picture.shape, volume.shape) == ((60, 80), (60, 80), (8, 60, 80))
    assert colour.dtype == picture.dtype == volume.dtype == np.uint8
    np.testing.assert_allclose(extent(colour == 1), [10, 10, 40, 50], atol=1)
    np.testing.assert_allclose(extent(colour == 2), [50, 5, 75, 30], atol=1)
    np.testing.assert_allclose(extent(picture == 1), [10, 10, 40, 50], atol=1)
    one, two = extent(volume == 1), extent(volume == 2)
    assert (one[2], one[5], two[2], two[5]) == (2, 4, 3, 6)
    np.testing.assert_array_equal(volume[3], colour)


def test_the_report_says_what_was_done_and_with_what(cases, out, segmenter, box_bundle):
    reports = run_cases([cases], out, segmenter)
    entries = load_report(out / REPORT)
    assert entries == tuple(sorted(reports, key=lambda entry: entry.case))
    found = json.loads((out / REPORT).read_text())["settings"]
    settings = Settings(**found | {"method": Method(**found["method"])})
    digest = sha256_of_file(box_bundle / "manifest.json")
    assert (settings.bundle, settings.bundle_sha256) == ("boxes", digest)
    assert (settings.engine, settings.method) == ("onnxruntime", Method(box_fit="tight"))
    colour, picture, volume = entries
    assert (colour.encodings, colour.decodings, volume.encodings, volume.decodings) == (1, 2, 5, 7)
    assert colour.settings_sha256 == settings.sha256
    assert [file.sha256 for file in picture.inputs] == [
        sha256_of_file(cases / "picture.png"),
        sha256_of_file(cases / "picture.json"),
    ]
    assert volume.output is not None
    assert volume.output.path == "volume.npz"
    assert volume.output.sha256 == sha256_of_file(out / "volume.npz")
    for entry in entries:
        assert entry.seconds is not None
        parts = dict(entry.seconds)
        total = parts.pop("total")
        assert all(part > 0 for part in parts.values())
        assert sum(parts.values()) == pytest.approx(total, rel=0.2)
    table = (out / EFFICIENCY).read_text().splitlines()
    assert table[0] == "case,seconds"
    assert [line.split(",")[0] for line in table[1:]] == ["colour", "picture", "volume"]


def test_the_same_input_gives_the_same_bytes_and_nothing_else_is_left(cases, tmp_path, segmenter):
    """Paths may be text."""
    for name in ("one", "two"):
        run_cases([str(cases)], str(tmp_path / name), segmenter, overlay=str(tmp_path / name / "pictures"))
    results = {"colour.npz", "picture.npz", "volume.npz"}
    for name in results:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir()} == {*results, REPORT, *TABLES, "pictures"}
    pictures = {path.name for path in (tmp_path / "one" / "pictures").iterdir()}
    assert pictures == {"colour.png", "picture.png", "volume.png"}


def test_a_case_of_many_costs_no_more_work_than_one_of_few(out, segmenter, tmp_path, monkeypatch):
    """No report is rewritten, no line gets longer and no folder is listed for each case."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        np.savez(folder / f"{number:02}.npz", imgs=NOISE[0, :16, :16, 0], boxes=[[2, 2, 12, 12]])
    counts: collections.Counter[str] = collections.Counter()

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def count(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, count)

    for module, name in ((report_files, "atomic_write"), (os, "scandir"), (os, "listdir"), (json, "loads")):
        counted(module, name)
    sizes = []

    class Sizes(RunObserver):
        def case_finished(self, report: CaseReport, error: Exception | None) -> None:
            sizes.append((out / LOG).stat().st_size)

    run_cases([folder], out, segmenter, observer=Sizes())
    lines = np.diff(sizes)
    assert len(lines) == 59
    assert lines[-20:].mean() < 1.1 * lines[:20].mean()
    assert counts["atomic_write"] == 3
    assert counts.total() < 15
    counts.clear()
    assert {entry.status for entry in run_cases([folder], out, segmenter)} == {"skipped"}
    assert counts.total() < 15


def test_the_observer_is_told_of_every_case_and_slice(cases, out, segmenter):
    (cases / "picture.json").unlink()
    observer = Recorder()
    run_cases([cases], out, segmenter, observer=observer)
    finished = [call[1:] for call in observer.calls if call[0] == "finished"]
    error = finished[1][2]
    assert "no boxes" in str(error)
    assert finished == [("colour", "done", None), ("picture", "failed", error), ("volume", "done", None)]
    assert [call for call in observer.calls if call[0] != "finished"] == [
        ("started", "colour", 1, 3),
        ("slices", 1, 1),
        ("started", "picture", 2, 3),
        ("started", "volume", 3, 3),
        *(("slices", done, 5) for done in range(1, 6)),
    ]


# Failures


class Broken:
    """A segmenter with a fault of its own: it does what it is told to instead of segmenting."""

    def __init__(self, segmenter: Segmenter, error: BaseException) -> None:
        self.bundle, self.engine, self._error = segmenter.bundle, segmenter.engine, error

    def run(self, *_: object, **__: object) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory for this case"),
        (ZeroDivisionError("two\nlines"), r"unexpected ZeroDivisionError: two\\nlines; please report it"),
    ],
)
def test_a_fault_of_ours_is_one_line_and_costs_one_case(error, message, cases, out, segmenter):
    observer = Recorder()
    reports = run_cases([cases], out, Broken(segmenter, error), observer=observer)
    assert [entry.status for entry in reports] == ["failed"] * 3
    for entry in reports:
        assert entry.error is not None
        assert entry.error.isprintable()
        assert str(cases) in entry.error
    assert message.replace(r"\\", "\\") in str(reports[0].error)
    assert [call[3] for call in observer.calls if call[0] == "finished"] == [error] * 3


def test_a_case_that_fails_keeps_the_result_of_an_earlier_run(cases, out, segmenter):
    run_cases([cases], out, segmenter)
    before = snapshot(out)
    reports = run_cases([cases], out, Broken(segmenter, MemoryError()), overwrite=True)
    assert set(statuses(reports).values()) == {"failed"}
    assert snapshot(out) == before
    # They are still known to be ours, so that the next run may replace them.
    assert set(statuses(run_cases([cases], out, segmenter)).values()) == {"done"}


def test_an_interrupt_leaves_a_whole_report_and_the_next_run_goes_on(cases, out, segmenter):
    class Interrupting(Recorder):
        def slices_done(self, done: int, total: int) -> None:
            if (done, total) == (3, 5):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cases([cases], out, segmenter, observer=Interrupting())
    entries = load_report(out / REPORT)
    assert statuses(entries) == {"colour": "done", "picture": "done", "volume": "failed"}
    assert str(entries[2].error).endswith("interrupted")
    assert {path.name for path in out.iterdir()} == {"colour.npz", "picture.npz", REPORT, *TABLES}
    after = run_cases([cases], out, segmenter)
    assert statuses(after) == {"colour": "skipped", "picture": "skipped", "volume": "done"}


# Overlap

ORDER = ["colour", "picture", "volume"]


class Watched:
    """A segmenter that calls back with a case's name before it segments it."""

    def __init__(self, segmenter: Segmenter, before: Callable[[str], object]) -> None:
        self.bundle, self.engine, self._segmenter, self._before = (
            segmenter.bundle,
            segmenter.engine,
            segmenter,
            before,
        )

    def run(self, case: Case, method: Method, **options: Any) -> Result:
        self._before(case.name)
        return self._segmenter.run(case, method, **options)


class Slow:
    """Takes the place of ``write_npz`` and writes the first result only once it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.go_on = threading.Event()
        self._error: Exception | None = error
        self._first = True
        monkeypatch.setattr("litemed.runtime.outputs.label_files.write_npz", self)

    def __call__(self, file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
        if self._first:
            self._first = False
            assert self.go_on.wait(60)
            if self._error:
                raise self._error
        write_npz(file, arrays)


def test_a_result_is_written_while_the_next_case_is_segmented_and_no_third_is_begun(
    cases, out, segmenter, monkeypatch
):
    slow, begun = Slow(monkeypatch), []

    def before(name: str) -> None:
        begun.append((name, slow.go_on.is_set()))
        if name == "picture":
            threading.Timer(0.2, slow.go_on.set).start()

    assert len(run_cases([cases], out, Watched(segmenter, before))) == 3
    assert begun == [("colour", False), ("picture", False), ("volume", True)]


def test_a_late_failure_to_write_is_its_own_case_s(cases, out, segmenter, monkeypatch):
    error = OSError(28, "No space left on device")
    slow, observer = Slow(monkeypatch, error), Recorder()
    watched = Watched(segmenter, lambda name: name == "picture" and slow.go_on.set())
    reports = run_cases([cases], out, watched, observer=observer)
    assert statuses(reports) == {"colour": "failed", "picture": "done", "volume": "done"}
    assert "colour.npz: cannot be written: No space left" in str(reports[0].error)
    assert [call[1:3] for call in observer.calls if call[0] == "finished"] == [*statuses(reports).items()]
    assert {path.name for path in out.glob("*.npz")} == {"picture.npz", "volume.npz"}


def test_an_interrupt_lets_the_result_before_be_written_and_forgets_the_case_after(
    cases, out, segmenter, monkeypatch
):
    slow = Slow(monkeypatch)

    def before(name: str) -> None:
        if name == "picture":
            threading.Timer(0.3, slow.go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cases([cases], out, Watched(segmenter, before))
    assert statuses(load_report(out / REPORT)) == {"colour": "done", "picture": "failed"}
    assert {path.name for path in out.iterdir()} == {"colour.npz", REPORT, *TABLES}
    after = run_cases([cases], out, segmenter)
    assert statuses(after) == {"colour": "skipped", "picture": "done", "volume": "done"}


def test_an_engine_that_refuses_the_graphs_ends_the_run_and_fails_no_case(cases, out, box_bundle, tmp_path):
    folder = Path(shutil.copytree(box_bundle, tmp_path / "bundle"))
    model = onnx.load(folder / "decoder.onnx")
    model.graph.node[0].op_type = "Sqeeze"
    data = model.SerializeToString()
    (folder / "decoder.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["graphs"]["decoder"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    bundle = Bundle.open(folder)
    broken = Segmenter(bundle, open_engine("onnxruntime", bundle, 1, wait=False))
    with pytest.raises(EngineError, match="failed"):
        run_cases([cases], out, broken)
    assert list(out.iterdir()) == []


# Resuming


def test_a_second_run_skips_everything_and_keeps_its_times(cases, out, segmenter, tmp_path):
    first = run_cases([cases], out, segmenter)
    before, table = snapshot(out), (out / EFFICIENCY).read_text()
    second = run_cases([cases], out, Broken(segmenter, MemoryError()))
    assert second == tuple(dataclasses.replace(entry, status="skipped") for entry in first)
    assert load_report(out / REPORT) == second
    assert (out / EFFICIENCY).read_text() == table
    # Also if only some of them are asked for, or they lie elsewhere by now.
    cases.rename(tmp_path / "moved")
    assert statuses(run_cases([tmp_path / "moved" / "colour.npz"], out, segmenter)) == {"colour": "skipped"}
    assert statuses(load_report(out / REPORT)) == statuses(second)
    assert snapshot(out) == before


def append(path: Path, text: bytes) -> None:
    path.write_bytes(path.read_bytes() + text)


CHANGES = {
    "colour": lambda cases, out: np.savez(cases / "colour.npz", imgs=NOISE[2], boxes=[[10, 10, 40, 50]]),
    "picture": lambda cases, out: (cases / "picture.json").write_text('{"boxes": [[10, 10, 41, 50]]}'),
    "volume, its result": lambda cases, out: append(out / "volume.npz", b"x"),
    "volume, without result": lambda cases, out: (out / "volume.npz").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_case_of_which_anything_changed_is_run_again_and_no_other(change, cases, out, segmenter):
    run_cases([cases], out, segmenter)
    CHANGES[change](cases, out)
    changed = change.partition(",")[0]
    after = statuses(run_cases([cases], out, segmenter))
    assert after == {name: "done" if name == changed else "skipped" for name in ORDER}
    assert labels(out / f"{changed}.npz").max() >= 1


def test_other_settings_run_every_case_again(cases, out, segmenter, box_bundle, tmp_path):
    def found(segmenter: Segmenter, **method: Any) -> set[str]:
        return set(statuses(run_cases([cases], out, segmenter, method=Method(**method))).values())

    assert found(segmenter) == {"done"}
    assert found(segmenter, merge="nested") == {"skipped"}
    for method in ({"merge": "argmax"}, {"volume": "box"}, {"zoom": "off"}, {"propagate": True}):
        assert found(segmenter, **method) == {"done"}
    shutil.copytree(box_bundle, tmp_path / "other")
    manifest = json.loads((tmp_path / "other/manifest.json").read_text())
    (tmp_path / "other/manifest.json").write_text(json.dumps(manifest | {"name": "other"}))
    other = litemed.runtime.load(tmp_path / "other", engine="onnxruntime", threads=1)
    assert found(other, propagate=True) == {"done"}
    assert found(other, propagate=True) == {"skipped"}


# What must not be touched


def test_a_result_that_no_run_wrote_is_not_replaced_unless_asked(cases, out, segmenter):
    out.mkdir()
    (out / "colour.npz").write_bytes(b"reference masks")
    for _ in range(2):
        reports = run_cases([cases], out, segmenter)
        assert statuses(reports)["colour"] == "failed"
        assert "no earlier run wrote it" in str(reports[0].error)
        assert (out / "colour.npz").read_bytes() == b"reference masks"
    assert set(statuses(run_cases([cases], out, segmenter, overwrite=True)).values()) == {"done"}
    assert labels(out / "colour.npz").max() == 2


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_input_is_never_replaced(cases, segmenter, overwrite, tmp_path):
    before = {path.name: path.read_bytes() for path in cases.iterdir()}
    (tmp_path / "link").symlink_to(cases)
    for folder in (cases, tmp_path / "link", cases / ".." / "cases"):
        with pytest.raises(UsageError, match="is an input and would be replaced"):
            run_cases([cases / "colour.npz"], folder, segmenter, overwrite=overwrite)
        with pytest.raises(UsageError, match="is an input and would be replaced"):
            run_cases([cases], tmp_path / "out", segmenter, overlay=folder, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in cases.iterdir()} == before


def test_a_link_in_the_place_of_a_result_is_neither_followed_nor_replaced(cases, out, segmenter, tmp_path):
    out.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (out / "colour.npz").symlink_to(tmp_path / "elsewhere")
    reports = run_cases([cases], out, segmenter, overwrite=True)
    assert statuses(reports) == {"colour": "failed", "picture": "done", "volume": "done"}
    assert "is a link" in str(reports[0].error)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_cases_whose_results_would_share_a_name_are_all_refused(cases, out, segmenter):
    (cases / "sub").mkdir()
    shutil.copy(cases / "colour.npz", cases / "picture.npz")
    shutil.copy(cases / "volume.npz", cases / "VOLUME.npz")
    shutil.copy(cases / "colour.npz", cases / "sub")
    reports = run_cases([cases, cases / "sub"], out, segmenter)
    assert {report.status for report in reports} == {"failed"}
    assert sorted(report.case for report in reports) == sorted(
        str(cases / name)
        for name in ("colour.npz", "picture.npz", "picture.png", "volume.npz", "VOLUME.npz", "sub/colour.npz")
    )
    for report in reports:
        assert f"{report.case}: its result would have the name of" in str(report.error)
    assert not list(out.glob("*.npz"))
    assert len(load_report(out / REPORT)) == 6


# Several processes


def test_a_case_that_another_process_is_at_comes_last(cases, out, segmenter):
    out.mkdir()
    lock = FolderLock(out, "colour")

    class Releasing(Recorder):
        def case_finished(self, report: CaseReport, error: Exception | None) -> None:
            super().case_finished(report, error)
            if report.case == "volume":
                lock.__exit__(None, None, None)

    observer = Releasing()
    lock.__enter__()
    reports = run_cases([cases], out, segmenter, observer=observer)
    finished = [call[1] for call in observer.calls if call[0] == "finished"]
    assert finished == ["picture", "volume", "colour"]
    assert [report.case for report in reports] == ["colour", "picture", "volume"]


@pytest.mark.parametrize(("written", "status"), [(True, "done"), (False, "failed")])
def test_a_result_is_replaced_if_a_process_was_killed_while_it_wrote_it_and_not_before(
    written, status, cases, out, segmenter
):
    leave_abandoned(out, "colour")
    (lock,) = out.glob(".*.lock")
    if not written:
        lock.write_bytes(b"")  # as it is while a case is read
    with atomic_write(out / "colour.npz") as file:
        half = Path(file.name)
        file.write(b"written, not yet in the report")
    half.write_bytes(b"half")  # what a kill leaves of a file being written
    assert statuses(run_cases([cases], out, segmenter))["colour"] == status
    assert ((out / "colour.npz").read_bytes() == b"written, not yet in the report") != written
    assert half.exists() != written


def test_a_table_of_other_origin_is_not_replaced(cases, out, segmenter):
    out.mkdir()
    (out / EFFICIENCY).write_text("case,seconds\n")
    with pytest.raises(OutputError, match=f"{EFFICIENCY}: exists, and no earlier run wrote it"):
        run_cases([cases], out, segmenter)
    assert (out / EFFICIENCY).read_text() == "case,seconds\n"
    with pytest.raises(OutputError, match=f"{EFFICIENCY}: cannot be made a folder"):
        run_cases([cases], out, segmenter, overlay=out / EFFICIENCY)
    assert set(statuses(run_cases([cases], out, segmenter, overwrite=True)).values()) == {"done"}


def test_a_picture_of_other_origin_is_not_replaced_in_another_folder_of_pictures(
    cases, out, tmp_path, segmenter
):
    run_cases([cases], out, segmenter, overlay=tmp_path / "first")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "picture.png").write_bytes(b"a photo")
    reports = statuses(run_cases([cases], out, segmenter, overlay=photos))
    assert reports == {"colour": "done", "picture": "failed", "volume": "done"}
    assert (photos / "picture.png").read_bytes() == b"a photo"


def test_names_and_sidecars_that_a_run_could_wait_for_for_ever(cases, out, segmenter):
    """A case called as the report is, whose locks were one; a sidecar that is a pipe."""
    shutil.copy(cases / "colour.npz", cases / f"{REPORT}.npz")
    (cases / "picture.json").unlink()
    os.mkfifo(cases / "picture.json")
    done: list[dict[str, str]] = []
    thread = threading.Thread(
        target=lambda: done.append(statuses(run_cases([cases], out, segmenter))), daemon=True
    )
    thread.start()
    thread.join(60)
    assert done == [{"colour": "done", "picture": "failed", REPORT: "done", "volume": "done"}]
