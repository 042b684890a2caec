"""What scanner units become in 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from litemed.runtime.errors import InputError, UsageError
from litemed.train.prepare.intensity import WINDOWS, Window, parse_window, to_uint8

ABDOMEN = WINDOWS["abdomen"]


@pytest.mark.parametrize("name", ["abdomen", "lung", "bone", "brain", "mediastinum", "soft tissue"])
def test_a_window_maps_its_edges_to_0_and_255_and_its_level_to_the_middle(name: str) -> None:
    window = parse_window(name)
    low, high = window.level - window.width / 2, window.level + window.width / 2
    hu = np.array([-5000, low, window.level, high, 5000], np.float32)
    assert to_uint8(hu, "CT", window).tolist() == [0, 0, 128, 255, 255]


def test_a_window_may_be_given_by_level_and_width() -> None:
    assert parse_window("40,400") == Window(40, 400)
    for text in ("liver", "40", "40,0", "40,-1", "nan,400", "40,inf", "1,2,3"):
        with pytest.raises(UsageError, match=r"window '.*'"):
            parse_window(text)


@given(hnp.arrays(np.int16, st.integers(1, 200)))
def test_ct_never_falls_where_hounsfield_units_rise(hu: np.ndarray) -> None:
    hu = np.sort(hu)
    assert (np.diff(to_uint8(hu, "CT", ABDOMEN).astype(int)) >= 0).all()


@pytest.mark.parametrize("modality", ["MR", "XRay"])
def test_percentiles_of_the_non_zero_values_become_black_and_white(modality: str) -> None:
    # Without the zeros: 0.5 and 99.5 percentiles are 5 and 995 of 0..1000; with them they would differ.
    inside = np.arange(1, 1001, dtype=np.float32)
    image = np.concatenate([np.zeros(5000, np.float32), inside])
    low, high = np.percentile(inside, [0.5, 99.5])
    result = to_uint8(image, modality, ABDOMEN)
    assert (result[:5000] == 0).all()
    expected = np.rint(np.clip((inside - low) / (high - low), 0, 1) * 255)
    assert np.abs(result[5000:] - expected).max() <= 1
    assert result.max() == 255
    assert to_uint8(np.array([-100, 0, 100, 300], np.int16), modality, ABDOMEN)[1] == 0


def test_eight_bits_stay_and_nan_infinity_and_constant_images_are_background() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = np.arange(1, 101, dtype=np.float32)
    broken = np.concatenate([image, [np.nan, np.inf, -np.inf]]).astype(np.float32)
    for modality in ("MR", "CT"):
        assert (to_uint8(colour, modality, ABDOMEN) == colour).all()
        result = to_uint8(broken, modality, ABDOMEN)
        assert (result[:100] == to_uint8(image, modality, ABDOMEN)).all()
        assert (result[100:] == 0).all()
    for value in (0, 7, -3.5, np.nan):
        assert (to_uint8(np.full((4, 4), value, np.float32), "MR", ABDOMEN) == 0).all()


def test_ct_in_unsigned_integers_is_refused() -> None:
    with pytest.raises(InputError, match=r"scan\.png: CT in uint16 is not in Hounsfield units"):
        to_uint8(np.zeros((4, 4), np.uint16), "CT", ABDOMEN, "scan.png")
