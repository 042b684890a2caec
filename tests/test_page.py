"""The page of a run: whole, offline, of a bounded size, and safe whatever strangers call their files."""

import base64
import dataclasses
import hashlib
import html.parser
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import litemed.runtime
from litemed.runtime.cli import main
from litemed.runtime.errors import OutputError
from litemed.runtime.files import sha256_of_file
from litemed.runtime.folder import run_cases
from litemed.runtime.method import Method
from litemed.runtime.outputs.objects import ObjectStatistics
from litemed.runtime.outputs.page import PAGE, write_page
from litemed.runtime.report import CaseReport, FileRecord, Settings
from litemed.runtime.report_files import ReportFile

HOSTILE = "<script>alert(1)</script>\"'><img src=//x.example/a onerror=b>&amp;\u202e\udce9\n</style>"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
SETTINGS = Settings("0.1.0", HOSTILE, "0" * 64, "openvino", "int8", Method())
OBJECT = ObjectStatistics(1, 120, None, 1.25, (1, 2, 3, 4, 5, 6), (4, 4, 8.5), 41.5, 3.25, 0.75)
CASE = CaseReport("a", "done", None, ("w",), {"read": 0.5, "total": 2.125}, objects=(OBJECT,))


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: elements, their attributes, and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + "|"

    def found(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def segmenter(box_bundle):
    return litemed.runtime.load(box_bundle, engine="onnxruntime", threads=1)


def page_of(folder: Path, *cases: CaseReport, pictures: Path | None = None) -> Page:
    report = ReportFile(folder, SETTINGS, {"cpu": HOSTILE})
    for case in cases:
        report.put(case)
    report.summarise()
    write_page(folder, pictures)
    return Page(folder / PAGE)


def test_whatever_strangers_wrote_is_text(tmp_path):
    failed = CaseReport(HOSTILE, "failed", HOSTILE)
    page = page_of(tmp_path, dataclasses.replace(CASE, warnings=(HOSTILE,)), failed)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td"}
    assert {tag for tag, _ in page.elements} <= {*allowed, "details", "summary"}
    attributes = {name for _, found in page.elements for name in found}
    assert attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "title"}
    assert page.text.count("<script>alert(1)</script>\"'><img src=//x.example/a onerror=b>&amp;\\u202e") == 5
    assert "\u202e" not in page.source


def test_it_loads_nothing_and_its_policy_forbids_it(tmp_path):
    page = page_of(tmp_path, CASE)
    (policy,) = [meta["content"] for meta in page.found("meta") if "http-equiv" in meta]
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        *("default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"),
        *("base-uri 'none'", "form-action 'none'"),
    ]
    assert not re.search(r"https?:|url\(|@import", page.source)


def test_cases_have_status_seconds_warnings_and_objects_and_the_failed_come_first(tmp_path):
    many = tuple(dataclasses.replace(OBJECT, label=label) for label in range(1, 31))
    failed = CaseReport("z", "failed", "z.npz: no boxes")
    page = page_of(
        tmp_path, CASE, dataclasses.replace(CASE, case="b", status="skipped", objects=many), failed
    )
    assert "1 done, 1 skipped, 1 failed; 2 warnings; 4.2 s of work" in page.text
    assert page.text.index("z.npz: no boxes") < page.text.index("|w|")
    for part in ("2.12|", "1|120||1.25|", "1 2 3 4 5 6|4 x 4 x 8.5|41.5|3.25|0.75|", "and 10 more", "int8|"):
        assert part.replace("||", "|") in page.text.replace("||", "|")
    assert page.text.count("1 2 3 4 5 6") == 21
    assert {found["title"] for found in page.found("td") if "title" in found} == {"", "read 0.50, total 2.12"}


def draw(folder: Path, name: str, picture: np.ndarray) -> FileRecord:
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / name), picture)
    return FileRecord(name, sha256_of_file(folder / name))


def test_a_thousand_cases_make_a_page_of_bounded_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (768, 600, 3), np.uint8)  # the worst to compress
    record = draw(tmp_path / "pictures", "a.png", noise)
    cases = [
        dataclasses.replace(CASE, case=f"{number:04}", objects=(OBJECT,) * 8, overlay=record)
        for number in range(1000)
    ]
    page = page_of(tmp_path, *cases, pictures=tmp_path / "pictures")
    images = page.found("img")
    assert 100 < len(images) < 1000
    small = cv2.imdecode(np.frombuffer(base64.b64decode(images[0]["src"].partition(",")[2]), np.uint8), 1)
    assert small.shape == (240, 188, 3)
    assert len(page.source) < 22 * 2**20
    assert len(page.found("details")) == 1000


def test_only_pictures_on_record_are_shown(tmp_path):
    pictures = tmp_path / "pictures"
    records = [draw(pictures, f"{name}.png", np.full((60, 80, 3), 90, np.uint8)) for name in "abc"]
    (pictures / "b.png").write_bytes(b"replaced")
    (pictures / "c.png").unlink()
    outside = draw(tmp_path, "d.png", np.zeros((5, 5, 3), np.uint8))
    records += [
        dataclasses.replace(outside, path="../d.png"),
        outside,
        draw(pictures / "below", "e.png", NOISE),
    ]
    names = "a", "b", "c", "d", "../d", "below/e"
    cases = [
        dataclasses.replace(CASE, case=name, overlay=record)
        for name, record in zip(names, records, strict=True)
    ]
    failed = dataclasses.replace(CASE, case="failed", status="failed", error="e", overlay=records[0])
    assert len(page_of(tmp_path, *cases, failed, pictures=pictures).found("img")) == 2
    assert page_of(tmp_path, CASE).found("img") == []


def test_the_command_writes_it(tmp_path, box_bundle):
    np.savez(tmp_path / "a.npz", imgs=NOISE, boxes=[[5, 5, 30, 30]])
    options = [
        "--model",
        box_bundle,
        "--engine",
        "onnxruntime",
        "--png",
        "--html",
        "--overlay",
        tmp_path / "p",
    ]
    arguments = [tmp_path / "a.npz", "-o", tmp_path / "out", *options]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "report.json", "report.html", "efficiency.csv", "objects.csv"}
    assert len(Page(tmp_path / "out" / PAGE).found("img")) == 1


def test_a_resumed_run_writes_the_page_of_all_cases_again(tmp_path, segmenter):
    cases = tmp_path / "cases"
    cases.mkdir()
    for name in ("one", "two"):
        np.savez(cases / f"{name}.npz", imgs=NOISE, boxes=[[5, 5, 30, 30]])
    np.savez(cases / "bad.npz", imgs=NOISE)
    out, pictures = tmp_path / "out", tmp_path / "pictures"
    run_cases([cases], out, segmenter, overlay=pictures, html=True)
    first = Page(out / PAGE)
    (out / PAGE).unlink()
    run_cases([cases / "one.npz"], out, segmenter, overlay=pictures, html=True)
    again = Page(out / PAGE)
    assert len(first.found("img")) == len(again.found("img")) == 2
    assert again.found("img") == first.found("img")
    assert "2 done, 0 skipped, 1 failed" in first.text
    assert "1 done, 1 skipped, 1 failed" in again.text
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    (out / PAGE).write_text("<p>mine")
    with pytest.raises(OutputError, match=r"report\.html: exists, and no earlier run wrote it"):
        run_cases([cases], out, segmenter, html=True)
    assert (out / PAGE).read_text() == "<p>mine"
    run_cases([cases], out, segmenter, html=True, overwrite=True)
    assert Page(out / PAGE).found("img") == []
