"""Real images of all 11 modalities go through preparation and the model that ships, on both engines."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from click.testing import CliRunner

from litemed.runtime.cli import main as run
from litemed.runtime.modalities import MODALITIES
from litemed.train.prepare.cli import main as prepare

CASES_EACH = 2


@pytest.fixture(scope="module")
def cases(shared, tmp_path_factory):
    """Two cases of each modality, volumes cropped to two slices."""
    out = tmp_path_factory.mktemp("real")
    arguments = [str(shared("data/open/index.csv")), "-o", str(out), "--cases", "--limit", str(CASES_EACH)]
    limits = ["--max-slices", "2", "--max-boxes", "4", "--workers", "1"]
    result = CliRunner().invoke(prepare, arguments + limits)
    assert result.exit_code == 0, result.output
    return out / "cases"


@pytest.fixture(scope="module")
def label_maps(cases, tmp_path_factory):
    """Float32 label maps of every case by engine and name."""
    maps = {}
    for engine in ("onnxruntime", "openvino"):
        out = tmp_path_factory.mktemp(engine)
        arguments = [str(cases), "-o", str(out), "--engine", engine, "--precision", "exact", "--quiet"]
        result = CliRunner().invoke(run, arguments)
        assert result.exit_code == 0, result.output
        report = json.loads((out / "report.json").read_text())
        assert all(case["status"] == "done" for case in report["cases"])
        maps[engine] = {p.stem: np.load(p, allow_pickle=False)["segs"] for p in sorted(out.glob("*.npz"))}
    return maps


@pytest.mark.slow
def test_both_engines_give_the_same_label_maps_of_every_modality(label_maps):
    first, second = label_maps["onnxruntime"], label_maps["openvino"]
    modalities = collections.Counter(name.split("_")[1] for name in first)
    assert modalities == dict.fromkeys(MODALITIES, CASES_EACH)
    assert first.keys() == second.keys()
    for name, labels in first.items():
        assert labels.shape == second[name].shape
        assert (labels == second[name]).mean() >= 0.999, name


@pytest.mark.slow
def test_masks_lie_where_the_objects_are(label_maps, cases):
    """What the model is for: in most cases its masks are those of the labels."""
    overlaps = []
    for name, labels in label_maps["openvino"].items():
        truth = np.load(cases.parent / "gts" / f"{name}.npz", allow_pickle=False)["gts"]
        assert labels.shape == truth.shape
        predicted, wanted = labels > 0, truth > 0
        overlaps.append(2 * (predicted & wanted).sum() / (predicted.sum() + wanted.sum()))
    assert np.median(overlaps) > 0.85
