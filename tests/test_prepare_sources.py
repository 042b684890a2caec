"""Which pairs a source holds, and what is said about those that cannot be used."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import MODALITIES, find_modality, modality_of_name, parse_modality
from litemed.train.prepare.selection import select
from litemed.train.prepare.sources import Pair, SourceOptions, find_pairs


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_index(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_there_are_eleven_modalities_and_each_spells_itself() -> None:
    assert len(MODALITIES) == 11
    assert [parse_modality(name.upper()) for name in MODALITIES] == list(MODALITIES)


@pytest.mark.parametrize(
    ("text", "modality"),
    [("X-Ray", "XRay"), ("x_ray", "XRay"), ("Microscope", "Microscopy"), ("MRI", "MR"), (" us ", "US")],
)
def test_known_spellings(text: str, modality: str) -> None:
    assert find_modality(text) == modality


def test_an_unknown_modality_is_named() -> None:
    with pytest.raises(InputError, match="row 3: unknown modality 'Thermo'; use one of CT, MR"):
        parse_modality("Thermo", "row 3")


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT_Abd_0001", "CT"),
        ("2DBox_X-Ray_0053", "XRay"),
        ("3DBox_MR_0121", "MR"),
        ("X_Ray_7", "XRay"),
        ("CT", None),
        ("scan_CT_1", None),
    ],
)
def test_modality_of_a_challenge_name(name: str, modality: str | None) -> None:
    assert modality_of_name(name) == modality


def test_folders_say_modality_source_and_split(tmp_path: Path) -> None:
    touch(
        tmp_path / "s/CT/images/a.nii.gz",
        tmp_path / "s/CT/labels/a.nii.gz",
        tmp_path / "s/X-Ray/chest/images/b_0000.png",
        tmp_path / "s/X-Ray/chest/labels/b.png",
        tmp_path / "s/val/US/images/c.jpg",
        tmp_path / "s/val/US/labels/c.png",
        tmp_path / "s/Microscope/cells.npz",
        tmp_path / "s/MR_Brain_01.npz",
    )
    found = find_pairs([tmp_path / "s"], SourceOptions(val_fraction=0))
    assert [(p.modality, p.source, p.split, p.case) for p in found.pairs] == [
        ("CT", "s", "train", "a"),
        ("MR", "s", "train", "MR_Brain_01"),
        ("Microscopy", "s", "train", "cells"),
        ("US", "s", "val", "c"),
        ("XRay", "chest", "train", "b"),
    ]
    assert found.problems == ()
    assert {p.case: p.label is None for p in found.pairs} == {
        "a": False,
        "MR_Brain_01": True,
        "cells": True,
        "c": False,
        "b": False,
    }


def test_a_flat_folder_needs_a_modality(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", tmp_path / "labels/a.png")
    with pytest.raises(UsageError, match="modality unknown"):
        find_pairs([tmp_path], SourceOptions())
    (pair,) = find_pairs([tmp_path], SourceOptions(modality="OCT")).pairs
    assert pair.modality == "OCT"


def test_folders_above_the_source_say_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "CT/train/mine/images/a.png", tmp_path / "CT/train/mine/labels/a.png")
    with pytest.raises(UsageError, match="modality unknown"):
        find_pairs([tmp_path / "CT/train/mine"], SourceOptions())


def test_what_lacks_its_partner_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    touch(
        *(tmp_path / f"US/images/{name}" for name in ("a.png", "b.png", "d.png", "d.jpg")),
        *(tmp_path / f"US/labels/{name}" for name in ("a.png", "c.png", "d.png")),
    )
    found = find_pairs([tmp_path], SourceOptions())
    assert [pair.case for pair in found.pairs] == ["a"]
    assert len(found.problems) == 3
    for problem, name in zip(found.problems, ("images/b.png", "labels/c.png", "images/d.jpg"), strict=True):
        assert name in problem
        assert "\n" not in problem


def test_names_that_differ_in_case_only_are_one_too_many(tmp_path: Path) -> None:
    touch(tmp_path / "US/A.npz", tmp_path / "US/more/a.npz", tmp_path / "US/US_x/A.npz")
    rows = [{"modality": "US", "image": f"{n}.png", "label": f"{n}_l.png", "source": "s"} for n in ("A", "a")]
    found = find_pairs([write_index(tmp_path / "index.csv", rows)], SourceOptions())
    assert len(found.pairs) == 1
    assert "second case" in found.problems[0]


@pytest.mark.parametrize("nothing", ["missing", "empty", "notes.txt"])
def test_a_source_without_pairs_is_refused(tmp_path: Path, nothing: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match=nothing):
        find_pairs([tmp_path / nothing], SourceOptions())


def test_an_index_says_everything(tmp_path: Path) -> None:
    row = {
        "modality": "X-Ray",
        "source": "src",
        "case": "c1",
        "split": "val",
        "labels": "instance",
        "image": "i/a.png",
        "label": "l/a.png",
        "licence": "CC0",
        "attribution": "A. Nonymous",
        "licence_status": "stated",
    }
    index = write_index(tmp_path / "index.csv", [row])
    expected = Pair(
        modality="XRay",
        source="src",
        case="c1",
        split="val",
        kind="instance",
        image=tmp_path / "i/a.png",
        label=tmp_path / "l/a.png",
        licence="CC0",
        attribution="A. Nonymous",
        licence_status="stated",
    )
    assert find_pairs([index], SourceOptions()).pairs == (expected,)
    assert find_pairs([tmp_path], SourceOptions()).pairs == (expected,)
    elsewhere = write_index(tmp_path / "other/rows.csv", [row])
    assert find_pairs([tmp_path], SourceOptions(), index=elsewhere).pairs == (expected,)


def test_bad_rows_are_named_by_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = {"modality": "CT", "image": "a", "label": "b", "split": "", "labels": ""}
    rows = [
        good | {"modality": "Thermo"},
        good | {"split": "holdout"},
        good | {"labels": "soft"},
        good | {"label": ""},
        good,
    ]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    assert len(found.pairs) == 1
    assert [f"line {n}: " in problem for n, problem in enumerate(found.problems, start=2)] == [True] * 4
    for word, problem in zip(("'Thermo'", "'holdout'", "'soft'", "no image"), found.problems, strict=True):
        assert word in problem


def test_an_index_without_its_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column image, label"):
        find_pairs([write_index(tmp_path / "i.csv", [{"modality": "CT"}])], SourceOptions())


def test_an_index_without_rows_is_refused(tmp_path: Path) -> None:
    index = write_index(tmp_path / "i.csv", [{"modality": "CT", "image": "a", "label": "b"}])
    index.write_text(index.read_text().splitlines()[0] + "\n")
    with pytest.raises(UsageError, match=r"i\.csv: has no row"):
        find_pairs([index], SourceOptions())


def test_only_rows_of_a_licence_status_that_was_asked_for(tmp_path: Path) -> None:
    statuses = ["stated", "known", "unclear", ""]
    rows = [
        {"modality": "CT", "image": f"{i}.png", "label": f"{i}l.png", "licence_status": status}
        for i, status in enumerate(statuses)
    ]
    index = write_index(tmp_path / "i.csv", rows)
    found = find_pairs([index], SourceOptions(licence_status=("stated", "known")))
    assert [pair.licence_status for pair in found.pairs] == ["stated", "known"]
    assert found.licence_left_out == 2
    assert len(find_pairs([index], SourceOptions()).pairs) == 4
    with pytest.raises(UsageError, match="all 4 rows"):
        find_pairs([index], SourceOptions(licence_status=("signed",)))


def test_the_drawn_split_has_the_share_and_does_not_move_when_cases_are_added(tmp_path: Path) -> None:
    rows = [
        {"modality": "CT", "image": f"{i}.png", "label": f"{i}_l.png", "source": "s"} for i in range(2000)
    ]
    options = SourceOptions(val_fraction=0.2)
    few = find_pairs([write_index(tmp_path / "few.csv", rows[::2])], options)
    many = find_pairs([write_index(tmp_path / "many.csv", rows)], options)
    # 2000 draws at 0.2: 400, standard deviation 18.
    assert 300 < sum(pair.split == "val" for pair in many.pairs) < 500
    assert {(p.case, p.split) for p in few.pairs} < {(p.case, p.split) for p in many.pairs}


def test_select_takes_turns_between_sources_and_keeps_to_splits(tmp_path: Path) -> None:
    rows = [
        {"modality": m, "source": s, "image": f"{s}{i}.png", "label": f"{s}{i}_l.png", "split": split}
        for m, s, n in (("CT", "big", 5), ("CT", "small", 1), ("US", "echo", 3))
        for i in range(n)
        for split in ("train" if i % 2 else "val",)
    ]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    chosen = select(found, limit=2).pairs
    assert [(p.modality, p.source) for p in chosen] == [("CT", "big"), ("CT", "small")] + [("US", "echo")] * 2
    assert {p.split for p in select(found, ["val"]).pairs} == {"val"}
    assert len(select(found, ["val"]).pairs) == 6
    first = select(found, ["val", "train"], limit=1).pairs
    assert [p.split for p in first] == ["val", "val"]
    with pytest.raises(UsageError, match="no pair of split test"):
        select(found, ["test"])
    with pytest.raises(UsageError, match="'holdout'"):
        select(found, ["holdout"])
    others = select(found, exclude=["big", "echo"])
    assert [(p.modality, p.source) for p in others.pairs] == [("CT", "small")]
    with pytest.raises(UsageError, match="no pair from another source among 9"):
        select(found, exclude=["big", "small", "echo"])
    # A name that is misspelt would leave in what should be out.
    with pytest.raises(UsageError, match="'Big' to exclude"):
        select(found, exclude=["Big"])
