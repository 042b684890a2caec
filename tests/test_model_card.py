"""The parts of a model card that are made from files, and the pictures beside it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from litemed.benchmarks.evaluate.cli import main as evaluate
from litemed.benchmarks.model_card import jitter_table, main, source_table, unlabelled_table
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.npz import write_npz
from litemed.train.prepare.cli import main as prepare

PARTS = ("sources", "unlabelled", "scores", "jitter", "examples")
FRAME = "# A model\n\nBy hand: keep me.\n" + "".join(
    f"<!-- {part} -->\nold {part}\n<!-- end of {part} -->\nBetween.\n" for part in PARTS
)


def run(command: object, *arguments: object, expect: int = 0) -> Result:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert done.exit_code == expect, done.output
    return done


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(modality: str, source: str, case: str, split: str, **more: str) -> dict[str, str]:
    found = {"modality": modality, "source": source, "case": case, "split": split, "licence": "CC BY 4.0"}
    paths = {"image": f"{source}_{case}.png", "label": f"{source}_{case}_label.png"}
    return found | {"attribution": f"makers of {source}", "licence_status": "stated"} | paths | more


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Seven pairs of images with one disc each: US from three sources, CT as a source of its own."""
    rows = [
        *(row("US", "free", f"f{number}", "val" if number < 3 else "train") for number in range(4)),
        row("US", "closed", "c0", "val", licence="CC BY-NC 4.0"),
        row("US", "unsure", "u0", "train", licence_status="unclear"),
        row("CT", "weak", "w0", "train", licence_status="known"),
    ]
    random = np.random.default_rng(0)
    for number, one in enumerate(rows):
        label = np.zeros((80, 100), np.uint8)
        cv2.circle(label, (50, 40), 15 + number, 1, cv2.FILLED)
        cv2.imwrite(str(tmp_path / one["label"]), label)
        cv2.imwrite(str(tmp_path / one["image"]), random.integers(0, 99, (80, 100), np.uint8) + 100 * label)
    return write_csv(tmp_path / "index.csv", rows)


@pytest.fixture
def scored(index: Path, tmp_path: Path) -> Path:
    """Prepared cases, masks that get smaller from case to case, and their scores."""
    run(prepare, index, "-o", tmp_path / "val", "--cases", "--split", "val", "--workers", 1)
    (tmp_path / "segs").mkdir()
    for number, path in enumerate(sorted((tmp_path / "val/gts").iterdir())):
        labels = cv2.erode(np.load(path)["gts"], np.ones((3, 3)), iterations=2 * number)
        with (tmp_path / "segs" / path.name).open("wb") as stream:
            write_npz(stream, {"segs": labels})
    arguments = (f"ours={tmp_path / 'segs'}", tmp_path / "val/gts", "--cases", tmp_path / "val/cases")
    run(evaluate, *arguments, "--trivial", "-o", tmp_path / "scores", "--workers", 1)
    return tmp_path


def test_sources_are_counted_with_their_terms(index: Path) -> None:
    lines = source_table([index], exclude=["weak"])
    assert lines[2:] == [
        "| CT | weak | makers of weak | CC BY 4.0 | known | 1 | 0 |",
        "| US | closed | makers of closed | CC BY-NC 4.0 | stated | 1 | 0 |",
        "| US | free | makers of free | CC BY 4.0 | stated | 4 | 1 |",
        "| US | unsure | makers of unsure | CC BY 4.0 | unclear | 1 | 0 |",
        "| **all** | 4 sources |  |  |  | 7 | 1 |",
    ]
    assert source_table([index])[-1].endswith("| 7 | 2 |")
    with pytest.raises(UsageError, match="'week' to exclude"):
        source_table([index], exclude=["week"])


def test_volumes_are_told_apart_and_indices_are_joined(index: Path, tmp_path: Path) -> None:
    other = write_csv(
        tmp_path / "more.csv", [row("CT", "deep", "d", "train", image="d.nii.gz", label="l.nii.gz")]
    )
    lines = source_table([index, other])
    assert lines[2] == "| CT | deep | makers of deep | CC BY 4.0 | stated | 1 (3D) | 1 |"
    assert lines[-1].endswith("| 8 | 3 |")


def test_unlabelled_sources(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"modality": "US", "source": "b", "images": 12, "licence": "CC0"},
        {"modality": "CT", "source": "a", "images": 5, "licence": "MIT"},
    ]
    lines = unlabelled_table(write_csv(tmp_path / "u.csv", rows))
    assert lines[2:] == ["| CT | a | MIT | 5 |", "| US | b | CC0 | 12 |", "| **all** | 2 sources |  | 17 |"]
    for wrong, message in (
        (rows[0] | {"images": "many"}, "'many' is no number"),
        ({"source": "x"}, "columns"),
    ):
        with pytest.raises(InputError, match=f"u.csv.*{message}"):
            unlabelled_table(write_csv(tmp_path / "u.csv", [wrong]))


def test_the_card_is_filled_and_the_rest_of_it_stays(scored: Path, index: Path) -> None:
    card = scored / "README.md"
    card.write_text(FRAME)
    made = ("--scores", f"0 %={scored / 'scores'}", "--scores", f"10 %={scored / 'scores'}")
    shown = ("--examples", scored / "val", "--segs", scored / "segs")
    run(main, card, "--index", index, *made, *shown)
    text = card.read_text()
    parts = text.split("<!-- ")
    assert text.startswith("# A model\n\nBy hand: keep me.\n<!-- sources -->\n\n| Modality | Source")
    assert text.count("Between.") == len(PARTS)
    assert [part for part in PARTS if f"\nold {part}\n" in text] == ["unlabelled"]
    assert (scored / "scores/table.md").read_text().strip() in text
    report = json.loads((scored / "scores/report.json").read_text())
    ours = report["overall"]["scores"][0]["dsc"]
    bounds = f"{ours['value']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]"
    jitter = next(part for part in parts if part.startswith("jitter"))
    assert f"| **ours, average** | 4 | {bounds} | {bounds} |" in jitter
    # The same command gives the same card, not one in the other.
    run(main, card, "--index", index, *made, *shown)
    assert card.read_text() == text


def test_examples_are_the_median_and_the_worst_of_what_may_be_shown(scored: Path) -> None:
    card = scored / "README.md"
    card.write_text(FRAME)
    shown = ("--examples", scored / "val", "--segs", scored / "segs")
    run(main, card, "--scores", f"0={scored / 'scores'}", *shown)
    lines = [line for line in card.read_text().splitlines() if " US, " in line]
    # Sorted by name the closed case comes first, then f0 to f2, each worse than the one before.
    assert [line.partition(":")[0] for line in lines] == ["1. US, median of 3", "2. US, worst of 3"]
    assert "2DBox_US_free_f1 (makers of free, CC BY 4.0)" in lines[0]
    assert "2DBox_US_free_f2" in lines[1]
    picture = cv2.imread(str(scored / "examples.jpg"))
    assert picture is not None
    assert picture.shape[1] > 4 * picture.shape[0]
    # Panels: image with boxes, truth, mask, twice; truth is tinted over more pixels than the worst's mask.
    panels = np.array_split(picture.astype(int), 6, axis=1)
    tinted = [np.count_nonzero(np.ptp(panel, axis=2) > 60) for panel in panels]
    assert tinted[4] > 1.5 * tinted[5] > 1.5 * tinted[3] > 0


def test_scores_of_other_cases_are_refused(scored: Path) -> None:
    report = json.loads((scored / "scores/report.json").read_text())
    fewer = report | {"rows": [report["rows"][0] | {"cases": 3}]}
    with pytest.raises(InputError, match="jitter 5: other runs or cases"):
        jitter_table({"0": report, "5": fewer})


@pytest.mark.parametrize("without", ["<!-- sources -->", "<!-- end of sources -->"])
def test_a_card_without_the_marks_stays_as_it_is(index: Path, tmp_path: Path, without: str) -> None:
    card = tmp_path / "README.md"
    card.write_text(FRAME.replace(without, ""))
    done = run(main, card, "--index", index, expect=1)
    assert "README.md: no lines <!-- sources --> and <!-- end of sources -->" in done.output
    assert card.read_text() == FRAME.replace(without, "")


def test_examples_need_scores(scored: Path) -> None:
    card = scored / "README.md"
    card.write_text(FRAME)
    done = run(main, card, "--examples", scored / "val", "--segs", scored / "segs", expect=2)
    assert "--scores" in done.output
    done = run(main, card, "--scores", f"0={scored}", expect=1)
    assert "table.md: cannot be read" in done.output
    assert card.read_text() == FRAME
