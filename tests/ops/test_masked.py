from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from segkd.modules.critic import Critic
from segkd.ops.masked import image_mean, position_mask, require_equal_shapes, unit_maps
from segkd.ops.squared_distance import masked_mse

MAPS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.ones(2, 4, 5, dtype=torch.bool)
MASK[0, :2] = False


def test_no_mask_is_a_full_one():
    assert position_mask(MAPS, None).all() and position_mask(MAPS, MASK) is MASK
    with pytest.raises(ValueError, match=r"mask has shape \(2, 8, 10\), expected \(2, 4, 5\)"):
        position_mask(MAPS, torch.ones(2, 8, 10, dtype=torch.bool))


LABELS = torch.arange(32).view(2, 4, 4) % 3
OF_MAPS = ["kd", "at", "ab", "nst", "ofd", "fitnets", "ft", "sp", "pkd", "cwd", "dist", "mgd"]
OF_MAPS += ["pairwise", "cirkd", "sad", "unix", "ld", "meal"]
OF_LABELS = ["dkd", "wsld", "ifvd", "boundary", "cs_kd", "tf_kd", "kdcl"]
FUNCTIONS = {  # of maps (2, 3, 4, 4): further arguments
    **{name: {} for name in OF_MAPS},
    **{name: {"labels": LABELS} for name in OF_LABELS},
    **{name: {"foreground": LABELS > 0} for name in ("fgd", "defeat")},
    "holistic": {"critic": Critic(3, condition_on_image=False, width=4)},
}


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 8), (2, 1, 4), (2, 1, 4, 4)], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_of_another_shape_is_refused(name, shape):
    """A mask for all images at once has to be expanded: sums would be over all, counts over one."""
    function = getattr(import_module(f"segkd.methods.{name}"), f"{name}_loss")
    student, teacher = MAPS[..., :4], MAPS[..., 1:]
    maps = [student] if name in ("cs_kd", "tf_kd") else [student, teacher]
    if name == "kdcl":
        maps = [student, [teacher]]
    with pytest.raises(ValueError, match=r"the mask has shape .*expected \(2, 4, 4\)"):
        function(*maps, mask=torch.ones(shape, dtype=torch.bool), **FUNCTIONS[name])


@pytest.mark.parametrize("name", ["dkd", "wsld", "cs_kd", "tf_kd", "kdcl"])
def test_labels_of_another_shape_are_refused(name):
    function = getattr(import_module(f"segkd.methods.{name}"), f"{name}_loss")
    student, teacher = MAPS[..., :4], MAPS[..., 1:]
    maps = {"dkd": [student, teacher], "wsld": [student, teacher], "kdcl": [student, [teacher]]}
    for labels in (LABELS[:1], LABELS.repeat(1, 2, 2)):
        with pytest.raises(ValueError, match=r"labels have shape .*expected \(2, 4, 4\)"):
            function(*maps.get(name, [student]), labels=labels)


def test_mse_is_over_valid_positions_and_channels():
    value = masked_mse(MAPS, -MAPS, MASK)
    positions = MAPS.permute(0, 2, 3, 1)[MASK]
    torch.testing.assert_close(value, F.mse_loss(positions, -positions))


def test_nothing_valid_is_a_zero_with_a_graph():
    maps = MAPS.clone().requires_grad_()
    value = masked_mse(maps, -MAPS, torch.zeros_like(MASK))
    value.backward()
    assert value == 0 and not maps.grad.any()


def test_unequal_shapes_name_the_repair():
    with pytest.raises(ValueError, match=r"\(2, 3, 4, 5\), teacher \(2, 2, 4, 5\). Align channels"):
        require_equal_shapes(MAPS, MAPS[:, :2])


def test_images_without_valid_positions_are_left_out():
    mask = MASK.clone()
    mask[1] = False
    assert image_mean(torch.tensor([3.0, float("nan")]), mask) == 3
    assert image_mean(torch.tensor([3.0, 5.0]), MASK) == 4
    assert image_mean(torch.tensor([3.0, 5.0]), torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e15])
def test_maps_have_norm_one_over_valid_positions(scale):
    maps = unit_maps((scale * MAPS).float(), MASK)
    torch.testing.assert_close(maps.norm(dim=2), torch.ones(2, 3))
    assert not maps.unflatten(2, (4, 5)).permute(0, 2, 3, 1)[~MASK].any()


def test_norm_has_the_right_gradient_and_none_of_a_dead_map():
    maps = MAPS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unit_maps(x, MASK), maps)
    dead = torch.zeros(1, 1, 4, 5, requires_grad=True)
    unit = unit_maps(dead, MASK[:1])
    unit.sum().backward()
    assert not unit.any() and not dead.grad.any()


def test_resolution_is_no_matter():
    small, large = MAPS, MAPS.repeat_interleave(2, -1).repeat_interleave(2, -2)
    mask = MASK.repeat_interleave(2, -1).repeat_interleave(2, -2)
    products = [
        unit @ unit.mT for unit in (unit_maps(1e-4 * small, MASK), unit_maps(1e-4 * large, mask))
    ]
    torch.testing.assert_close(*products)
