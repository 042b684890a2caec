"""What is asked of every pixel: the right ones are, what is right costs nothing, and the encoder learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from litemed.models.litemedsam import LiteMedSAM
from litemed.train.dataset import Batch
from litemed.train.network import TrainedNetwork, batch_forward
from litemed.train.pixels import PixelHead, edges_of, pixel_loss
from litemed.train.tokens import sample_tokens
from litemed.train.windows import in_windows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def drawn(size: int = 32) -> tuple[Tensor, Tensor]:
    """Return two images and their labels: two objects that touch, and none."""
    labels = torch.zeros(2, size, size, dtype=torch.int32)
    labels[0, 4:12, 4:20] = 1
    labels[0, 12:20, 4:20] = 7
    image = torch.rand(2, 3, size, size) * 0.2 + 0.5 * (labels > 0)[:, None]
    return image, labels


def perfect(image: Tensor, labels: Tensor) -> Tensor:
    grey = image.mean(1)
    grey = (grey - grey.mean((1, 2), keepdim=True)) / (grey.std((1, 2), keepdim=True) + 0.02)
    return torch.stack([grey, 100.0 * (labels > 0) - 50, 100.0 * edges_of(labels) - 50], 1)


def test_edges_lie_on_both_sides_of_every_border_and_nowhere_else():
    _, labels = drawn()
    found = edges_of(labels)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[3:21, 3:21] = True
    expected[5:11, 5:19] = expected[13:19, 5:19] = False
    assert torch.equal(found[0], expected)
    assert not found[1].any()


def test_what_is_right_costs_nothing_and_every_part_that_is_wrong_costs():
    image, labels = drawn()
    right = perfect(image, labels)
    assert pixel_loss(right, image, labels).tolist() == pytest.approx([0, 0], abs=1e-4)
    for channel in range(3):
        wrong = right.clone()
        wrong[:, channel] = -wrong[:, channel]
        assert (pixel_loss(wrong, image, labels) > 0.1).all(), channel
    nothing = pixel_loss(torch.zeros_like(right), image, labels)
    assert pixel_loss(right[:1], image[:1], labels[:1]) < nothing[0]


def test_the_loss_of_an_image_does_not_depend_on_its_brightness_nor_on_the_other_images():
    image, labels = drawn()
    read = torch.randn(2, 3, 32, 32)
    both = pixel_loss(read, image, labels)
    assert torch.allclose(pixel_loss(read[1:], image[1:], labels[1:]), both[1:])
    contrast = image - image.mean()
    assert torch.allclose(pixel_loss(read, 0.3 + contrast, labels), both, atol=1e-5)


def test_every_token_answers_for_its_own_pixels():
    head = PixelHead()
    embedding = torch.zeros(1, 256, 8, 6)
    embedding[0, :, 2, 5] = 1
    changed = (head(embedding) - head(torch.zeros_like(embedding))).abs().sum((0, 1)) > 0
    assert changed.shape == (32, 24)
    assert torch.equal(changed.nonzero().amin(0), torch.tensor([8, 20]))
    assert torch.equal(changed.nonzero().amax(0), torch.tensor([11, 23]))
    assert changed.sum() == 16


def test_a_window_is_read_and_its_loss_reaches_the_encoder_alone():
    size = 128
    boxes = torch.tensor([[10.0, 20, 60, 70]])
    image, labels = torch.rand(1, 3, size, size), torch.zeros(1, size, size, dtype=torch.int32)
    labels[0, 20:71, 10:61] = 4
    masks, number = (labels > 0).to(torch.uint8), torch.zeros(1, dtype=torch.int64)
    batch, windows = in_windows(Batch(image, boxes, masks, labels, number, torch.ones(1), 1, ()))
    assert windows is not None
    tokens = sample_tokens(boxes, size, 64, windows.tokens())
    network = TrainedNetwork(LiteMedSAM(size), "all", pixels=True)
    pixels = batch_forward(network, batch, tokens, windows).pixels
    assert pixels is not None
    assert pixels.shape == (1, 3, windows.sides[1], windows.sides[0])
    pixel_loss(pixels, windows.of_images(image), windows.of_images(labels[:, None])[:, 0]).sum().backward()
    assert all(weights.grad is not None for weights in network.model.image_encoder.parameters())
    assert all(weights.grad is None for weights in network.model.mask_decoder.parameters())
    assert batch_forward(TrainedNetwork(LiteMedSAM(size), "all"), batch, tokens, windows).pixels is None


def test_an_encoder_learns_to_tell_objects_from_the_ground():
    """Where boxes are not even looked at: in a few steps on one image."""
    size = 64
    labels = torch.zeros(1, size, size, dtype=torch.int32)
    labels[0, 8:30, 20:50], labels[0, 40:60, 4:24] = 1, 2
    image = 0.1 * torch.rand(1, 3, size, size) + 0.6 * (labels > 0)[:, None]
    network = TrainedNetwork(LiteMedSAM(size), "all", pixels=True).train()
    assert network.pixels is not None
    encoder, head = network.model.image_encoder, network.pixels
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 2e-3)
    losses = []
    for _ in range(25):
        loss = pixel_loss(head(encoder(image)), image, labels).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
