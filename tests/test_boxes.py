"""Boxes: what is accepted, what is clipped and what is refused, as Boxes.parse says."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from litemed.runtime.boxes import MAX_BOXES, Boxes
from litemed.runtime.errors import InputError

SIDES = st.integers(1, 50)
FAR = 2**62


@st.composite
def inside(draw: st.DrawFn, length: int) -> tuple[int, int]:
    """Draw a first and a last edge with 0 <= first < last <= length."""
    first = draw(st.integers(0, length - 1))
    return first, draw(st.integers(first + 1, length))


@st.composite
def image_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, ...], np.ndarray]:
    """Draw the shape of an image or volume, and boxes within it."""
    depth, height, width = draw(SIDES), draw(SIDES), draw(SIDES.filter(lambda width: width != 3))
    is_volume = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        (x0, x1), (y0, y1), (z0, past) = draw(inside(width)), draw(inside(height)), draw(inside(depth))
        rows.append([x0, y0, z0, x1, y1, past - 1] if is_volume else [x0, y0, x1, y1])
    shape = (
        (depth, height, width) if is_volume else draw(st.sampled_from([(height, width), (height, width, 3)]))
    )
    return shape, np.array(rows, np.int64)


@given(
    image_and_boxes(),
    st.sampled_from([np.int64, np.uint8, np.int16, np.uint64, np.float32, np.float64, ">i4"]),
)
def test_boxes_inside_are_kept_in_every_number_type(drawn, dtype):
    shape, table = drawn
    boxes = Boxes.parse(table.astype(dtype), shape)
    if table.shape[1] == 4:
        np.testing.assert_array_equal(boxes.xyxy, table)
        assert boxes.z is None
    else:
        np.testing.assert_array_equal(boxes.xyxy, table[:, [0, 1, 3, 4]])
        np.testing.assert_array_equal(boxes.z, table[:, [2, 5]])
    assert boxes.xyxy.dtype == np.int64
    assert len(boxes) == len(table)
    assert boxes.clipped == ()


@given(
    nps.arrays(np.int64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.integers(-60, 110)),
    SIDES,
    SIDES,
)
def test_any_integers_are_either_refused_or_cut_to_the_image(table, height, width):
    x0, y0, x1, y1 = table.T
    frame = [width, height, width, height]
    cut = np.clip(table, 0, frame)
    has_area_inside = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    if has_area_inside.all():
        boxes = Boxes.parse(table, (height, width))
        np.testing.assert_array_equal(boxes.xyxy, cut)
        assert boxes.clipped == tuple(i for i, row in enumerate(table, 1) if (row != cut[i - 1]).any())
    else:
        assert (x1 <= x0).any() or (y1 <= y0).any() or (~has_area_inside).any()
        with pytest.raises(InputError):
            Boxes.parse(table, (height, width))


@given(image_and_boxes(), st.integers(0, FAR), st.integers(0, FAR))
def test_slices_are_cut_to_the_volume_like_rows_and_columns(drawn, before, after):
    shape, table = drawn
    assume(table.shape[1] == 6)
    wide = table + np.array([0, 0, -before, 0, 0, after])
    boxes = Boxes.parse(wide, shape)
    np.testing.assert_array_equal(boxes.z, np.clip(wide[:, [2, 5]], 0, shape[0] - 1))
    reaches_out = (wide[:, 2] < 0) | (wide[:, 5] >= shape[0])
    assert boxes.clipped == tuple((np.flatnonzero(reaches_out) + 1).tolist())


@given(image_and_boxes(), st.data())
def test_an_inverted_flat_or_misplaced_box_is_refused_and_numbered(drawn, data):
    shape, table = drawn
    row = data.draw(st.integers(0, len(table) - 1))
    message = "needs x0 < x1 and y0 < y1"
    if table.shape[1] == 4 or data.draw(st.booleans()):
        axis, end = data.draw(st.sampled_from([(0, 2), (1, 3)] if table.shape[1] == 4 else [(0, 3), (1, 4)]))
        table[row, end] = table[row, axis] - data.draw(st.integers(0, 3))
    else:
        message = f"outside slices 0 to {shape[0] - 1}"
        excess = data.draw(st.integers(1, FAR))
        table[row, [2, 5]] = data.draw(st.sampled_from([shape[0] - 1 + excess, -excess]))
    with pytest.raises(InputError, match=f"box {row + 1} .*{message}"):
        Boxes.parse(table, shape)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param([], "no boxes", id="none"),
        pytest.param([1, 2, 3, 4], r"shape \(4,\)", id="one box without a list"),
        pytest.param([[1, 2, 3]], r"shape \(1, 3\)", id="three numbers"),
        pytest.param([[1, 2, 3, 4, 5, 6]], r"needs \(N, 4\)", id="volume boxes on an image"),
        pytest.param([[1, 2], [3]], "not a table", id="ragged"),
        pytest.param(np.ones((1, 4), bool), "dtype bool", id="bool"),
        pytest.param(np.ones((1, 4), object), "dtype object", id="object"),
        pytest.param([[0, 0, 2**70, 5]], "dtype object", id="past 64 bits"),
        pytest.param(np.array([[0, 0, 2**63, 5]], np.uint64), "too large", id="past int64, unsigned"),
        pytest.param([[0.0, 0.0, 2.0**63, 5.0]], "too large", id="past int64, float"),
        pytest.param([[0, 0, np.nan, 5]], "not finite", id="NaN"),
        pytest.param([[0, -np.inf, 5, 5]], "not finite", id="infinite"),
        pytest.param([[0, 0, 5.5, 5]], "whole pixels", id="fraction"),
        pytest.param([[30, 0, 40, 5]], "outside the image of 30 x 20 pixels", id="right of the image"),
        pytest.param([[0, -5, 4, 0]], "outside the image", id="above the image"),
        pytest.param([[0, 0, 5, 5]] * (MAX_BOXES + 1), "65536 boxes", id="too many"),
    ],
)
def test_what_no_pixel_box_can_be_is_refused(table, message):
    with pytest.raises(InputError, match=message) as caught:
        Boxes.parse(table, (20, 30), source="case.npz")
    assert str(caught.value).startswith("case.npz: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 20, 30), r"volume needs \(N, 6\)"), ((20,), "takes no boxes"), ((2, 20, 30, 4), "takes no boxes")],
)
def test_boxes_of_an_image_fit_no_other_shape(shape, message):
    with pytest.raises(InputError, match=message):
        Boxes.parse([[1, 2, 3, 4]], shape)


def test_the_message_names_the_first_offender_and_counts_the_others():
    table = [[0, 0, 5, 5], [9, 9, 2, 2], [1, 1, 1, 1], [0, 0, 5, 5]]
    with pytest.raises(InputError, match=r"box 2 \[9, 9, 2, 2\] needs .* \(and 1 more\)"):
        Boxes.parse(table, (20, 30))


@given(nps.arrays(nps.scalar_dtypes(), nps.array_shapes(max_dims=3, max_side=7)))
def test_no_array_whatever_raises_anything_but_an_input_error(table):
    try:
        boxes = Boxes.parse(table, (8, 9))
    except InputError:
        return
    assert ((boxes.xyxy >= 0) & (boxes.xyxy <= [9, 8, 9, 8])).all()
    assert (boxes.xyxy[:, :2] < boxes.xyxy[:, 2:]).all()
