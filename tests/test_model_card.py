"""The model card says the same as the results, and its tables add up."""

from __future__ import annotations

import csv
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CARD = (ROOT / "weights" / "README.md").read_text()


def table(first: str) -> list[dict[str, str]]:
    """Return the rows of the card's table whose first columns have these titles, by the titles."""
    lines = CARD[CARD.index(f"| {first} |") :].partition("\n\n")[0].replace("**", "").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.parametrize(
    ("run", "in_results"),
    [
        ("light", "Proposed, nested"),
        ("LiteMedSAM with LoRA", "Ablation 2, nested"),
        *((name, name) for name in ("filled box", "ellipse", "Otsu in box", "GrabCut")),
    ],
)
def test_scores_are_those_of_table_3(run: str, in_results: str) -> None:
    with (ROOT / "benchmarks/results/table3/table.csv").open(newline="") as stream:
        rows = {row["modality"]: row for row in csv.DictReader(stream) if row["run"] == in_results}
    card = table("Modality | Cases")
    assert [row["Modality"] for row in card] == list(rows)
    for row in card:
        expected = rows[row["Modality"]]
        assert row["Cases"] == expected["cases"]
        # Rounded from what the file has six places of.
        for metric in ("DSC", "NSD"):
            assert float(row[f"{run} {metric}"]) == pytest.approx(float(expected[metric.lower()]), abs=6e-4)


@pytest.mark.parametrize("first", ["Modality | Source | Attribution", "Modality | Source | Licence"])
def test_the_images_of_all_sources_are_counted(first: str) -> None:
    *rows, total = table(first)
    assert total["Source"] == f"{len(rows)} sources"
    assert all(row["Licence"] for row in rows)
    for column in {"Images", "Trained on"} & total.keys():
        numbers = [int(row[column].removesuffix(" (3D)")) for row in (*rows, total)]
        assert sum(numbers[:-1]) == numbers[-1]
    if "Attribution" in first:  # nothing was trained on whose licence is unclear
        assert all(row["Attribution"] for row in rows)
        assert all(row["Status"] in {"stated", "known"} or row["Trained on"] == "0" for row in rows)
