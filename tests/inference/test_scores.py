import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segkd.inference.scores import (
    Tiles,
    View,
    cell_means,
    label_map,
    score_chunks,
    upsample_rows,
)


def make_scores(size=(7, 10), images=2, classes=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)


def joined(views, size, chunk):
    chunks = list(score_chunks(views, size, chunk))
    assert max(part.numel() for part in chunks) <= chunk
    return torch.cat(chunks, 2)


@pytest.mark.parametrize("size", [(7, 10), (28, 40), (33, 61), (9, 4), (3, 25)])
@pytest.mark.parametrize("chunk", [10**6, 1000])
def test_chunks_equal_one_interpolation(size, chunk):
    scores = make_scores()
    expected = F.interpolate(scores, size, mode="bilinear", align_corners=False)
    found = joined([View(scores, (7, 10))], size, chunk)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


def test_padding_is_cropped_after_upsampling():
    scores = make_scores()  # of an image of 50 x 77, padded to 56 x 80, at stride 8
    expected = F.interpolate(scores, (56, 80), mode="bilinear", align_corners=False)[..., :50, :77]
    found = joined([View(scores, (7 * 50 / 56, 10 * 77 / 80))], (50, 77), 2000)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_flipped_view_is_flipped_back_inside_its_padding():
    scores = make_scores()
    extent = (7.0, 10 * 77 / 80)
    plain = upsample_rows(View(scores, extent), (30, 77), range(30))
    flipped = upsample_rows(View(scores, extent, flipped=True), (30, 77), range(30))
    assert torch.equal(flipped, plain.flip(3))


def test_views_are_joined_as_probabilities():
    logits, probabilities = make_scores(), make_scores((5, 5)).softmax(1)
    views = [View(logits, (7, 10)), View(probabilities, (5, 5), probabilities=True)]
    up = [F.interpolate(view.scores, (21, 30), mode="bilinear") for view in views]
    expected = (up[0].softmax(1) + up[1]) / 2
    assert torch.allclose(joined(views, (21, 30), 2000), expected, atol=1e-5)


def test_half_types_are_raised():
    part = next(score_chunks([View(make_scores().bfloat16(), (7, 10))], (14, 20)))
    assert part.dtype is torch.float32


def test_label_map():
    scores = make_scores()
    labels = label_map([View(scores, (7, 10))], (28, 40))
    expected = F.interpolate(scores, (28, 40), mode="bilinear").argmax(1)
    assert labels.dtype is torch.uint8 and torch.equal(labels.long(), expected)
    many = torch.zeros(1, 300, 2, 2)
    many[:, 299] = 1
    assert label_map([View(many, (2, 2))], (2, 2)).unique().tolist() == [299]


def sliding(size=(24, 45)):
    """Windows of 14 x 20 at stride 2 that overlap, and their probabilities kept whole."""
    generator = torch.Generator().manual_seed(1)
    total, count, tiles = torch.zeros(2, 4, *size), torch.zeros(size), []
    for top in (0, 7, 10):
        for left in (0, 15, 25):
            rows, columns = slice(top, top + 14), slice(left, left + 20)
            view = View(torch.randn(2, 4, 7, 10, generator=generator), (7, 10))
            tiles.append((rows, columns, view))
            up = F.interpolate(view.scores, (14, 20), mode="bilinear", align_corners=False)
            total[:, :, rows, columns] += up.softmax(1)
            count[rows, columns] += 1
    return View(Tiles(tuple(tiles), size), size, probabilities=True), total / count


@pytest.mark.parametrize("size", [(24, 45), (48, 61), (11, 30)])
def test_windows_are_averaged_as_if_they_were_kept_whole(size):
    tiles, whole = sliding()
    assert tiles.scores.shape == whole.shape
    expected = F.interpolate(whole, size, mode="bilinear", align_corners=False)
    found = torch.cat(list(score_chunks([tiles], size, 700)), 2)
    assert torch.allclose(found, expected, atol=1e-6)
    kept = View(whole, (24, 45), probabilities=True)
    assert torch.equal(label_map([tiles], size), label_map([kept], size))


@pytest.mark.parametrize("kind", ["one", "padded", "flipped", "scales", "windows"])
def test_labels_do_not_depend_on_the_bands(kind, monkeypatch):
    scores, other = make_scores(), make_scores((9, 13))
    views = {
        "one": [View(scores, (7, 10))],
        "padded": [View(scores, (6.25, 9.6))],
        "flipped": [View(scores, (7, 9.6)), View(other, (9, 12.5), flipped=True)],
        "scales": [View(scores, (7, 10)), View(other, (9, 13))],
        "windows": [sliding()[0], View(sliding()[1], (24, 45), True, probabilities=True)],
    }[kind]
    monkeypatch.setattr("segkd.inference.scores.CHUNK", 10**9)
    whole = label_map(views, (50, 77))
    for chunk in (1, 2000, 12345):
        monkeypatch.setattr("segkd.inference.scores.CHUNK", chunk)
        assert torch.equal(label_map(views, (50, 77)), whole)


class Largest(TorchDispatchMode):
    """Notes the most numbers of a floating-point tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(result) if torch.is_tensor(x) and x.is_floating_point()]
        self.numbers = max([self.numbers, *(x.numel() for x in made)])
        return result


@pytest.mark.parametrize("kind", ["one", "flipped", "windows"])
def test_scores_are_never_kept_at_full_resolution(kind, monkeypatch):
    scores = make_scores()
    views = {
        "one": [View(scores, (7, 10))],
        "flipped": [View(scores, (7, 9.6)), View(scores, (7, 10), flipped=True)],
        "windows": [sliding()[0], View(sliding()[1], (24, 45), True, probabilities=True)],
    }[kind]
    size, row = (200, 300), 2 * 4 * 300
    monkeypatch.setattr("segkd.inference.scores.CHUNK", 5 * row)
    with Largest() as seen:
        labels = label_map(views, size)
    assert labels.shape == (2, *size) and labels.dtype is torch.uint8
    assert seen.numbers <= 5 * row < 2 * 4 * size[0] * size[1] / 10


@pytest.mark.parametrize(("size", "stride"), [((721, 1283), 8), ((64, 96), 4), ((5, 7), 9)])
def test_means_lie_where_a_map_that_is_stretched_over_the_image_has_them(size, stride):
    """Cells of N pixels with a smaller last one were shifted by half of N at the far end."""
    for axis, side in enumerate(size):
        places = torch.arange(side) + 0.5
        maps = places.view(1, -1, 1) if axis == 0 else places.view(1, 1, -1)
        means = cell_means(maps.expand(1, *size), size, stride)
        count = -(-side // stride)
        assert means.shape[1 + axis] == count
        expected = (torch.arange(count) + 0.5) * side / count
        found = means[0].select(1 - axis, 0)
        torch.testing.assert_close(found, expected, atol=0.51, rtol=0)


def test_coarser_maps_stay_as_they_are():
    maps = make_scores((3, 4))
    assert torch.equal(cell_means(maps, (100, 200), 4), maps)
