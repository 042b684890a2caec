"""Real images of all 11 modalities go through preparation and the model that ships, on both engines."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from litemed.runtime.cli import main as run
from litemed.runtime.modalities import MODALITIES
from litemed.train.prepare.cli import main as prepare


@pytest.mark.slow
def test_both_engines_find_the_objects_of_every_modality_alike(shared, tmp_path):
    """One case of each modality, volumes cropped to two slices; in most, masks are those of the labels."""
    arguments = [str(shared("data/open/index.csv")), "-o", str(tmp_path), "--cases", "--limit", "1"]
    limits = ["--max-slices", "2", "--max-boxes", "4", "--workers", "1"]
    result = CliRunner().invoke(prepare, arguments + limits)
    assert result.exit_code == 0, result.output
    maps = {}
    for engine in ("onnxruntime", "openvino"):
        out = tmp_path / engine
        options = ["--engine", engine, "--precision", "exact", "--quiet"]
        result = CliRunner().invoke(run, [str(tmp_path / "cases"), "-o", str(out), *options])
        assert result.exit_code == 0, result.output
        report = json.loads((out / "report.json").read_text())
        assert all(case["status"] == "done" for case in report["cases"])
        maps[engine] = {p.stem: np.load(p, allow_pickle=False)["segs"] for p in sorted(out.glob("*.npz"))}
    first, second = maps.values()
    assert first.keys() == second.keys()
    assert sorted(name.split("_")[1] for name in first) == sorted(MODALITIES)
    overlaps = []
    for name, labels in first.items():
        truth = np.load(tmp_path / "gts" / f"{name}.npz", allow_pickle=False)["gts"]
        assert labels.shape == second[name].shape == truth.shape
        assert (labels == second[name]).mean() >= 0.999, name
        overlaps.append(2 * ((labels > 0) & (truth > 0)).sum() / ((labels > 0).sum() + (truth > 0).sum()))
    assert np.median(overlaps) > 0.85
