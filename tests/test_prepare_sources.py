"""Which pairs a source holds, and what is said about those that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.modalities import MODALITIES, find_modality, modality_of_name, parse_modality
from litemed.train.prepare.sources import Pair, SourceOptions, find_pairs, select


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_index(path: Path, rows: list[dict[str, str]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_modalities_are_known_by_every_spelling() -> None:
    assert len(MODALITIES) == 11
    assert [parse_modality(name.upper()) for name in MODALITIES] == list(MODALITIES)
    texts = ("X-Ray", "x_ray", "Microscope", "MRI", " us ")
    assert [find_modality(text) for text in texts] == ["XRay", "XRay", "Microscopy", "MR", "US"]
    names = ("CT_Abd_0001", "2DBox_X-Ray_0053", "3DBox_MR_0121", "X_Ray_7", "CT", "scan_CT_1")
    assert [modality_of_name(name) for name in names] == ["CT", "XRay", "MR", "XRay", None, None]
    with pytest.raises(InputError, match="row 3: unknown modality 'Thermo'; use one of CT, MR"):
        parse_modality("Thermo", "row 3")


def test_folders_say_modality_source_and_split(tmp_path: Path) -> None:
    pairs = ("CT/{}/a.nii.gz", "X-Ray/chest/{}/b.png", "val/US/{}/c.png", "validation/OCT/{}/d.tif")
    touch(*(tmp_path / "s" / pair.format(part) for pair in pairs for part in ("images", "labels")))
    touch(tmp_path / "s/Microscope/cells.npz", tmp_path / "s/MR_Brain_01.npz")
    found = find_pairs([tmp_path / "s"], SourceOptions(val_fraction=0))
    assert [(p.modality, p.source, p.split, p.case, p.label is None) for p in found.pairs] == [
        ("CT", "s", "train", "a", False),
        ("MR", "s", "train", "MR_Brain_01", True),
        ("Microscopy", "s", "train", "cells", True),
        ("OCT", "s", "val", "d", False),
        ("US", "s", "val", "c", False),
        ("XRay", "chest", "train", "b", False),
    ]
    assert found.problems == ()


def test_what_lacks_its_partner_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    touch(
        *(tmp_path / f"US/images/{name}" for name in ("a.png", "b.png", "d.png", "d.jpg")),
        *(tmp_path / f"US/labels/{name}" for name in ("a.png", "c.png", "d.png")),
    )
    found = find_pairs([tmp_path], SourceOptions())
    assert [pair.case for pair in found.pairs] == ["a"]
    for problem, name in zip(found.problems, ("images/b.png", "labels/c.png", "images/d.jpg"), strict=True):
        assert name in problem
        assert "\n" not in problem


@pytest.mark.parametrize("nothing", ["missing", "empty", "notes.txt", "head.csv", "CT/flat"])
def test_a_source_without_pairs_or_modality_is_refused(tmp_path: Path, nothing: str) -> None:
    (tmp_path / "empty").mkdir()
    # Folders above the source say nothing.
    touch(tmp_path / "notes.txt", tmp_path / "CT/flat/images/a.png", tmp_path / "CT/flat/labels/a.png")
    (tmp_path / "head.csv").write_text("modality,image,label\n")
    with pytest.raises(UsageError, match=nothing):
        find_pairs([tmp_path / nothing], SourceOptions())
    (pair,) = find_pairs([tmp_path / "CT/flat"], SourceOptions(modality="OCT")).pairs
    assert pair.modality == "OCT"


def test_an_index_says_everything(tmp_path: Path) -> None:
    said = {"modality": "X-Ray", "source": "src", "case": "c1", "split": "val"}
    files = {"image": "i/a.png", "label": "l/a.png"}
    row = said | files | {"licence": "CC0", "attribution": "A. Nonymous", "licence_status": "stated"}
    image, label = tmp_path / "i/a.png", tmp_path / "l/a.png"
    terms = ("CC0", "A. Nonymous", "stated")
    expected = (Pair("XRay", "src", "c1", "val", image, label, *terms),)
    index = write_index(tmp_path / "index.csv", [row])
    assert find_pairs([index], SourceOptions()).pairs == expected
    assert find_pairs([tmp_path], SourceOptions()).pairs == expected


def test_bad_rows_are_named_by_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = {"modality": "CT", "image": "a", "label": "b", "split": "val"}
    bad = [{"modality": "Thermo"}, {"split": "holdout"}, {"label": ""}]
    # Some file systems take A for a.
    rows = [*(good | change for change in bad), good, good | {"image": "A"}]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    assert len(found.pairs) == 1
    assert all(f"line {n}: " in problem for n, problem in enumerate(found.problems[:3], start=2))
    words = ("'Thermo'", "'holdout'", "no image", "like")
    for word, problem in zip(words, found.problems, strict=True):
        assert word in problem
    with pytest.raises(UsageError, match="no column image, label"):
        find_pairs([write_index(tmp_path / "i.csv", [{"modality": "CT"}])], SourceOptions())


def test_only_rows_of_a_licence_status_that_was_asked_for(tmp_path: Path) -> None:
    rows = [
        {"modality": "CT", "image": f"{i}.png", "label": f"{i}l.png", "licence_status": status}
        for i, status in enumerate(["stated", "known", "unclear", ""])
    ]
    index = write_index(tmp_path / "i.csv", rows)
    found = find_pairs([index], SourceOptions(licence_status=("stated", "known")))
    assert [pair.licence_status for pair in found.pairs] == ["stated", "known"]
    assert len(find_pairs([index], SourceOptions()).pairs) == 4
    with pytest.raises(UsageError, match="no pair"):
        find_pairs([index], SourceOptions(licence_status=("signed",)))


def test_the_drawn_split_has_the_share_and_does_not_move_when_cases_are_added(tmp_path: Path) -> None:
    rows = [{"modality": "CT", "image": f"{i}.png", "label": f"{i}_l.png", "source": "s"} for i in range(999)]
    options = SourceOptions(val_fraction=0.2)
    few = find_pairs([write_index(tmp_path / "few.csv", rows[::2])], options)
    many = find_pairs([write_index(tmp_path / "many.csv", rows)], options)
    # 999 draws at 0.2: 200, standard deviation 13.
    assert 130 < sum(pair.split == "val" for pair in many.pairs) < 270
    assert {(p.case, p.split) for p in few.pairs} < {(p.case, p.split) for p in many.pairs}


def test_select_takes_turns_between_sources_and_keeps_to_splits(tmp_path: Path) -> None:
    rows = [
        {"modality": m, "source": s, "image": f"{s}{i}", "label": "l", "split": "train" if i % 2 else "val"}
        for m, s, count in (("CT", "big", 5), ("CT", "small", 1), ("US", "echo", 3))
        for i in range(count)
    ]
    found = find_pairs([write_index(tmp_path / "i.csv", rows)], SourceOptions())
    chosen = select(found, limit=2).pairs
    assert [(p.modality, p.source) for p in chosen] == [("CT", "big"), ("CT", "small")] + [("US", "echo")] * 2
    assert [p.split for p in select(found, ["val"]).pairs] == ["val"] * 6
    assert [p.split for p in select(found, ["val", "train"], limit=1).pairs] == ["val", "val"]
    assert {p.source for p in select(found, exclude=["big", "echo"]).pairs} == {"small"}
    for nothing in ({"splits": ["test"]}, {"exclude": ["big", "small", "echo"]}):
        with pytest.raises(UsageError, match="is left of 9"):
            select(found, **nothing)
    # A name that is misspelt would leave in what should be out.
    with pytest.raises(UsageError, match="'Big' to exclude"):
        select(found, exclude=["Big"])
