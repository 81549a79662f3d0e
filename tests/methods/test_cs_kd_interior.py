import pytest
import torch

from segkd.methods.cs_kd import interior


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_equals_a_look_at_each_window(radius):
    labels = torch.ones(2, 7, 9, dtype=torch.int64)
    labels[0, :, 5:], labels[1, 3, 3] = 0, -1
    found = interior(labels, radius)
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        rows, columns = (slice(max(0, i - radius), i + radius + 1) for i in (y, x))
        assert found[b, y, x] == (labels[b, rows, columns] == labels[b, y, x]).all()


def test_border_of_the_image_is_no_border_of_a_class():
    assert interior(torch.full((1, 2, 2), 255), 3).all()
