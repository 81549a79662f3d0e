import pytest
import torch

from segkd.modules.class_queue import ClassQueue, class_means, pick_per_class, pick_valid


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class ListQueue:
    """The same with a Python list per class: append, forget the oldest."""

    def __init__(self, classes, size):
        self.lists, self.size = [[] for _ in range(classes)], size

    def push(self, vectors, present):
        for image, there in zip(vectors, present, strict=True):
            for held, rows, kept in zip(self.lists, image, there, strict=True):
                held.extend(row for row, is_there in zip(rows, kept, strict=True) if is_there)
                del held[: max(0, len(held) - self.size)]


def in_order(queue, which):
    """The entries of a class from the oldest to the newest."""
    size, written = queue.entries.shape[1], int(queue.written[which])
    if written <= size:
        return queue.entries[which, :written]
    return queue.entries[which].roll(-(written % size), dims=0)


@pytest.mark.parametrize("size", [6, 7, 20])
def test_equals_a_list_per_class_that_forgets_the_oldest(size):
    queue, lists, draw = ClassQueue(3, size, 2), ListQueue(3, size), seeded()
    for _ in range(9):
        vectors = torch.randn(2, 3, 3, 2, generator=draw)
        present = torch.rand(2, 3, 3, generator=draw) > torch.tensor([0.2, 0.7, 1.0])[:, None]
        queue.push(vectors, present)
        lists.push(vectors, present)
        for which, held in enumerate(lists.lists):
            expected = torch.stack(held) if held else torch.empty(0, 2)
            assert torch.equal(in_order(queue, which), expected)
    assert queue.written[0] > size and queue.written[2] == 0


def test_an_update_larger_than_the_ring_is_refused():
    queue = ClassQueue(3, 5, 2)
    with pytest.raises(ValueError, match=r"queue of 5 .* 2 images .* up to 3 .* at least 6"):
        queue.push(torch.zeros(2, 3, 3, 2), torch.ones(2, 3, 3, dtype=torch.bool))


def filled(counts, size=10):
    """A queue in which entry n of class k is (k, n + 1)."""
    queue = ClassQueue(len(counts), size, 2)
    for which, count in enumerate(counts):
        for number in range(count):
            present = torch.zeros(1, len(counts), 1, dtype=torch.bool)
            present[0, which] = True
            queue.push(torch.tensor([which, number + 1.0]).expand(1, len(counts), 1, 2), present)
    return queue


@pytest.mark.parametrize("per_class", [1, 4, 10, 50])
def test_samples_are_written_entries_of_each_class(per_class):
    counts = [0, 3, 10, 25]
    queue = filled(counts)
    for seed in range(20):
        keys, keep = queue.sample(per_class, seeded(seed))
        assert keep.view(4, -1).any(1).tolist() == [False, True, True, True]
        for which, rows in enumerate(keys.view(4, per_class, 2)):
            if counts[which]:
                assert (rows[:, 0] == which).all()
                assert (rows[:, 1] > max(0, counts[which] - 10)).all()
                assert (rows[:, 1] <= counts[which]).all()


def test_samples_cover_all_entries_evenly():
    queue = filled([7, 10])
    draw = seeded()
    rows = torch.stack([queue.sample(4, draw)[0].view(2, 4, 2)[:, :, 1] for _ in range(3000)])
    for which, count in enumerate([7, 10]):
        share = torch.bincount(rows[:, which].flatten().long(), minlength=count + 1)[1:] / 12000
        assert share.tolist() == pytest.approx([1 / count] * count, abs=0.02)


def test_as_many_draws_as_entries_return_each_once():
    keys, _ = filled([10]).sample(10, seeded())
    assert keys[:, 1].tolist() == list(range(1, 11))


def test_an_empty_queue_keeps_nothing():
    keys, keep = ClassQueue(3, 4, 2).sample(5, seeded())
    assert keys.shape == (15, 2) and not keep.any()


def test_state_goes_through_a_checkpoint(tmp_path):
    queue = ClassQueue(2, 4, 3, torch.bfloat16)
    queue.push(torch.randn(2, 2, 1, 3), torch.ones(2, 2, 1, dtype=torch.bool))
    torch.save(queue.state_dict(), tmp_path / "state.pt")
    other = ClassQueue(2, 4, 3, torch.bfloat16)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.entries.dtype is torch.bfloat16
    assert torch.equal(other.entries, queue.entries) and torch.equal(other.written, queue.written)
    assert torch.equal(other.sample(3, seeded())[0], queue.sample(3, seeded())[0])


LABELS = torch.tensor([[1, 1, 0, 255, 2, 1, 1, 3, 0, 1], [255, -1, 7, 2, 2, 2, 2, 2, 2, 2]])


def test_picked_positions_have_their_class_and_do_not_repeat():
    for seed in range(30):
        generators = [seeded(seed), seeded(seed + 100)]
        positions, present = pick_per_class(LABELS, 4, 3, generators)
        assert positions.shape == present.shape == (2, 4, 3)
        counts = torch.stack([(which == LABELS).sum(1) for which in range(4)], dim=1)
        assert torch.equal(present.sum(2), counts.clamp(max=3))
        for image in range(2):
            for which in range(4):
                chosen = positions[image, which][present[image, which]].tolist()
                assert len(set(chosen)) == len(chosen)
                assert all(LABELS[image, position] == which for position in chosen)


def public_index(labels, which, count, generator):
    """The public error: a permutation of a class's count, used as positions of the whole map."""
    own = (labels == which).nonzero()[:, 0]
    return torch.randperm(len(own), generator=generator)[:count]


def test_the_public_index_error_would_be_seen():
    """It takes the first positions of the map, whatever their class."""
    positions = public_index(LABELS[1], 2, 3, seeded())
    assert not (LABELS[1, positions] == 2).all()


def test_every_position_of_a_class_is_picked_equally_often():
    times = torch.zeros(10)
    for seed in range(2000):
        positions, present = pick_per_class(LABELS[:1], 4, 2, [seeded(seed)])
        times += torch.bincount(positions[0, 1][present[0, 1]], minlength=10)
    assert times[LABELS[0] == 1].tolist() == pytest.approx([800] * 5, abs=80)
    assert not times[LABELS[0] != 1].any()


def test_more_per_class_than_positions():
    positions, present = pick_per_class(LABELS, 4, 40, [seeded(), seeded()])
    assert present.sum() == 16 and positions.max() <= 9 and positions.min() >= 0


def test_class_means_equal_the_loop():
    nodes = torch.randn(2, 10, 3, generator=seeded(), dtype=torch.float64)
    factor = torch.rand(2, 10, generator=seeded(), dtype=torch.float64)
    means, present = class_means(nodes, LABELS, 4, factor)
    nodes = nodes * factor.unsqueeze(2)
    for image in range(2):
        for which in range(4):
            own = LABELS[image] == which
            assert present[image, which] == own.any()
            expected = nodes[image][own].mean(0) if own.any() else torch.zeros(3).double()
            torch.testing.assert_close(means[image, which], expected)


def test_valid_positions_are_picked_once_each():
    keep = torch.rand(2, 30, generator=seeded()) > 0.5
    places, present = pick_valid(keep, 12, [seeded(1), seeded(2)])
    assert places.shape == (2, 12) and present.all()
    for image, chosen in enumerate(places):
        assert keep[image, chosen].all() and len(chosen.unique()) == 12
    _, present = pick_valid(keep, 40, [seeded(1), seeded(2)])
    assert torch.equal(present.sum(1), keep.sum(1))
