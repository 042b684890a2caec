"""The label map of the running merge is the one of the definition, bit for bit."""

import itertools
import unittest.mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from litemed.runtime import resize
from litemed.runtime.merge import RunningMerge, label_dtype
from litemed.runtime.preprocess import Frame
from litemed.runtime.resize import AxisTable, LogitResizer

SIZE = 256
SIDES = st.one_of(st.integers(1, 40), st.integers(200, 600))


def naive(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The definition on full planes (N, H, W): background of zeros last, argmax, the lowest index wins."""
    background = np.zeros((1, *planes.shape[1:]), np.float32)
    winner = np.concatenate([planes, background]).argmax(axis=0)
    return np.where(winner < len(planes), winner + 1, 0).astype(np.uint8)


def running(
    frame: Frame,
    logits: NDArray[np.float32],
    chunks: list[list[int]],
    crops: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """The label map of boxes given in chunks of indices into `logits`, label = index + 1."""
    labels = np.zeros((frame.height, frame.width), np.uint8)
    merged, resizer = RunningMerge(labels), LogitResizer(frame)
    for chunk in chunks:
        merged.add(
            resizer, logits[chunk], np.array(chunk, np.int64) + 1, None if crops is None else crops[chunk]
        )
    merged.finish()
    return labels


@st.composite
def planes_of_logits(draw: st.DrawFn) -> NDArray[np.float32]:
    """A few planes: whole numbers (ties, zeros of both signs), blobs, stray pixels, tiny numbers, noise."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    planes = []
    for kind in draw(
        st.lists(
            st.sampled_from(["whole", "blob", "stray", "tiny", "below", "noise"]), min_size=1, max_size=6
        )
    ):
        match kind:
            case "whole":
                coarse = rng.integers(-2, 2, (8, 8)).astype(np.float32)
                plane = np.kron(coarse, np.ones((SIZE // 8, SIZE // 8), np.float32)) * np.float32(
                    rng.choice([1, -1])
                )
            case "blob":
                y, x = np.mgrid[:SIZE, :SIZE]
                centre = rng.integers(0, SIZE, 2)
                plane = rng.uniform(0, 60) - np.hypot(y - centre[0], x - centre[1])
            case "stray":
                plane = np.full((SIZE, SIZE), -3.0)
                plane[rng.integers(0, SIZE, 3), rng.integers(0, SIZE, 3)] = [0, 2, 5]
            case "tiny":
                plane = rng.choice([-1e-45, 1e-45, -1e-30, -0.0, 0.0, -1e-38], (SIZE, SIZE))
            case "below":
                plane = rng.uniform(-5, -0.01, (SIZE, SIZE))
            case _:
                plane = rng.standard_normal((SIZE, SIZE))
        planes.append(np.asarray(plane, np.float32))
    return np.stack(planes)


@settings(deadline=None, max_examples=120)
@given(height=SIDES, width=SIDES, logits=planes_of_logits(), data=st.data())
def test_equals_the_naive_argmax(height, width, logits, data):
    frame = Frame.of(height, width)
    # All at once, band by band at the end, or so until there are too many boxes.
    bands = data.draw(
        st.sampled_from(
            [{"WAITING_PARTS": 8}, {"BAND_PIXELS": 500, "WAITING_PARTS": 0}, {"BAND_PIXELS": 5000}]
        )
    )
    order = data.draw(st.permutations(range(len(logits))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(logits)), max_size=3)) | {0, len(logits)})
    chunks = [list(order[start:stop]) for start, stop in itertools.pairwise(cuts)]
    resizer = LogitResizer(frame)
    expected = naive(np.stack([resizer.resize(plane) for plane in logits]))
    with unittest.mock.patch.multiple("litemed.runtime.merge", **bands):
        np.testing.assert_array_equal(running(frame, logits, chunks), expected)


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, logits=planes_of_logits(), data=st.data())
def test_cropped_masks_are_those_of_planes_that_are_negative_outside_their_boxes(height, width, logits, data):
    frame = Frame.of(height, width)
    resizer = LogitResizer(frame)
    planes, crops = [], []
    for plane in logits:
        x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        x1, y1 = data.draw(st.integers(x0, width)), data.draw(st.integers(y0, height))
        full = np.full((height, width), -1, np.float32)
        full[y0 : y1 + 1, x0 : x1 + 1] = resizer.resize(plane)[y0 : y1 + 1, x0 : x1 + 1]
        planes.append(full)
        crops.append((x0, y0, x1, y1))
    found = running(frame, logits, [list(range(len(logits)))], np.array(crops, np.int64))
    np.testing.assert_array_equal(found, naive(np.stack(planes)))


@settings(deadline=None, max_examples=40)
@given(height=SIDES, width=SIDES, logits=planes_of_logits())
def test_blocks_are_bitwise_parts_of_the_plane_and_hold_all_that_can_win(height, width, logits):
    resizer = LogitResizer(Frame.of(height, width))
    for plane in logits:
        full = resizer.resize(plane)
        seen = np.zeros(full.shape, int)
        for rows, columns, values in resizer.winnable_blocks(plane):
            assert np.array_equal(values.view(np.uint32), full[rows, columns].view(np.uint32))
            seen[rows, columns] += 1
        assert seen.max() <= 1
        assert (full[seen == 0] < 0).all()


@settings(deadline=None, max_examples=60)
@given(height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_resize_agrees_with_pytorch(height, width, seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference for the interpolation")
    frame = Frame.of(height, width)
    logits = np.random.default_rng(seed).normal(0, 3, (SIZE, SIZE)).astype(np.float32)
    cropped = torch.from_numpy(logits)[None, None, : frame.scaled_height, : frame.scaled_width]
    reference = torch.nn.functional.interpolate(
        cropped, (height, width), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(LogitResizer(frame).resize(logits), reference[0, 0].numpy(), rtol=0, atol=1e-5)


def test_a_box_far_from_the_others_costs_only_its_own_block():
    logits = np.full((SIZE, SIZE), -1, np.float32)
    logits[100:110, 40:60] = 1
    resizer = LogitResizer(Frame.of(2000, 2000))
    computed = sum(values.size for _, _, values in resizer.winnable_blocks(logits))
    assert computed < 2 * (12 * 22) * (2000 / SIZE) ** 2


def test_labels_are_those_given_for_a_subset_of_the_boxes():
    frame = Frame.of(64, 64)
    logits = np.full((2, SIZE, SIZE), -1, np.float32)
    logits[0, :128] = 1
    logits[1, 128:] = 1
    labels = np.zeros((64, 64), np.uint16)
    merged = RunningMerge(labels)
    merged.add(LogitResizer(frame), logits, np.array([300, 41]))
    merged.finish()
    assert (labels[:32] == 300).all()
    assert (labels[32:] == 41).all()


@pytest.mark.parametrize(
    ("count", "dtype"), [(1, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16")]
)
def test_the_smallest_dtype_that_holds_the_labels(count, dtype):
    assert label_dtype(count) == np.dtype(dtype)
    assert label_dtype(count).type(count) == count


@given(n_in=st.integers(1, 300), n_out=st.integers(1, 700), data=st.data())
def test_reach_is_what_reads_a_sample(n_in, n_out, data):
    table = AxisTable.of(n_in, n_out)
    start = data.draw(st.integers(0, n_in - 1))
    samples = slice(start, data.draw(st.integers(start + 1, n_in)))
    wanted = range(samples.start, samples.stop)
    readers = [i for i in range(n_out) if table.lower[i] in wanted or table.upper[i] in wanted]
    reach = table.reach(samples)
    assert list(range(reach.start, reach.stop)) == readers
    if readers:
        read = table.read_by(reach)
        assert read.start == table.lower[readers].min()
        assert read.stop == table.upper[readers].max() + 1


def test_an_image_wider_than_a_block_is_merged(monkeypatch):
    monkeypatch.setattr(resize, "BLOCK_ELEMENTS", 64)
    logits = np.random.default_rng(0).standard_normal((3, SIZE, SIZE)).astype(np.float32)
    frame = Frame.of(150, 400)
    resizer = LogitResizer(frame)
    expected = naive(np.stack([resizer.resize(plane) for plane in logits]))
    np.testing.assert_array_equal(running(frame, logits, [[0, 1, 2]]), expected)
