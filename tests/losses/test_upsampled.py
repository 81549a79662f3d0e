import pytest
import torch
import torch.nn.functional as F

from segkd.losses import upsampled as module
from segkd.losses.upsampled import pixel_losses, upsampled_cross_entropy

K, IGNORE = 5, 255


def case(small, large, dtype=torch.float64):
    draw = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(2, K, *small, generator=draw, dtype=dtype)
    target = torch.randint(0, K, (2, *large), generator=draw)
    target[torch.rand(target.shape, generator=draw) < 0.2] = IGNORE
    return logits.requires_grad_(), target


def whole(logits, target, **options):
    large = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(large, target, ignore_index=IGNORE, reduction="sum", **options)


@pytest.fixture(params=[1, 2 * 2 * K * 24 * 4, 10**6], ids=["a row", "two rows", "one band"])
def bands(request, monkeypatch):
    """Elements per band: results must not depend on them."""
    monkeypatch.setattr(module, "_BAND_CPU", request.param)


SIZES = [
    ((5, 6), (20, 24)),
    ((6, 8), (18, 24)),
    ((7, 12), (7, 24)),
    ((6, 8), (6, 8)),
    ((5, 6), (17, 24)),  # no whole number
    ((5, 6), (20, 25)),
    ((5, 6), (4, 3)),  # smaller
    ((9, 9), (65, 65)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize(
    "options", [{}, {"weight": torch.tensor([1, 0, 2.5, 0.3, 7]), "label_smoothing": 0.1}]
)
def test_it_is_the_loss_of_the_whole_map(bands, small, large, options):
    options = {k: v.double() if torch.is_tensor(v) else v for k, v in options.items()}
    logits, target = case(small, large)
    value = upsampled_cross_entropy(logits, target, ignore_index=IGNORE, **options)
    expected = whole(logits, target, **options)
    torch.testing.assert_close(value, expected)
    upstream = torch.tensor(0.7, dtype=torch.float64)
    (slope,) = torch.autograd.grad(value, logits, upstream)
    (wanted,) = torch.autograd.grad(expected, logits, upstream)
    torch.testing.assert_close(slope, wanted)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_losses_of_pixels_are_those_of_the_whole_map(bands, small, large):
    logits, target = case(small, large, torch.float32)
    found = pixel_losses(logits, target, ignore_index=IGNORE)
    large_map = F.interpolate(logits, large, mode="bilinear", align_corners=False)
    expected = F.cross_entropy(large_map, target, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(found, expected.detach())


def test_its_gradient_has_a_gradient(bands):
    logits, target = case((3, 4), (6, 8))
    assert torch.autograd.gradgradcheck(
        lambda x: upsampled_cross_entropy(x, target, ignore_index=IGNORE), logits
    )


def test_half_types_are_raised_and_nothing_overflows():
    logits, target = case((5, 6), (20, 24), torch.float16)
    value = upsampled_cross_entropy(logits, target, ignore_index=IGNORE)
    expected = whole(logits.float(), target)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, expected)
    (slope,) = torch.autograd.grad(value, logits)
    assert slope.dtype is torch.float16
    (wanted,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(slope, wanted)


def test_no_image_and_no_label_are_connected_zeros():
    for images, label in ((0, 0), (2, IGNORE)):
        logits = torch.randn(images, K, 2, 3, requires_grad=True)
        target = torch.full((images, 8, 12), label)
        value = upsampled_cross_entropy(logits, target, ignore_index=IGNORE)
        value.backward()
        assert value == 0 and not logits.grad.any()


def test_the_large_map_is_never_made(monkeypatch):
    """The largest tensor is a band: with rows of 8x8 blocks, four input rows at most."""
    monkeypatch.setattr(module, "_BAND_CPU", 1)
    logits, target = case((16, 6), (128, 48), torch.float32)
    sizes = []
    plain = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: sizes.append(a[1]) or plain(*a, **k))
    upsampled_cross_entropy(logits, target, ignore_index=IGNORE).backward()
    assert len(sizes) == 16 and max(height for height, _ in sizes) == 3 * 8


def test_nor_is_it_where_the_factor_is_no_whole_number(monkeypatch):
    """As of crops of 513 and 769, whose networks end at 65 and 97."""
    monkeypatch.setattr(module, "_BAND_CPU", 4 * 10 * 2 * K * 65)
    logits, target = case((9, 9), (65, 65), torch.float32)
    seen = []
    plain = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda x, *a, **k: seen.append(x) or plain(x, *a, **k))
    upsampled_cross_entropy(logits, target, ignore_index=IGNORE).backward()
    assert [tuple(x.shape) for x in seen] == [(2, K, rows, 65) for rows in [10] * 6 + [5]]
