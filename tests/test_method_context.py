"""What a method is told of a batch costs little: masks of features are made at their size."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segkd import method_context
from segkd.method_context import Context, nearest
from segkd.structures import Batch


def make_batch(height=64, width=96):
    labels = torch.randint(3, (2, height, width))
    labels[:, :, :9] = 255
    not_padding = torch.ones(2, height, width, dtype=torch.bool)
    not_padding[1, height // 2 :] = False
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    return Batch(images, labels, not_padding, torch.arange(2))


def test_indices_of_neighbours_are_made_once_per_size_and_device():
    method_context._kept_places.cache_clear()
    values = torch.arange(2 * 7 * 10).view(2, 7, 10)
    expected = torch.nn.functional.interpolate(values[None].double(), (3, 4))[0].long()
    for _ in range(3):
        assert torch.equal(nearest(values, 3, 4), expected)
    found = method_context._kept_places.cache_info()
    assert (found.misses, found.hits) == (2, 4)  # of rows and of columns
    nearest(values.to("meta"), 3, 4)
    assert method_context._kept_places.cache_info().misses == 4


class Compared(TorchDispatchMode):
    """Notes how many numbers each comparison and each combination of masks looks at."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in (
            "ne",
            "eq",
            "bitwise_and",
            "logical_and",
            "bitwise_not",
        ):
            self.sizes.append(result.numel())
        return result


def test_labels_are_sampled_before_they_are_compared():
    batch = make_batch()
    context = Context(batch)
    for height, width in ((8, 12), (7, 11)):
        with Compared() as seen:
            mask, labels = context.mask_at(height, width), context.labels_at(height, width)
        assert seen.sizes and max(seen.sizes) == 2 * height * width
        assert torch.equal(mask, nearest(batch.valid, height, width))
        kept = nearest(batch.labels, height, width)
        assert torch.equal(labels[mask], kept[mask]) and (labels[~mask] == 255).all()


def test_gathering_together_is_gathering_one_by_one_where_there_is_no_exchange():
    context = Context(make_batch(), gather=lambda x: torch.cat([x, x]))
    rows, flags = context.gather_rows(torch.arange(2), torch.tensor([True, False]))
    assert rows.tolist() == [0, 1, 0, 1] and flags.tolist() == [True, False, True, False]
    both = Context(make_batch(), exchange=lambda *tensors: tensors[::-1])
    assert both.gather_rows(1, 2) == (2, 1)
