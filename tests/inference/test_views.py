import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segkd.config.schema import EvalConfig
from segkd.inference.scores import class_probabilities
from segkd.inference.views import label_maps, resize_images, views, windows
from segkd.structures import Outputs

K, DIVISOR, STRIDE = 3, 8, 4


@torch.no_grad()
def probabilities(network, images, size=None, config=None):
    return class_probabilities(views(network, images, config), size or images.shape[2:])


class Small(nn.Module):
    """Pooled colours through a 3x3 convolution; refuses sizes that are no multiple of 8."""

    divisor = DIVISOR

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, K, 3, padding=1)
        self.seen = []

    def forward(self, images):
        assert images.dtype is torch.uint8
        assert images.shape[2] % DIVISOR == 0 and images.shape[3] % DIVISOR == 0
        self.seen.append(images)
        return Outputs(self.layer(F.avg_pool2d(images.float() / 64, STRIDE)))


def make_images(size=(24, 40), images=2):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (images, 3, *size), generator=generator, dtype=torch.uint8)


def up(logits, size):
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


@torch.no_grad()
def full(network, images):
    return up(network(images).logits, images.shape[2:])


def test_whole_image():
    network, images = Small(), make_images()
    expected = full(network, images)
    assert torch.equal(label_maps(network, images).long(), expected.argmax(1))
    assert torch.allclose(probabilities(network, images), expected.softmax(1), atol=1e-5)


def test_another_size_is_reached_in_one_step():
    network, images = Small(), make_images()
    expected = up(network(images).logits, (50, 90)).softmax(1)
    assert torch.allclose(probabilities(network, images, (50, 90)), expected, atol=1e-5)
    assert label_maps(network, images, (50, 90)).shape == (2, 50, 90)


def test_padding_repeats_the_border_and_is_cropped():
    network, images = Small(), make_images((21, 35))
    found = probabilities(network, images)
    padded = network.seen[0]
    assert padded.shape == (2, 3, 24, 40)
    assert torch.equal(padded[..., :21, :35], images)
    assert torch.equal(padded[..., 23, :35], images[..., 20, :])
    assert torch.equal(padded[..., :21, 39], images[..., :, 34])
    assert torch.allclose(found, full(network, padded)[..., :21, :35].softmax(1), atol=1e-5)


def test_flip_and_scales_average_probabilities():
    network, images = Small(), make_images()
    config = EvalConfig(scales=[0.5, 1.0, 1.25], flip=True)
    expected = torch.zeros(2, K, 24, 40)
    for scale in config.scales:
        scaled = resize_images(images, scale)
        padded_network = predict_logits(network, scaled)
        mirrored = predict_logits(network, scaled.flip(3)).flip(3)
        expected += up(padded_network, (24, 40)).softmax(1) + up(mirrored, (24, 40)).softmax(1)
    found = probabilities(network, images, config=config)
    # Padded scales are sampled in one step here and in two steps above.
    assert torch.allclose(found, expected / 6, atol=0.02)
    exact = EvalConfig(scales=[1.0], flip=True)
    both = full(network, images).softmax(1) + full(network, images.flip(3)).flip(3).softmax(1)
    assert torch.allclose(probabilities(network, images, config=exact), both / 2, atol=1e-5)


@torch.no_grad()
def predict_logits(network, images):
    """Logits at the image size, padded and cropped by hand."""
    height, width = images.shape[2:]
    pad = (-width % DIVISOR, -height % DIVISOR)
    padded = F.pad(images.float(), (0, pad[0], 0, pad[1]), mode="replicate").to(torch.uint8)
    return full(network, padded)[..., :height, :width]


def test_scaled_images():
    images = make_images()
    assert resize_images(images, 1.0) is images
    half = resize_images(images, 0.5)
    assert half.shape == (2, 3, 12, 20) and half.dtype is torch.uint8
    mean = images.float().view(2, 3, 12, 2, 20, 2).mean((3, 5))
    assert (half.float() - mean).abs().max() <= 0.5
    assert resize_images(make_images((3, 40)), 0.1).shape[2:] == (1, 4)


@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.9])
@pytest.mark.parametrize("window", [8, (5, 16), 30, 100])
def test_windows_cover_the_image_exactly(window, overlap):
    size = (24, 41)
    count = torch.zeros(size)
    sides = (window, window) if isinstance(window, int) else window
    previous = None
    for rows, columns in windows(size, window, overlap):
        part = count[rows, columns]
        assert part.shape == (min(sides[0], 24), min(sides[1], 41))
        part += 1
        if previous is not None and previous[0] == rows:
            width = part.shape[1]
            assert previous[1].stop - columns.start >= min(overlap * width, width - 1) - 1e-5
            assert columns.start > previous[1].start
        previous = (rows, columns)
    assert count.min() >= 1
    if overlap == 0 and window == 8:
        assert count[:, :33].max() == 1  # no more windows than needed


def test_a_third_of_overlap_is_exact():
    columns = [columns for _, columns in windows((768, 2048), 768, 1 / 3)]
    assert [part.start for part in columns] == [0, 512, 1024, 1280]


def test_sliding_averages_windows_by_count():
    network, images = Small(), make_images((24, 44))
    config = EvalConfig(sliding=(16, 24), overlap=0.25)
    total, count = torch.zeros(2, K, 24, 44), torch.zeros(24, 44)
    for top, left in ((0, 0), (0, 18), (0, 20), (8, 0), (8, 18), (8, 20)):
        rows, columns = slice(top, top + 16), slice(left, left + 24)
        total[:, :, rows, columns] += full(network, images[:, :, rows, columns]).softmax(1)
        count[rows, columns] += 1
    found = probabilities(network, images, config=config)
    assert torch.allclose(found, total / count, atol=1e-5)
    assert torch.equal(label_maps(network, images, config=config).long(), found.argmax(1))


def test_a_window_of_the_image_size_is_the_whole_image():
    network, images = Small(), make_images()
    expected = probabilities(network, images)
    found = probabilities(network, images, config=EvalConfig(sliding=64))
    assert torch.equal(found, expected)
