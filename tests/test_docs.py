"""README and the documentation show what the commands take, the model card what the results say."""

import configparser
import csv
import pathlib
import re
import shlex
from importlib.metadata import EntryPoint

import click
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
CARD = (ROOT / "weights" / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands(page: pathlib.Path) -> list[list[str]]:
    """Return the words of every command of litemed in the page's blocks of shell lines."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0].removeprefix(".venv/bin/").startswith("litemed-")]


def test_commands_are_found():
    assert sum(len(shown_commands(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_shown_is_one_of_the_command(page):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].strip().splitlines()
    scripts = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines)
    for name, *arguments in shown_commands(page):
        command = EntryPoint(name, scripts[name.removeprefix(".venv/bin/")], "console_scripts").load()
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        parser = command.make_parser(click.Context(command))
        parser.parse_args([word for word in arguments if word != "&&"])  # refuses options that there are not


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


# The model card


def table(first: str) -> list[dict[str, str]]:
    """Return the rows of the card's table whose first columns have these titles, by the titles."""
    lines = CARD[CARD.index(f"| {first} |") :].partition("\n\n")[0].replace("**", "").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


@pytest.mark.parametrize(
    ("run", "in_results"),
    [
        ("light", "Proposed"),
        ("LiteMedSAM with LoRA", "Ablation 2, nested"),
        *((name, name) for name in ("filled box", "ellipse/ellipsoid", "Otsu in box", "GrabCut")),
    ],
)
def test_scores_are_those_of_table_3(run, in_results):
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
def test_the_images_of_all_sources_are_counted(first):
    *rows, total = table(first)
    assert total["Source"] == f"{len(rows)} sources"
    assert all(row["Licence"] for row in rows)
    for column in {"Images", "Trained on"} & total.keys():
        numbers = [int(row[column].removesuffix(" (3D)")) for row in (*rows, total)]
        assert sum(numbers[:-1]) == numbers[-1]
    if "Attribution" in first:  # nothing was trained on whose licence is unclear
        assert all(row["Attribution"] for row in rows)
        assert all(row["Status"] in {"stated", "known"} or row["Trained on"] == "0" for row in rows)
