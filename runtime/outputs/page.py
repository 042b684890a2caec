"""What runs left in an output folder as one page, `report.html`, that needs nothing else and no network."""

import base64
import hashlib
import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from litemed.runtime.errors import InputError, OutputError, printable
from litemed.runtime.files import FolderLock, atomic_write, refuse_odd_target, remove_leftovers
from litemed.runtime.inputs.files import read_bytes
from litemed.runtime.report import REPORT, CaseReport, read_report

PAGE = "report.html"

_LONGEST = 240  # of a thumbnail, in pixels
_MOST_THUMBNAILS = 16 * 2**20  # bytes of all of them, as they stand in the page
_MAX_PICTURE_BYTES = 2**26  # of an overlay, which has at most 1600 x 1600 pixels
_MOST_OBJECTS = 20  # listed of a case
_OURS = '<meta name="generator" content="litemed-run">'
_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin: .5em 0 1.5em; }
th, td { border-bottom: 1px solid #ccc; padding: .3em .8em .3em 0; text-align: left; vertical-align: top; }
td.name { overflow-wrap: anywhere; max-width: 28em; }
td p { margin: 0; }
details table { font-size: 13px; margin: .3em 0; }
.failed { color: #b00020; }
.warning { color: #8a5a00; }
"""


def claim_page(folder: Path, overwrite: bool) -> None:
    """Raise OutputError if what lies where the page goes is not one of ours, and is not to be replaced."""
    path = folder / PAGE
    refuse_odd_target(path)
    try:
        if overwrite or not path.exists():
            return
        with path.open("rb") as file:
            ours = _OURS.encode() in file.read(1000)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not ours:
        raise OutputError(f"{path}: exists, and no earlier run wrote it; move it away or give --overwrite")


def write_page(folder: Path, pictures: Path | None) -> None:
    """Write the page of a folder's `report.json`, of this run's cases and those of earlier ones.

    `pictures` is the folder of the overlays, of which those on record become thumbnails of at most 240
    pixels, until they take 16 MiB.

    Raises:
        OutputError: the report cannot be read, or the page not be written.
    """
    content, cases = read_report(folder / REPORT)
    with FolderLock(folder, f".{PAGE}", wait=True):
        remove_leftovers(folder / PAGE)
        with atomic_write(folder / PAGE, durable=False) as file:
            file.writelines(part.encode() for part in _parts(content, cases, pictures))


def _parts(content: Mapping[str, Any], cases: tuple[CaseReport, ...], pictures: Path | None) -> Iterator[str]:
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    # No scripts, no forms, nothing from anywhere: the names of files are strangers'.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
    )
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n{_OURS}\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>litemed-run</title>\n<style>{_STYLE}</style></head><body>\n<h1>litemed-run</h1>\n"
    )
    counts = Counter(case.status for case in cases)
    seconds = sum(case.seconds["total"] for case in cases if case.seconds)
    warnings = sum(len(case.warnings) for case in cases)
    told = ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))
    yield f"<p>{told}; {warnings} warnings; {seconds:.1f} s of work. For research; check every result.</p>\n"
    yield _table(("case", "", "seconds", ""), _rows(cases, pictures))
    yield "<h2>Settings and machine</h2>\n"
    about = {"updated": content.get("updated"), "peak memory (MiB)": content.get("peak_memory_mib")}
    for part in ("settings", "environment"):
        if isinstance(given := content.get(part), dict):
            about |= given
    rows = (
        f'<tr><th>{_text(name)}</th><td class="name">{_text(_flat(value))}</td></tr>\n'
        for name, value in about.items()
    )
    yield _table((), rows)
    yield "</body></html>\n"


def _rows(cases: Iterable[CaseReport], pictures: Path | None) -> Iterator[str]:
    """Yield a row for each case, the failed ones first."""
    room = _MOST_THUMBNAILS
    for case in sorted(cases, key=lambda case: case.status != "failed"):
        image = ""
        if pictures is not None and room > 0 and (data := _thumbnail(case, pictures)):
            image = f'<img alt="" src="data:image/jpeg;base64,{data}">'
            room -= len(data)
        notes = [f'<p class="failed">{_text(case.error)}</p>'] if case.error else []
        notes += [f'<p class="warning">{_text(line)}</p>' for line in case.warnings]
        seconds = f"{case.seconds['total']:.2f}" if case.seconds else ""
        parts = ", ".join(f"{name} {value:.2f}" for name, value in (case.seconds or {}).items())
        yield (
            f'<tr><td class="name"><p>{_text(case.case)}</p>{image}</td>'
            f'<td class="{case.status}">{case.status}</td><td title="{_text(parts)}">{seconds}</td>'
            f"<td>{''.join(notes)}{_objects(case)}</td></tr>\n"
        )


def _objects(case: CaseReport) -> str:
    """Return the table of a case's objects, folded."""
    if not case.objects:
        return ""
    columns = ("label", "pixels", "mm2", "ml", "extent", "mm", "mean", "sd", "predicted IoU")
    rows = []
    for one in case.objects[:_MOST_OBJECTS]:
        extent = " ".join(map(str, one.extent or ()))
        lengths = " x ".join(f"{length:.4g}" for length in one.extent_mm or ())
        sizes, values = (one.area_mm2, one.volume_ml), (one.mean, one.sd, one.predicted_iou)
        numbers = [["" if value is None else f"{value:.4g}" for value in some] for some in (sizes, values)]
        cells = (one.label, one.pixels, *numbers[0], extent, lengths, *numbers[1])
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n")
    more = len(case.objects) - len(rows)
    rest = f"<p>and {more} more, which objects.csv has</p>" if more else ""
    title = f"{case.encodings} encodings, {case.decodings} masks, {len(case.objects)} objects"
    return f"<details><summary>{title}</summary>{_table(columns, rows)}{rest}</details>"


def _table(titles: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table>\n{f'<tr>{head}</tr>' if head else ''}{''.join(rows)}</table>\n"


def _thumbnail(case: CaseReport, pictures: Path) -> str:
    """Return the case's picture, made small, as JPEG in base64; empty if it is not the one on record."""
    if case.status == "failed" or case.overlay is None or Path(case.overlay.path).name != case.overlay.path:
        return ""
    below = pictures / Path(case.case).parent  # of cases that were found in folders below
    if not below.resolve().is_relative_to(pictures.resolve()):
        return ""
    try:
        data = read_bytes(below / case.overlay.path, _MAX_PICTURE_BYTES)
    except InputError:
        return ""
    if hashlib.sha256(data).hexdigest() != case.overlay.sha256:
        return ""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        return ""
    scale = min(1.0, _LONGEST / max(picture.shape[:2]))
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    _, small = cv2.imencode(
        ".jpg", cv2.resize(picture, size, interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 75]
    )
    return base64.b64encode(small.tobytes()).decode()


def _flat(value: object) -> str:
    """Return a value of the settings, which may hold others, in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items())
    return "none" if value is None else str(value)


def _text(value: object) -> str:
    """Return what a stranger may have written as text of the page."""
    return html.escape(printable(str(value)))
