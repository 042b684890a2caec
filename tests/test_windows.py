"""Windows: what is cut out is what the decoder is told it is, and is encoded as a part of the whole image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from litemed.models.litemedsam import LiteMedSAM
from litemed.models.tiny_vit import TinyViT
from litemed.train.dataset import Batch, Skipped, collate
from litemed.train.network import TrainedNetwork, batch_forward
from litemed.train.tokens import sample_tokens
from litemed.train.windows import Windows, draw_windows, in_windows

pytestmark = pytest.mark.usefixtures("one_thread")


SIZE, SIDE = 256, 64
BOXES = torch.tensor(
    [[10.0, 20, 14, 26], [0, 0, 255, 255], [200, 5, 250, 120], [254, 254, 255, 255], [0, 60, 127, 61]]
)
PLACES = [
    ((0, 0), (112, 112)),
    ((56, 112), (112, 112)),
    ((112, 112), (144, 144)),
    ((112, 56), (144, 112)),
    ((0, 112), (112, 144)),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def window(low: tuple[int, int], sides: tuple[int, int]) -> Windows:
    return Windows(torch.tensor([low]), sides, SIZE)


def batch_of(image_of_box: list[int], images: int) -> Batch:
    number = torch.tensor(image_of_box)
    weights = 1 / torch.bincount(number, minlength=images)[number]
    masks = (torch.rand(len(BOXES), SIZE, SIZE) > 0.5).to(torch.uint8)
    labels = torch.randint(0, 3, (images, SIZE, SIZE), dtype=torch.int32)
    return Batch(torch.rand(images, 3, SIZE, SIZE), BOXES, masks, labels, number, weights, images, ())


def without_neighbours(encoder: TinyViT) -> TinyViT:
    """Leave of every convolution but its middle: then tokens meet one another in attention alone."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            middle = module.weight.data[:, :, 1:2, 1:2].clone()
            module.weight.data.zero_()[:, :, 1:2, 1:2] = middle
    return encoder


@pytest.fixture(scope="module")
def encoded() -> tuple[TinyViT, Tensor, Tensor]:
    torch.manual_seed(0)
    encoder = without_neighbours(TinyViT()).eval()
    image = torch.rand(1, 3, SIZE, SIZE)
    with torch.no_grad():
        return encoder, image, encoder(image)


@pytest.mark.parametrize(("low", "sides"), PLACES)
def test_attention_in_a_window_is_that_of_the_whole_image(encoded, low, sides):
    encoder, image, whole = encoded
    part = window(low, sides)
    with torch.no_grad():
        placed = part.in_place(encoder(part.of_images(image)))
    held = part.tokens().view(1, 1, SIDE, SIDE)
    torch.testing.assert_close(placed, whole * held, rtol=1e-4, atol=1e-4)


def test_attention_elsewhere_is_another_so_that_the_test_above_can_fail(encoded):
    encoder, image, whole = encoded
    part = window((28, 36), (112, 112))
    with torch.no_grad():
        placed = part.in_place(encoder(part.of_images(image)))
    assert (placed - whole * part.tokens().view(1, 1, SIDE, SIDE)).abs().max() > 0.01


@pytest.mark.parametrize(("low", "sides"), PLACES)
def test_a_window_keeps_its_place_in_the_image(low, sides):
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    position = torch.stack([columns, rows])[None].float()
    part = window(low, sides)
    cut = part.of_images(position)
    assert cut.shape == (1, 2, sides[1], sides[0])
    assert cut[0, :, 0, 0].tolist() == list(low)
    placed = part.in_place(cut[:, :, ::4, ::4] + 1)
    held = part.tokens().view(SIDE, SIDE)
    assert torch.equal(placed[0], ((position[0, :, ::4, ::4] + 1) * held))
    assert int(held.sum()) * 16 == sides[0] * sides[1]


def test_a_window_shows_what_is_mostly_in_it_or_fills_it():
    shown = window((0, 0), (112, 112)).shown
    boxes = torch.tensor(
        [[10.0, 10, 20, 20], [100, 10, 119, 20], [104, 10, 131, 20], [0, 0, 255, 255], [56, 56, 255, 255]]
    )
    assert shown(boxes, torch.zeros(5, dtype=torch.int64)).tolist() == [True, True, False, True, True]
    assert not shown(torch.tensor([[57.0, 56, 255, 255]]), torch.zeros(1, dtype=torch.int64)).item()


def test_windows_are_drawn_round_the_middle_of_a_box_wherever_blocks_of_attention_allow():
    boxes = torch.tensor([[30.0, 40, 50, 60], [215, 60, 235, 90], [120, 130, 160, 150]])
    image_of_box = torch.tensor([0, 0, 2])
    seen = set()
    for _ in range(200):
        found = draw_windows(boxes, image_of_box, 3, SIZE)
        for low, side in zip(found.low.unbind(1), found.sides, strict=True):
            assert (side == 112 and set(low.tolist()) <= {0, 56, 112}) or (
                side == 144 and set(low.tolist()) == {112}
            )
        middle = torch.tensor([140.5, 140.5])
        within = (found.low[2] <= middle) & (middle <= found.low[2] + torch.tensor(found.sides))
        assert within.all()
        seen.add((tuple(found.low[0].tolist()), found.sides))
    # Round the first box; and with windows at the right edge, which alone holds it, round the second.
    assert {(0, 0), (112, 0), (112, 56)} <= {low for low, sides in seen if sides[1] == 112}
    assert all(low == (0, 0) for low, sides in seen if sides == (112, 112))
    assert {sides for _, sides in seen} == {(112, 112), (112, 144), (144, 112), (144, 144)}


@pytest.mark.parametrize("size", [128, 192, 320])
def test_windows_lie_within_images_of_every_size(size):
    boxes = BOXES.clamp(max=size - 1)
    for _ in range(20):
        found = draw_windows(boxes, torch.arange(5), 5, size)
        assert found.low.min() >= 0
        assert (found.low + torch.tensor(found.sides)).max() <= size


def test_a_batch_keeps_the_boxes_that_are_shown_and_every_image_counts_alike():
    batch = batch_of([0, 0, 1, 1, 1], 3)
    sizes = set()
    for _ in range(30):
        kept, windows = in_windows(batch)
        assert windows is not None
        assert windows.shown(kept.boxes, kept.image_of_box).all()
        sums = torch.zeros(3).index_add(0, kept.image_of_box, kept.weights)
        assert sums.sum() == pytest.approx(kept.images)
        assert set(sums.round(decimals=5).tolist()) <= {0.0, 1.0}
        for box, mask in zip(kept.boxes, kept.masks, strict=True):
            number = (box == BOXES).all(1).nonzero().item()
            assert torch.equal(mask, batch.masks[number])
        sizes.add(len(kept.boxes))
    assert len(sizes) > 1
    nothing = collate([Skipped("why")], SIZE)
    assert in_windows(nothing) == (nothing, None)


@pytest.mark.parametrize("count", [64, 300])
def test_tokens_come_from_the_window_and_stand_for_all(count):
    batch = batch_of([0, 1, 2, 3, 4], 5)
    kept, windows = in_windows(batch)
    assert windows is not None
    allowed = windows.tokens()[kept.image_of_box]
    found = sample_tokens(kept.boxes, SIZE, count, allowed)
    assert found is not None
    assert found.index.shape == (len(kept.boxes), count)
    assert all(len(set(row.tolist())) == count for row in found.index)
    assert allowed.take_along_dim(found.index, 1).all()
    inside = kept.boxes[:, 2:].amax(1) - kept.boxes[:, :2].amin(1) < 100
    total = found.weight.sum(1)
    assert torch.allclose(total[inside], torch.full_like(total[inside], SIDE * SIDE))
    assert (total <= SIDE * SIDE + 0.1).all()


def test_the_network_decodes_what_it_would_of_the_whole_embedding():
    network = TrainedNetwork(LiteMedSAM(SIZE), "all").eval()
    without_neighbours(network.model.image_encoder)
    batch, windows = in_windows(batch_of([0, 0, 0, 0, 0], 1))
    assert windows is not None
    tokens = sample_tokens(batch.boxes, SIZE, 64, windows.tokens()[batch.image_of_box])
    with torch.no_grad():
        part = batch_forward(network, batch, tokens, windows)
        whole = batch_forward(network, batch, tokens)
    for found, expected in zip(part[:2], whole[:2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
