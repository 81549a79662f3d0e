import pytest
import torch

from segkd.errors import ConfigError
from segkd.methods.base import Context
from segkd.methods.shared.local_nodes import (
    NO_CLASS,
    grid_nodes,
    image_nodes,
    pixel_nodes,
    region_nodes,
)
from segkd.methods.shared.node_sampler import NodeKeys, NodeSampler
from segkd.structures import Batch

IGNORE = 255
KINDS = ["region", "pixel", "grid", "image"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def generators(index, step=0):
    return [torch.Generator().manual_seed(100 * step + image) for image in index.tolist()]


def make(images=4, index=None, step=0, part=slice(None), gather=lambda x: x):
    """A context of 8x12 labels, and maps of two sizes with channels of their own."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(4, (images, 4, 6), generator=draw)
    labels[1, 0] = IGNORE
    labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[2, :, 4:] = False
    inside[3, :5] = False
    student = torch.randn(images, 3, 8, 12, generator=draw, dtype=torch.float64)
    teacher = torch.randn(images, 5, 4, 6, generator=draw, dtype=torch.float64)
    index = torch.arange(images) + 10 if index is None else index
    batch = Batch(
        torch.zeros(images, 3, 8, 12, dtype=torch.uint8)[part],
        labels[part],
        inside[part],
        index[part],
    )
    context = Context(
        batch,
        generator=torch.Generator().manual_seed(step),
        image_generators=generators(batch.index, step),
        gather=gather,
    )
    return student[part].requires_grad_(), teacher[part], context


def sample(kind, **options):
    student, teacher, context = make(**options)
    sampler = NodeSampler(NodeKeys(nodes=kind, pixels=5, grid=(2, 3)))
    return sampler([student, student * 2], [teacher], context)


def test_region_nodes_are_the_means_of_classes_in_images():
    student, _, context = make()
    labels = context.labels_at(8, 12)
    nodes = region_nodes([student], labels, labels != IGNORE)
    expected = []
    for image in range(4):
        for kind in range(4):
            here = [student[image, :, y, x] for y, x in (labels[image] == kind).nonzero().tolist()]
            if here:
                expected.append((image, kind, sum(here) / len(here)))
    assert list(zip(nodes.images.tolist(), nodes.classes.tolist(), strict=True)) == [
        (image, kind) for image, kind, _ in expected
    ]
    torch.testing.assert_close(nodes.values[0], torch.stack([mean for *_, mean in expected]))


def test_small_regions_make_no_node_at_any_resolution():
    labels = torch.zeros(1, 4, 6, dtype=torch.long)
    labels[0, 0, :2] = 1
    for factor in (1, 2):
        larger = labels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        maps, known = [torch.zeros(1, 2, *larger.shape[1:])], torch.ones_like(larger).bool()
        assert region_nodes(maps, larger, known, 2 / 24).classes.tolist() == [0, 1]
        assert region_nodes(maps, larger, known, 2.1 / 24).classes.tolist() == [0]


def test_pixels_that_are_not_known_are_in_no_region():
    maps, labels = torch.arange(4.0).view(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    known = torch.tensor([[[True, False], [True, False]]])
    nodes = region_nodes([maps], labels, known)
    assert nodes.values[0].tolist() == [[1.0]] and nodes.classes.tolist() == [0]


def test_image_nodes_are_means_over_valid_positions():
    student, _, context = make()
    mask = context.mask_at(8, 12)
    mask[1] = False
    nodes = image_nodes([student], mask)
    assert nodes.images.tolist() == [0, 2, 3] and set(nodes.classes.tolist()) == {NO_CLASS}
    for image, found in zip(nodes.images.tolist(), nodes.values[0], strict=True):
        torch.testing.assert_close(found, student[image][:, mask[image]].mean(1))


def test_grid_nodes_are_means_of_patches_with_enough_valid_positions():
    student, _, _ = make()
    mask = torch.ones(4, 8, 12, dtype=torch.bool)
    mask[0, :3, :4] = False  # one patch is valid by a quarter
    mask[2, :2, :4] = False  # and one by half
    nodes = grid_nodes([student], mask, (2, 3))
    assert nodes.images.tolist() == [0] * 5 + [1] * 6 + [2] * 6 + [3] * 6
    torch.testing.assert_close(nodes.values[0][0], student[0, :, :4, 4:8].mean((1, 2)))
    torch.testing.assert_close(nodes.values[0][11], student[2, :, 2:4, :4].mean((1, 2)))


def test_grid_has_no_more_patches_than_the_map():
    nodes = grid_nodes([torch.zeros(1, 2, 2, 3)], torch.ones(1, 2, 3, dtype=torch.bool), (4, 8))
    assert len(nodes.images) == 6


def test_pixel_nodes_are_balanced_and_belong_to_their_class():
    labels = torch.zeros(2, 6, 8, dtype=torch.long)
    labels[:, 0, :3] = 1
    labels[:, 1, :6] = 2
    labels[1, 5] = IGNORE
    places = torch.arange(2 * 48.0).view(2, 1, 6, 8)
    for seed in range(5):
        draws = generators(torch.arange(2), seed)
        nodes = pixel_nodes([places], labels, labels != IGNORE, 12, draws)
        place = nodes.values[0].flatten().long()
        assert torch.equal(labels.flatten()[place], nodes.classes)
        assert torch.equal(place // 48, nodes.images) and len(place.unique()) == 24
        for image in range(2):  # of 3, 6 and many: 3 of the first, the rest in turns
            counts = nodes.classes[nodes.images == image].bincount().tolist()
            assert counts[1] == 3 and sorted(counts) == [3, 4, 5]


def test_pixel_nodes_are_drawn_evenly():
    labels = torch.zeros(1, 2, 5, dtype=torch.long)
    places, seen = torch.arange(10.0).view(1, 1, 2, 5), torch.zeros(10)
    for seed in range(400):
        draws = [torch.Generator().manual_seed(seed)]
        nodes = pixel_nodes([places], labels, labels == 0, 3, draws)
        seen[nodes.values[0].flatten().long()] += 1
    assert seen.sum() == 1200 and ((seen - 120).abs() < 45).all()


def test_fewer_valid_pixels_than_asked_for_are_all_taken():
    labels = torch.full((1, 3, 3), IGNORE)
    labels[0, 0] = 2
    nodes = pixel_nodes(
        [torch.zeros(1, 1, 3, 3)], labels, labels != IGNORE, 5, generators(torch.arange(1))
    )
    assert nodes.classes.tolist() == [2, 2, 2]


@every_kind
def test_student_and_teacher_have_the_same_nodes(kind):
    student, _, context = make()
    nodes = NodeSampler(NodeKeys(nodes=kind, pixels=5, grid=(2, 3)))([student], [student], context)
    torch.testing.assert_close(nodes.student[0], nodes.teacher[0])
    assert nodes.student[0].requires_grad and not nodes.teacher[0].requires_grad


@every_kind
def test_maps_of_other_sizes_give_as_many_nodes_with_their_channels(kind):
    nodes = sample(kind)
    count = len(nodes.classes)
    assert count == len(nodes.images) > 3
    assert [rows.shape for rows in nodes.student] == [(count, 3)] * 2
    assert [rows.shape for rows in nodes.teacher] == [(count, 5)]
    torch.testing.assert_close(nodes.student[1], 2 * nodes.student[0])


@every_kind
def test_two_processes_gather_the_nodes_of_one(kind):
    alone, sent = sample(kind), []
    for part in (slice(0, 1), slice(1, 4)):
        calls = []
        sample(kind, part=part, gather=lambda x, calls=calls: calls.append(x) or x)
        sent.append(calls)
    joined = [torch.cat(pair) for pair in zip(*sent, strict=True)]
    expected = [*alone.student, *alone.teacher, alone.classes, alone.images]
    for found, wanted in zip(joined, expected, strict=True):
        torch.testing.assert_close(found, wanted)


@every_kind
def test_a_doubled_batch_has_every_node_twice(kind):
    student, teacher, context = make()
    twice = torch.arange(4).repeat(2)
    batch = context.batch
    doubled = Context(
        Batch(
            batch.images[twice], batch.labels[twice], batch.not_padding[twice], batch.index[twice]
        ),
        image_generators=generators(batch.index[twice]),
    )
    sampler = NodeSampler(NodeKeys(nodes=kind, pixels=5, grid=(2, 3)))
    once = sampler([student], [teacher], context)
    both = sampler([student[twice]], [teacher[twice]], doubled)
    for part in both.student[0].chunk(2):
        torch.testing.assert_close(part, once.student[0])


@every_kind
def test_invalid_positions_are_in_no_node(kind):
    student, _, context = make()
    hidden = ~context.mask_at(8, 12).unsqueeze(1)
    sampler = NodeSampler(NodeKeys(nodes=kind, pixels=5, grid=(2, 3)))
    clean = sampler([student], [student], make()[2])
    spoiled = student.detach() + 1e6 * hidden
    found = sampler([spoiled], [spoiled], make()[2])
    torch.testing.assert_close(found.student, clean.student)
    clean.student[0].sum().backward()
    assert not student.grad.masked_select(hidden).any()


@every_kind
def test_nothing_valid_gives_no_nodes(kind):
    student, teacher, context = make()
    context.batch.not_padding[:] = False
    nodes = NodeSampler(NodeKeys(nodes=kind))([student], [teacher], context)
    assert nodes.student[0].shape == (0, 3) and nodes.student[0].requires_grad
    assert len(nodes.classes) == len(nodes.images) == 0


@every_kind
def test_half_types_are_raised_before_averaging(kind):
    student, teacher, context = make()
    half = student.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = NodeSampler(NodeKeys(nodes=kind))([half], [teacher.bfloat16()], context)
    wide = NodeSampler(NodeKeys(nodes=kind))([half.double()], [teacher], make()[2])
    assert found.student[0].dtype is found.teacher[0].dtype is torch.float32
    torch.testing.assert_close(found.student[0].double(), wide.student[0], rtol=1e-5, atol=1e-6)


def test_more_nodes_than_the_limit_are_a_random_part_that_depends_on_the_generator():
    def limited(step):
        student, teacher, context = make(step=step)
        sampler = NodeSampler(NodeKeys(nodes="grid", grid=(4, 6), node_limit=7))
        return sampler([student], [teacher], context)

    student, teacher, context = make()
    full = NodeSampler(NodeKeys(nodes="grid", grid=(4, 6)))([student], [teacher], context)
    part, again, other = limited(0), limited(0), limited(1)
    assert part.student[0].shape == (7, 3) and part.teacher[0].shape == (7, 5)
    assert torch.equal(part.student[0], again.student[0])
    assert not torch.equal(part.student[0], other.student[0])
    place = [(full.student[0] == row).all(1).nonzero().item() for row in part.student[0]]
    assert place == sorted(set(place))
    assert torch.equal(full.teacher[0][place], part.teacher[0])
    assert torch.equal(full.images[place], part.images)


@pytest.mark.parametrize("kind", ["region", "pixel"])
def test_kinds_with_classes_ask_for_labels(kind):
    student, teacher, context = make()
    context.batch = context.batch.replace(labels=None)
    with pytest.raises(ConfigError, match="nodes: grid"):
        NodeSampler(NodeKeys(nodes=kind))([student], [teacher], context)
    assert NodeKeys(nodes=kind).needs_labels and not NodeKeys(nodes="grid").needs_labels


@pytest.mark.parametrize(
    "keys", [{"nodes": "pixels"}, {"min_area": 1.0}, {"grid": (0, 2)}, {"node_limit": 0}]
)
def test_bad_keys_are_refused(keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        NodeKeys(**keys)
