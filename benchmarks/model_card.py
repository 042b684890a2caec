"""Fill the parts of a model card that come from files: sources with their licences, scores, examples.

    python -m litemed.benchmarks.model_card weights/README.md \\
        --index open/index.csv --index more/index.csv --exclude xray_coronary \\
        --unlabelled unlabelled/sources.csv --scores "0 %=scores" --scores "10 %=scores-jitter10" \\
        --examples val --segs segs

The rest of the card is written by hand. A part begins with a line `<!-- sources -->` (or unlabelled, scores,
jitter, examples) and ends with `<!-- end of sources -->`. The lines between are replaced; those of a part for
which nothing is given stay.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from litemed.benchmarks.example_sheet import choose_examples, draw_sheet
from litemed.benchmarks.markdown import table
from litemed.runtime.command import run_command
from litemed.runtime.errors import InputError, UsageError
from litemed.runtime.files import atomic_write
from litemed.runtime.modalities import MODALITIES, parse_modality
from litemed.train.prepare.sources import NIFTI_SUFFIXES, SourceOptions, find_pairs, select

# A model that is distributed is trained on nothing else.
_TRAINED_STATUS = ("stated", "known")
_PATH = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("card", type=_PATH)
@click.option("--index", "indices", multiple=True, type=_PATH, help="Index CSV of labelled images.")
@click.option(
    "--exclude", multiple=True, metavar="NAME", help="Source of an index that nothing was trained on."
)
@click.option("--unlabelled", type=_PATH, help="CSV of the columns modality, source, images, licence.")
@click.option(
    "--scores", multiple=True, metavar="JITTER=FOLDER", help="What litemed-eval wrote; tight boxes first."
)
@click.option("--examples", type=_PATH, help="Folder of litemed-prepare --cases to draw examples from.")
@click.option("--segs", type=_PATH, help="Their label maps, of the run that comes first in the scores.")
def main(card: Path, **options: Any) -> None:
    """Fill the parts of CARD that are marked for it; examples.jpg comes to lie beside it."""
    run_command(lambda: _run(card, **options), debug=False, interrupted="the card is as it was")


def _run(
    card: Path,
    indices: tuple[Path, ...],
    exclude: tuple[str, ...],
    unlabelled: Path | None,
    scores: tuple[str, ...],
    examples: Path | None,
    segs: Path | None,
) -> bool:
    if (examples is None) != (segs is None) or (examples is not None and not scores):
        raise UsageError("--examples, --segs and --scores go together: examples are chosen by their scores")
    text = _read(card)
    folders = {jitter: Path(folder) for jitter, _, folder in (entry.partition("=") for entry in scores)}
    parts: dict[str, list[str]] = {}
    if indices:
        parts["sources"] = source_table(indices, exclude)
    if unlabelled is not None:
        parts["unlabelled"] = unlabelled_table(unlabelled)
    if folders:
        tight = next(iter(folders.values()))
        parts["scores"] = _read(tight / "table.md").rstrip().splitlines()
        parts["jitter"] = jitter_table({jitter: _report(folder) for jitter, folder in folders.items()})
    if examples is not None and segs is not None:
        chosen = choose_examples(examples, _read(tight / "cases.csv"), _report(tight)["runs"][0])
        parts["examples"] = [f"{n}. {example.caption}" for n, example in enumerate(chosen, start=1)]
        picture = draw_sheet(examples, segs, chosen)
    text = fill(text, parts, str(card))
    if "examples" in parts:
        with atomic_write(card.parent / "examples.jpg") as stream:
            stream.write(picture)
    with atomic_write(card) as stream:
        stream.write(text.encode())
    return True


def fill(text: str, parts: Mapping[str, Sequence[str]], name: str) -> str:
    """Return the text with new lines between the marks of each part; raises InputError where they are not."""
    for part, lines in parts.items():
        before, start, rest = text.partition(f"<!-- {part} -->\n")
        _, end, after = rest.partition(f"<!-- end of {part} -->\n")
        if not end:
            raise InputError(f"{name}: no lines <!-- {part} --> and <!-- end of {part} --> to write between")
        text = "\n".join([before + start, *lines, "", end + after])
    return text


def source_table(indices: Sequence[Path], exclude: Sequence[str] = ()) -> list[str]:
    """Return one line for each source of the indices: terms, how many images, how many were trained on.

    Trained on are the `train` rows of sources that are not excluded, where the licence is stated or known.
    Raises UsageError where an index cannot be read, or lacks an excluded source.
    """
    found = find_pairs(indices, SourceOptions())
    if found.problems:
        raise InputError(found.problems[0])
    used = {
        pair.name
        for pair in select(found, ["train"], exclude=exclude).pairs
        if pair.licence_status in _TRAINED_STATUS
    }
    images: Counter[tuple[str, ...]] = Counter()
    trained: Counter[tuple[str, ...]] = Counter()
    for pair in found.pairs:
        kind = " (3D)" if pair.image.name.endswith(NIFTI_SUFFIXES) else ""
        key = (pair.modality, pair.source, pair.attribution, pair.licence, pair.licence_status, kind)
        images[key] += 1
        trained[key] += pair.name in used
    ordered = sorted(images, key=lambda key: (MODALITIES.index(key[0]), key))
    rows = [[*key[:5], f"{images[key]}{key[5]}", str(trained[key])] for key in ordered]
    rows.append(["**all**", f"{len(rows)} sources", "", "", "", str(images.total()), str(trained.total())])
    return table(
        ["Modality", "Source", "Attribution", "Licence", "Status", "Images", "Trained on"], rows, left=5
    )


def unlabelled_table(path: Path) -> list[str]:
    """Return one line for each source of images without labels, and how many there are."""
    rows = list(csv.DictReader(_read(path).splitlines()))
    if not rows or not {"modality", "source", "images", "licence"} <= rows[0].keys():
        raise InputError(f"{path}: needs the columns modality, source, images, licence, and a row")
    if bad := [row["images"] for row in rows if not row["images"].isdecimal()]:
        raise InputError(f"{path}: {bad[0]!r} is no number of images")
    rows.sort(key=lambda row: (MODALITIES.index(parse_modality(row["modality"], str(path))), row["source"]))
    lines = [[row["modality"], row["source"], row["licence"], row["images"]] for row in rows]
    lines.append(["**all**", f"{len(rows)} sources", "", str(sum(int(row["images"]) for row in rows))])
    return table(["Modality", "Source", "Licence", "Images"], lines, left=3)


def jitter_table(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the first run's DSC by modality for each jitter, and the averages of all runs with intervals.

    reports: jitter -> report.json of litemed-eval, of the same cases and runs.
    """
    first = next(iter(reports.values()))
    shape = [(row["modality"], row["cases"]) for row in first["rows"]]
    for jitter, report in reports.items():
        if report["runs"] != first["runs"] or shape != [(r["modality"], r["cases"]) for r in report["rows"]]:
            raise InputError(
                f"scores of jitter {jitter}: other runs or cases than the first; score the same ones"
            )
    rows = [
        [modality, str(cases)]
        + [f"{report['rows'][index]['scores'][0]['dsc']['value']:.3f}" for report in reports.values()]
        for index, (modality, cases) in enumerate(shape)
    ]
    for run, name in enumerate(first["runs"]):
        averages = [report["overall"]["scores"][run]["dsc"] for report in reports.values()]
        rows.append([f"**{name}, average**", str(first["overall"]["cases"]), *map(_bounds, averages)])
    return table(["DSC", "Cases", *reports], rows)


def _bounds(score: Mapping[str, float]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _report(folder: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(_read(folder / "report.json"))
        return report
    except ValueError as error:
        raise InputError(f"{folder / 'report.json'}: not what litemed-eval writes ({error})") from error


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


if __name__ == "__main__":
    main()
