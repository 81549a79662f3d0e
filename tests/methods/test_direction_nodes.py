import pytest
import torch

from segkd.methods.base import Context
from segkd.methods.shared.direction_nodes import DirectionSampler
from segkd.methods.shared.local_nodes import NO_CLASS
from segkd.methods.shared.node_sampler import NodeKeys
from segkd.structures import Batch


def top(rows):
    """The first right singular vector of rows (n, C), positive in their mean."""
    vector = torch.linalg.svd(rows, full_matrices=False)[2][0]
    return vector * torch.sign(rows.mean(0) @ vector)


@pytest.fixture
def scene():
    draw = torch.Generator().manual_seed(2)
    maps = [torch.rand(2, c, 4, 6, generator=draw, dtype=torch.float64) for c in (5, 3)]
    labels = torch.randint(3, (2, 4, 6), generator=draw)
    labels[0, 0], labels[0, 1, :2] = 255, 255  # leaves one of six in the first cell
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[1, :, 3:] = False
    images = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    return maps, Batch(images, labels, inside, torch.tensor([7, 9]))


def groups_of(kind, batch):
    """(image, class, positions) of each node, from loops."""
    found = []
    for image, (labels, valid) in enumerate(zip(batch.labels, batch.valid, strict=True)):
        places = valid.nonzero().tolist()
        if kind == "image":
            found.append((image, NO_CLASS, places))
        elif kind == "region":
            for label in range(3):
                found.append((image, label, [p for p in places if labels[*p] == label]))
        else:
            for row in range(2):
                for column in range(2):
                    cell = [p for p in places if p[0] // 2 == row and p[1] // 3 == column]
                    if len(cell) >= 3:  # half of six
                        found.append((image, NO_CLASS, cell))
    return [node for node in found if node[2]]


@pytest.mark.parametrize("kind", ["grid", "region", "image"])
def test_a_node_is_the_direction_of_its_features(scene, kind):
    maps, batch = scene
    sampler = DirectionSampler(NodeKeys(nodes=kind, grid=(2, 2)))
    nodes = sampler(maps[:1], maps[1:], Context(batch))
    expected = groups_of(kind, batch)
    assert nodes.classes.tolist() == [label for _, label, _ in expected]
    assert nodes.images.tolist() == [(7, 9)[image] for image, _, _ in expected]
    for values, found in ((maps[0], nodes.student[0]), (maps[1], nodes.teacher[0])):
        for vector, (image, _, places) in zip(found, expected, strict=True):
            rows = torch.stack([values[image, :, y, x] for y, x in places])
            torch.testing.assert_close(vector, top(rows), rtol=0, atol=1e-4)


def test_a_pixel_has_its_feature_at_length_one(scene):
    maps, batch = scene
    generators = [torch.Generator().manual_seed(n) for n in range(2)]
    context = Context(batch, image_generators=generators)
    nodes = DirectionSampler(NodeKeys(nodes="pixel", pixels=4))(maps[:1], maps[1:], context)
    assert len(nodes.student[0]) == 8
    units = torch.nn.functional.normalize(maps[0].flatten(2).mT, dim=2).flatten(0, 1)
    distances = torch.cdist(nodes.student[0], units).min(1).values
    torch.testing.assert_close(distances, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_cells_are_those_of_the_means(scene):
    """Patches of maps that no grid divides are those of ``adaptive_avg_pool2d``."""
    _, batch = scene
    flat = [torch.eye(24, dtype=torch.float64).view(1, 24, 4, 6).repeat(2, 1, 1, 1)]
    full = batch.replace(not_padding=torch.ones_like(batch.not_padding), labels=None)
    nodes = DirectionSampler(NodeKeys(nodes="grid", grid=(3, 4)))(flat, flat, Context(full))
    pooled = torch.nn.functional.adaptive_avg_pool2d(flat[0], (3, 4)).flatten(2).mT.flatten(0, 1)
    assert torch.equal(nodes.student[0] > 1e-9, pooled > 0)
