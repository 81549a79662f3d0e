import pytest
import torch

from segkd.methods.cs_kd import class_predictions, random_partners


def test_mean_and_spread_by_hand():
    draw = torch.Generator().manual_seed(2)
    log_prob = torch.randn(2, 4, 3, 5, generator=draw, dtype=torch.float64).log_softmax(1)
    labels = torch.randint(3, (2, 3, 5), generator=draw)
    labels[0, 0, :2], labels[1, 2, 4] = 255, -100
    mask = torch.rand(2, 3, 5, generator=draw) > 0.2
    mean, spread = class_predictions(log_prob, labels, mask)
    for k in range(3):
        own = log_prob.movedim(1, -1)[mask & (labels == k)]
        torch.testing.assert_close(mean[k].exp(), own.exp().mean(0))
        distances = [(row.exp() * (row - mean[k])).sum() for row in own]
        torch.testing.assert_close(spread[k], sum(distances) / len(own))
    assert (mean[3].exp() == 0.25).all() and spread[3] == 0


def test_sure_predictions_are_finite():
    log_prob = (1e4 * torch.eye(4, 3)).log_softmax(0).view(1, 4, 1, 3)
    mean, spread = class_predictions(
        log_prob, torch.zeros(1, 1, 3), torch.ones(1, 1, 3, dtype=torch.bool)
    )
    expected = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64) / 3
    torch.testing.assert_close(mean[0].exp(), expected)
    assert spread[0] == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert mean.isfinite().all()


def test_sums_of_all_processes_are_used():
    log_prob = torch.randn(1, 3, 2, 2).log_softmax(1)
    labels, mask = torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    seen = []
    class_predictions(log_prob, labels, mask, all_sum=lambda x: (seen.append(x), x)[1])
    assert [x.shape for x in seen] == [(3, 5)]


@pytest.fixture
def pixels():
    draw = torch.Generator().manual_seed(4)
    labels, images = torch.randint(5, (2, 200), generator=draw)
    labels[labels == 3] = 2
    labels[7] = 3
    return labels, images.clamp(max=3).sort().values


def test_partners_are_a_matching_within_classes(pixels):
    labels, images = pixels
    partners = random_partners(labels, images, torch.Generator().manual_seed(1))
    assert (labels[partners] == labels).all()
    assert partners.sort().values.tolist() == list(range(200))
    alone = partners == torch.arange(200)
    assert alone.nonzero().flatten().tolist() == [7]


def test_partners_are_from_other_images_while_these_suffice(pixels):
    labels, images = pixels
    partners = random_partners(labels, images)
    assert (images[partners] != images)[labels != 3].all()


def test_one_image_with_most_or_all_of_a_class_pairs_with_itself():
    labels = torch.zeros(10, dtype=torch.int64)
    for images in (torch.zeros(10).long(), torch.tensor([0] * 9 + [2])):
        partners = random_partners(labels, images)
        assert (partners != torch.arange(10)).all() and len(partners.unique()) == 10
    assert (images[partners] != images).sum() == 2


def test_partners_follow_the_generator(pixels):
    first, second, other = (
        random_partners(*pixels, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == second != other


def test_nothing_has_no_partner():
    empty = torch.zeros(0, dtype=torch.int64)
    assert random_partners(empty, empty).shape == (0,)
