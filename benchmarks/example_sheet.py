"""Pictures of what a model does, chosen by a rule: of each modality its median and its worst case."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from litemed.benchmarks.evaluate.cases import read_prediction, read_truth
from litemed.runtime.errors import InputError
from litemed.runtime.modalities import MODALITIES
from litemed.runtime.overlay import Picture, colours, montage
from litemed.runtime.readers import read_case

# Terms under which a picture may be shown in a repository of any licence, with the name of its maker.
_FREE = re.compile(r"(CC0|CC BY(?!-)|MIT|Apache-2)\b")
_STATUS = ("stated", "known")
_SIDE = 224
_TINT = 0.5
_QUALITY = 88


@dataclass(frozen=True)
class Example:
    """A case to show: its file's name without suffix, and a line that says what it is and whose."""

    name: str
    caption: str


def choose_examples(prepared: Path, cases_csv: str, run: str) -> list[Example]:
    """Return the cases of the median and of the lowest DSC of each modality, of sources that may be shown.

    Args:
        prepared: folder of `litemed-prepare --cases`; its manifest names sources and terms.
        cases_csv: what `litemed-eval` says of each case.
        run: whose scores count.

    Raises:
        InputError: no manifest, or no case that may be shown.
    """
    path = prepared / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        terms = {(entry["modality"], entry["source"]): entry for entry in manifest["terms"]}
        free = {
            Path(case["file"]).stem: entry
            for case in manifest["cases"]
            if (entry := terms[case["modality"], case["source"]])["licence_status"] in _STATUS
            and _FREE.match(entry["licence"])
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a manifest of litemed-prepare --cases ({error})") from error
    scores = [
        (float(row["dsc"]), row["case"], row["modality"])
        for row in csv.DictReader(cases_csv.splitlines())
        if row["run"] == run and row["case"] in free
    ]
    chosen = []
    for modality in MODALITIES:
        ranked = sorted(score for score in scores if score[2] == modality)
        # With one case, that is the median.
        places = {0: "worst", len(ranked) // 2: "median"} if ranked else {}
        for index, place in sorted(places.items(), reverse=True):
            dsc, name, _ = ranked[index]
            whose = f"{free[name]['attribution']}, {free[name]['licence']}"
            caption = f"{modality}, {place} of {len(ranked)}: DSC {dsc:.3f}, {name} ({whose})"
            chosen.append(Example(name, caption))
    if not chosen:
        raise InputError(f"{prepared}: no case of a source whose licence allows to show it")
    return chosen


def draw_sheet(prepared: Path, segs: Path, examples: list[Example]) -> bytes:
    """Return a JPEG of the examples, numbered, two a row: image with boxes, truth and mask of each."""
    panels: list[Picture] = []
    for number, example in enumerate(examples, start=1):
        shown = _panels(prepared, segs, example.name)
        cv2.putText(shown[0], str(number), (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
        panels += shown
    sheet = cv2.cvtColor(montage(panels, columns=6), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def _panels(prepared: Path, segs: Path, name: str) -> list[Picture]:
    """Return image with boxes, truth and mask of a case, round its boxes; of a volume the fullest slice."""
    case = read_case(prepared / "cases" / f"{name}.npz")
    truth, _ = read_truth(prepared / "gts" / f"{name}.npz")
    mask = read_prediction(segs / f"{name}.npz")
    image, xyxy = case.image, case.boxes.xyxy
    if not truth.shape == mask.shape == case.shape:
        raise InputError(f"{segs / name}.npz: its shape {mask.shape} is not that of the case, {case.shape}")
    palette = colours(len(xyxy))
    if case.boxes.z is not None:
        z = int((truth > 0).sum(axis=(1, 2)).argmax())
        image, truth, mask = image[z], truth[z], mask[z]
        xyxy = xyxy[(case.boxes.z[:, 0] <= z) & (z <= case.boxes.z[:, 1])]
    low, high = xyxy[:, :2].min(axis=0), xyxy[:, 2:].max(axis=0)
    margin = int((high - low).max()) // 3
    left, top = np.maximum(low - margin, 0)
    right, bottom = high + margin
    view = (slice(top, bottom), slice(left, right))
    scale = _SIDE / max(image[view].shape[:2])
    colour = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    plain = np.asarray(
        cv2.resize(colour[view], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR), np.uint8
    )
    boxed: Picture = plain.copy()
    for x0, y0, x1, y1 in np.rint((xyxy - [left, top, left, top]) * scale).astype(int).tolist():
        cv2.rectangle(boxed, (x0, y0), (x1, y1), (255, 220, 0), 1)
    shown = [boxed]
    for labels in (truth[view], mask[view]):
        # Labels without a box are not shown.
        known = np.where(labels < len(palette), labels, 0).astype(np.uint16)
        inks = palette[cv2.resize(known, plain.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT), 0]
        mixed = cv2.addWeighted(plain, 1 - _TINT, inks, _TINT, 0)
        shown.append(np.where(inks.any(axis=2, keepdims=True), mixed, plain).astype(np.uint8))
    return shown
