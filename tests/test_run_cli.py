"""litemed-run: what it prints, where, with which exit code, and what it leaves behind.

As a process of its own only where that matters: it is killed, or a module must not have been imported.
"""

import errno
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from litemed.runtime.cli import main
from litemed.runtime.engines import Engine
from litemed.runtime.inputs.npz import write_npz
from litemed.runtime.report import REPORT, load_report
from litemed.runtime.report_files import EFFICIENCY, LOG, TABLES

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
VOLUME = np.stack([IMAGE] * 5)
BOXES2, BOXES3 = [[10, 10, 40, 50]], [[10, 10, 1, 40, 50, 3]]
ONE_THREAD = ("--engine", "onnxruntime", "--threads", 1)

Run = Callable[..., Result]


def invoke(*arguments: object, **options: Any) -> Result:
    """Run the command in this process; an exception that is not told of as an error is raised."""
    done = CliRunner().invoke(main, list(map(str, arguments)), **options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def command(*arguments: object, flags: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *flags, "-m", "litemed.runtime.cli", *map(str, arguments)]


def save(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)


def tally(done: Result) -> str:
    """Return how many cases the last line says were done, skipped and failed."""
    return done.stdout.splitlines()[-1].partition(";")[0]


@pytest.fixture
def cases(tmp_path):
    """Return a folder of two good cases."""
    folder = tmp_path / "cases"
    folder.mkdir()
    save(folder / "good2d.npz", imgs=IMAGE, boxes=BOXES2)
    save(folder / "good3d.npz", imgs=VOLUME, boxes=BOXES3)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def fixed(out, box_bundle):
    return ("-o", out, "--model", box_bundle, *ONE_THREAD)


@pytest.fixture
def run(fixed):
    """Return a function that runs litemed-run into ``out`` on one thread."""
    return lambda *arguments, **options: invoke(*arguments, *fixed, **options)


def test_a_folder_is_segmented_and_told_of_in_plain_lines(cases, out, run):
    done = run(cases)
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, summary = done.stdout.splitlines()
    assert re.fullmatch(r"\[1/2\] good2d: \d+\.\d\d s, encodings: 1, masks: 1", first)
    assert re.fullmatch(r"\[2/2\] good3d: \d+\.\d\d s, encodings: 3, masks: 3", second)
    assert summary == f"2 done, 0 skipped, 0 failed; see {out / REPORT}"
    assert {path.name for path in out.iterdir()} == {"good2d.npz", "good3d.npz", REPORT, *TABLES}


def test_the_console_script_is_installed_and_gives_the_version_without_an_engine():
    script = Path(sys.executable).parent / "litemed-run"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "litemed-run, version 0.1.0\n"
    code = (
        "import sys\nfrom litemed.runtime.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print({'numpy', 'cv2', 'onnxruntime', 'openvino', 'torch', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Bad cases


def truncated(path: Path) -> None:
    save(path, imgs=IMAGE, boxes=BOXES2)
    path.write_bytes(path.read_bytes()[:-40])


def pickled(path: Path) -> None:
    save(path, imgs=np.array([print], object), boxes=BOXES2)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "truncated": (truncated, "truncated"),
    "pickled": (pickled, "pickled Python objects"),
    "wrong_keys": (lambda path: save(path, image=IMAGE, box=BOXES2), "no array 'imgs'"),
    "boxes_of_2d_on_3d": (lambda path: save(path, imgs=VOLUME, boxes=BOXES2), "volume needs (N, 6)"),
    "nan_image": (lambda path: save(path, imgs=np.full((60, 80), np.nan), boxes=BOXES2), "imgs is float64"),
    "outside": (lambda path: save(path, imgs=IMAGE, boxes=[[100, 0, 150, 5]]), "outside the image"),
    "lone.png": (lambda path: cv2.imwrite(str(path), IMAGE), "no boxes; write them to"),
    "short.jpg": (lambda path: path.write_bytes(cv2.imencode(".jpg", IMAGE)[1].tobytes()[:-9]), "ends too"),
    "text.tif": (lambda path: path.write_text("no image"), "not a PNG, JPEG or TIFF image"),
}


def test_every_bad_case_is_one_line_on_stderr_and_the_others_go_on(cases, out, fixed):
    """By checks that python -O leaves in."""
    paths = {}
    for name, (make, message) in BAD.items():
        path = cases / (name if "." in name else f"{name}.npz")
        make(path)
        paths[path] = message
    done = subprocess.run(command(cases, *fixed, flags=("-O",)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len(lines) == len(paths)
    for path, message in paths.items():
        (line,) = [line for line in lines if line.startswith(f"error: {path}: ")]
        assert message in line
    assert {path.name for path in out.iterdir()} == {"good2d.npz", "good3d.npz", REPORT, *TABLES}
    assert f"2 done, 0 skipped, {len(paths)} failed" in done.stdout
    assert {f"error: {entry.error}" for entry in load_report(out / REPORT) if entry.error} == set(lines)


def test_boxes_that_were_clipped_are_a_warning(cases, out, run):
    save(cases / "reaches.npz", imgs=IMAGE, boxes=[[5, 5, 20, 20], [-4, 30, 20, 90]])
    done = run(cases / "reaches.npz")
    assert done.exit_code == 0
    warning = "1 of 2 boxes reach out of the image and were clipped: 2"
    assert done.stderr == f"warning: reaches: {warning}\n"
    assert load_report(out / REPORT)[0].warnings == (warning,)


def test_labels_without_a_pixel_flat_images_and_spacing_of_another_order_are_warnings(tmp_path, out, run):
    save(tmp_path / "same.npz", imgs=IMAGE, boxes=BOXES2 * 3)
    save(tmp_path / "xyz.npz", imgs=VOLUME, boxes=BOXES3, spacing=[0.7, 0.7, 5.0])
    save(tmp_path / "flat.npz", imgs=IMAGE * 0 + np.uint8(96), boxes=BOXES2)
    done = run(*(tmp_path / f"{name}.npz" for name in ("same", "xyz", "flat")), "--quiet")
    assert done.stderr.splitlines() == [
        "warning: same: 2 of 3 labels have no pixel: 2, 3",
        "warning: xyz: spacing 0.7, 0.7, 5 is read as z, y, x, but looks like x, y, z",
        "warning: flat: the image is 96 everywhere",
    ]
    assert [len(entry.warnings) for entry in load_report(out / REPORT)] == [1, 1, 1]


def test_a_damaged_jpeg_fails_by_name_and_nothing_else_is_printed(tmp_path, run, capfd):
    done, data = cv2.imencode(".jpg", IMAGE)
    assert done
    data[len(data) // 2 :][:20] = range(20)
    (tmp_path / "a.jpg").write_bytes(data.tobytes())
    (tmp_path / "a.json").write_text('{"boxes": [[1, 2, 30, 40]]}')
    done = run(tmp_path / "a.jpg", "--quiet")
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'a.jpg'}: not a readable image (")
    assert capfd.readouterr() == ("", "")


def test_what_was_compiled_is_kept_where_the_user_says_and_nowhere_else(cases, out, box_bundle, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    kept = tmp_path / "kept"
    arguments = (cases, "-o", out, "--model", box_bundle, "--engine", "openvino", "--overwrite")
    folders = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}

    def segment(*options: object, **more: str) -> Result:
        return invoke(*arguments, *options, env=folders | more)

    assert segment().exit_code == 0
    results = [path.read_bytes() for path in sorted(out.glob("*.npz"))]
    assert not kept.exists()
    for done in (segment("--cache", kept), segment(LITEMED_CACHE=str(kept))):
        assert (done.exit_code, done.stderr) == (0, "")
        assert len(list(kept.iterdir())) == 2
        assert [path.read_bytes() for path in sorted(out.glob("*.npz"))] == results
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "xdg").exists()
    kept.chmod(0o777)
    refused = segment("--cache", kept)
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"error: {kept}: is not yours alone to write")
    assert len(refused.stderr.splitlines()) == 1


# Engine and precision


@pytest.fixture
def two_precisions(box_bundle, tmp_path):
    """Return a bundle that lists its graphs a second time, as int8 that does not pass on ONNX Runtime."""
    bundle = Path(shutil.copytree(box_bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    engines = {
        name: {"modalities": {"CT": {"cases": 1, "dice": dice, "dsc_change": None}}}
        for name, dice in (("onnxruntime", 0.9), ("openvino", 1.0))
    }
    agreement = {"images": 1, "merge": "nested", "engines": engines}
    manifest["precisions"]["int8"] = manifest["precisions"]["float32"] | {"agreement": agreement}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_what_was_chosen_and_why_is_on_record_and_decides_what_is_up_to_date(cases, out, two_precisions):
    fixed = ("-o", out, "--model", two_precisions, *ONE_THREAD)

    def segment(*options: object) -> tuple[str, str]:
        done = invoke(cases, *fixed, *options)
        assert done.exit_code == 0, done.stderr
        return "".join(done.stdout.splitlines()[-1:]).partition(";")[0], done.stderr

    def recorded() -> tuple[str, str, str]:
        report = json.loads((out / REPORT).read_text())
        environment = report["environment"]
        return report["settings"]["precision"], environment["choice"], environment["engine_version"]

    assert segment("--precision", "exact") == ("2 done, 0 skipped, 0 failed", "")
    precision, choice, version = recorded()
    assert (precision, choice) == ("float32", "")
    summary, noted = segment("--precision", "fast", "--verbose")
    assert summary == "2 done, 0 skipped, 0 failed"
    precision, choice, _ = recorded()
    assert precision == "int8"
    assert choice.startswith("presumed the fastest")
    notes = noted.splitlines()
    assert len(notes) == 2
    assert notes[0].startswith("note: int8 on onnxruntime changes the masks: ")
    assert notes[1] == f"note: onnxruntime {version}, int8, 1 threads: {choice}"
    assert segment("--precision", "fast", "--quiet")[1] == ""
    assert segment("--precision", "fast")[0] == "0 done, 2 skipped, 0 failed"
    # Did not pass on this engine, so float32 it is by itself.
    assert segment()[0] == "2 done, 0 skipped, 0 failed"
    precision, choice, _ = recorded()
    assert precision == "float32"
    assert "left out: onnxruntime int8 (" in choice


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing argument 'CASES...'"),
        (("none.npz",), "none.npz: no such file or folder"),
        (("empty",), "empty: no case in this folder"),
        (("notes.txt",), "notes.txt: not a case"),
        (("cases", "--threads", "0"), "--threads"),
        (("cases", "--engine", "torch"), "--engine"),
        (("cases", "--precision", "half"), "no precision 'half'; choose one of exact, fast"),
        (("cases", "--wrong"), "--wrong"),
        (("cases", "--merge", "vote"), "--merge"),
        (("cases", "--merge", "nested", "--propagate"), "merge nested does not go with propagate"),
        (("cases", "--overlay", "cases"), "would be replaced"),
    ],
)
def test_wrong_use_is_refused_with_code_2_before_anything_is_written(
    arguments, message, cases, fixed, out, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    cv2.imwrite(str(cases / "picture.png"), IMAGE)
    monkeypatch.chdir(tmp_path)
    done = invoke(*fixed, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert not out.exists()


def test_a_model_that_is_none_is_one_line_before_the_first_case(cases, out, tmp_path):
    done = invoke(cases, "-o", out, "--model", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {tmp_path}/")
    assert len(done.stderr.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("option", ["CASES", "-o", "--model", "--cache", "--overlay"])
def test_what_the_system_refuses_is_one_line_that_names_it(option, cases, out, box_bundle, tmp_path):
    """A name longer than file systems take: of all errors of the system the one that strikes root, too."""
    given = {"CASES": cases, "-o": out, "--model": box_bundle}
    given[option] = tmp_path / ("x" * 300)
    arguments = [given.pop("CASES"), *(part for pair in given.items() for part in pair)]
    done = invoke(*arguments)
    assert done.exit_code in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "x" * 300 in done.stderr
    assert os.strerror(errno.ENAMETOOLONG) in done.stderr


def test_a_traceback_is_shown_under_debug_and_quiet_prints_errors_only(cases, run):
    (cases / "bad.npz").write_bytes(b"PK")
    done = run(cases, "--quiet")
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    shown = run(cases, "--debug").stderr
    assert "Traceback" in shown
    assert shown.splitlines()[-1].startswith(f"error: {cases / 'bad.npz'}: ")


def test_untrained_weights_are_said_to_be_untrained(cases, out, box_bundle, tmp_path):
    bundle = tmp_path / "untrained"
    shutil.copytree(box_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["weights"]["trained"] = False
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = invoke(cases, "-o", out, "--model", bundle)
    assert done.exit_code == 0
    assert done.stderr == f"warning: {bundle} holds untrained weights; the masks mean nothing\n"


# Resuming, several processes, interruption


def many_cases(folder: Path, count: int) -> None:
    for number in range(count):
        with (folder / f"case{number:03}.npz").open("wb") as file:
            write_npz(
                file, {"imgs": np.tile(VOLUME, (3, 4, 4)), "boxes": np.array([[10, 10, 0, 200, 200, 14]])}
            )


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_the_cases_of_one_folder(cases, out, fixed):
    many_cases(cases, 10)
    processes = [start(cases, *fixed) for _ in range(2)]
    summaries = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=120)
        assert (process.returncode, stderr) == (0, "")
        summaries.append([int(part.split()[0]) for part in stdout.splitlines()[-1].split(";")[0].split(", ")])
    # Every case once by one of them, and found done by the other.
    assert [sum(counts) for counts in zip(*summaries, strict=True)] == [12, 12, 0]
    entries = load_report(out / REPORT)
    assert len(entries) == 12
    assert len((out / EFFICIENCY).read_text().splitlines()) == 13
    assert {path.name for path in out.iterdir()} == {
        *(f"{entry.case}.npz" for entry in entries),
        *(REPORT, *TABLES),
    }
    for entry in entries:
        with np.load(out / f"{entry.case}.npz") as file:
            assert file["segs"].max() == 1


def wait_for_first_case(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("[1/")


def test_an_interrupt_ends_with_130_and_a_whole_report(cases, out, fixed, run):
    many_cases(cases, 12)
    process = start(cases, *fixed)
    wait_for_first_case(process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("interrupted: ")
    finished = {entry.case for entry in load_report(out / REPORT) if entry.status == "done"}
    assert 1 <= len(finished) < 14
    assert {path.stem for path in out.glob("*.npz")} == finished
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert tally(run(cases)).endswith(f" {len(finished)} skipped, 0 failed")


def test_a_kill_loses_nothing_that_was_finished(cases, out, fixed, run):
    many_cases(cases, 12)
    process = start(cases, *fixed)
    wait_for_first_case(process)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    finished = {json.loads(line)["case"] for line in (out / LOG).read_text().splitlines()}
    assert 1 <= len(finished) < 14
    assert finished <= {path.stem for path in out.glob("*.npz")}
    for path in out.glob("*.npz"):
        with np.load(path) as file:
            assert file["segs"].max() == 1
    assert tally(run(cases)) == f"{14 - len(finished)} done, {len(finished)} skipped, 0 failed"
    assert {path.name for path in out.iterdir() if path.name.startswith(".")} == set()


def test_a_full_disk_is_one_line_and_leaves_no_half_of_a_file(cases, out, fixed):
    image = np.random.default_rng(1).integers(0, 256, (400, 400), np.uint8)
    boxes = np.random.default_rng(2).integers(0, 190, (300, 2))
    save(cases / "big.npz", imgs=image, boxes=np.hstack([boxes, boxes + 200]))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(command(cases, *fixed), preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written: File too large" in done.stderr
    for path in out.glob("*.npz"):
        np.load(path)["segs"]
    assert not [path for path in out.iterdir() if path.suffix == ".tmp"]


def test_where_all_is_up_to_date_no_engine_is_loaded(cases, run, monkeypatch):
    run(cases)

    def refuse(*arguments: object, **graphs: object) -> None:
        raise AssertionError("a graph is loaded")

    monkeypatch.setattr(Engine, "_begin", refuse)
    again = run(cases)
    assert (again.exit_code, tally(again)) == (0, "0 done, 2 skipped, 0 failed")


def test_what_in_a_folder_is_no_case_is_counted_and_refused_if_asked(cases, out, fixed, run):
    """Results, sidecars and hidden files are not counted, nor what is beside a case that is named."""
    for name in ("a.svg", "b.SVG", "LICENSE", ".hidden"):
        (cases / name).write_bytes(b"")
    (cases / "below").mkdir()
    Image.fromarray(IMAGE).save(cases / "c.png")
    (cases / "c.json").write_text(json.dumps({"boxes": BOXES2}))
    line = f"{cases}: 4 in it are no cases and were left out: 2 .svg, 1 "
    refused = run(cases, "--strict")
    assert (refused.exit_code, refused.stderr.count("\n"), out.exists()) == (2, 1, False)
    assert refused.stderr.startswith(f"error: {line}")
    inside = invoke(cases, "-o", cases / "results", *fixed[2:])
    assert (inside.exit_code, tally(inside)) == (0, "3 done, 0 skipped, 0 failed")
    assert inside.stderr.startswith(f"warning: {line}")
    assert {"1 folder(s)", "1 without suffix"} < set(re.split(", |\n", inside.stderr))
    named = run(*cases.glob("*.npz"), "--strict")
    assert (named.exit_code, named.stderr) == (0, "")


def test_a_result_that_a_full_disk_kept_off_the_report_is_not_refused_as_another_s(tmp_path, out, fixed, run):
    (tmp_path / "many").mkdir()
    for number in range(8):
        save(tmp_path / "many" / f"{number}.npz", imgs=IMAGE, boxes=BOXES2)
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (3000, 3000))"
    code = f"from litemed.runtime.cli import main; {limit}; main()"  # the log is what grows
    line = [sys.executable, "-c", code, str(tmp_path / "many"), *map(str, fixed)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {out / 'report.jsonl'}: cannot be written: File too large"
    known = {json.loads(entry)["case"] for entry in (out / "report.jsonl").read_bytes().split(b"\n")[:-1]}
    assert {path.stem for path in out.glob("*.npz")} - known
    again = run(tmp_path / "many")
    assert (again.exit_code, tally(again)) == (0, f"{8 - len(known)} done, {len(known)} skipped, 0 failed")
    assert not list(out.glob(".*"))


def test_on_a_terminal_there_is_a_bar_and_errors_stand_on_lines_of_their_own(cases, out, fixed):
    (cases / "bad.npz").write_bytes(b"PK")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(cases, *fixed),
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # how a terminal ends once nobody holds its other end
            break
    os.close(leader)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout == f"2 done, 0 skipped, 1 failed; see {out / REPORT}\n"
    text = shown.decode()
    assert "#" in text
    assert "good3d (3/3)" in text
    assert f"\r\x1b[Kerror: {cases / 'bad.npz'}: " in text


@pytest.mark.slow
def test_a_volume_of_287_slices_stays_far_below_the_memory_limit(cases, out, fixed):
    volume = np.zeros((287, 512, 512), np.uint8)
    volume[:] = np.tile(IMAGE, (9, 7))[:512, :512]
    boxes = np.array([[20 * i, 30, 0, 20 * i + 300, 480, 286] for i in range(2)])
    with (cases / "volume.npz").open("wb") as file:
        write_npz(file, {"imgs": volume, "boxes": boxes, "spacing": np.ones(3)})
    arguments = (cases / "volume.npz", *fixed, "--volume=box", "--overlay", out / "p")
    done = subprocess.run(command(*arguments), capture_output=True)
    assert done.returncode == 0
    (entry,) = load_report(out / REPORT)
    assert (entry.encodings, entry.decodings) == (287, 2 * 287)
    # Image and labels are 75 MiB each; the engine with its graphs of no size takes about 150.
    assert json.loads((out / REPORT).read_text())["peak_memory_mib"] < 500


@pytest.mark.parametrize(
    ("options", "cost"),
    [
        ((), "boxes: 1, encodings: 25, masks: 25, tiles: 0, planes: 8"),
        (("--boxes", "tight"), "boxes: 1, encodings: 25, masks: 25, tiles: 0, planes: 8"),
        (("--volume", "ellipsoid"), "boxes: 1, encodings: 17, masks: 17, tiles: 0, planes: 0"),
        (("--propagate",), "boxes: 1, encodings: 17, masks: 17, tiles: 0, planes: 0"),
    ],
)
def test_a_dry_run_says_what_the_report_says_afterwards(options, cost, loose_bundle, tmp_path):
    save(tmp_path / "case.npz", imgs=np.stack([IMAGE] * 20), boxes=[[10, 10, 2, 40, 50, 18]])
    output, given = tmp_path / "segs", (tmp_path / "case.npz", "-o", tmp_path / "segs", *options)
    dry = invoke(*given, "--model", loose_bundle, "--dry-run")
    assert (dry.exit_code, dry.stdout) == (0, f"case: {cost}\n")
    assert not output.exists()
    assert invoke(*given, "--model", loose_bundle, *ONE_THREAD).exit_code == 0
    (case,) = json.loads((output / REPORT).read_text())["cases"]
    assert f"encodings: {case['encodings']}, masks: {case['decodings']}," in cost


def test_a_dry_run_warns_of_what_a_run_does(box_bundle, tmp_path):
    save(tmp_path / "case.npz", imgs=VOLUME, boxes=[[10, 10, 1, 90, 50, 3]], spacing=[1.0, 1.0, 3.0])
    given = (tmp_path / "case.npz", "-o", tmp_path / "segs", "--model", box_bundle)
    dry, done = invoke(*given, "--dry-run"), invoke(*given, *ONE_THREAD)
    assert dry.stderr == done.stderr
    assert "clipped" in dry.stderr
    assert "looks like x, y, z" in dry.stderr


def test_small_boxes_for_which_no_tile_is_left_are_warned_of(tmp_path, run):
    boxes = [[10, 10, 16, 16], [900, 900, 906, 906], [500, 20, 506, 26]]
    save(tmp_path / "case.npz", imgs=np.tile(IMAGE, (17, 13)), boxes=boxes)
    assert "have no tile" not in run(tmp_path / "case.npz").stderr
    done = run(tmp_path / "case.npz", "--max-zoom-tiles", 1)
    assert "2 of 3 boxes are small and have no tile; see --max-zoom-tiles" in done.stderr


def test_a_dry_run_names_what_cannot_be_read(box_bundle, tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    done = invoke(tmp_path, "-o", tmp_path / "segs", "--model", box_bundle, "--dry-run")
    assert done.exit_code == 1
    assert str(tmp_path / "bad.npz") in done.stderr


def test_boxes_are_tight_where_there_is_no_decoder_for_loose_ones(box_bundle, tmp_path):
    save(tmp_path / "case.npz", imgs=IMAGE, boxes=BOXES2)
    given = (tmp_path / "case.npz", "-o", tmp_path / "segs", "--model", box_bundle, *ONE_THREAD)
    refused = invoke(*given, "--boxes", "drawn")
    assert refused.exit_code == 2
    assert "has no decoder for loose boxes" in refused.stderr
    assert invoke(*given).exit_code == 0
    method = json.loads((tmp_path / "segs" / REPORT).read_text())["settings"]["method"]
    assert (method["box_fit"], method["volume"], method["zoom"]) == ("tight", "planes", "auto")
