import pytest
import torch
import torch.nn.functional as F

from segkd.errors import ConfigError
from segkd.methods.base import Context
from segkd.methods.shared.teacher_bank import BankKeys, TeacherBank
from segkd.structures import Batch

CLASSES, IGNORE = 4, 255


def batch(images=2, seed=0):
    """Labels at feature scale, 6x8, with void at the left and padding below."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES - 1, (images, 6, 8), generator=draw)  # the last is never seen
    labels[:, :, 0] = IGNORE
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[:, 5] = False
    pixels = torch.zeros(images, 3, 6, 8, dtype=torch.uint8)
    return Batch(pixels, labels, inside, torch.arange(images), IGNORE)


def context(of, seed=0):
    generators = [torch.Generator().manual_seed(seed + int(index)) for index in of.index]
    return Context(of, generator=torch.Generator().manual_seed(seed), image_generators=generators)


def telling(of):
    """Features that point, for each pixel, to its class; void and padding to another place."""
    known = of.valid
    places = torch.where(known, of.labels, CLASSES)
    noise = 0.1 * torch.rand(len(of), CLASSES + 1, 6, 8)
    return 7 * (F.one_hot(places, CLASSES + 1).permute(0, 3, 1, 2).float() + noise)


def bank(kinds=("pixel", "region"), **keys):
    keys = {"pixel_queue": 12, "region_queue": 4, "pixels_per_class": 3, **keys}
    return TeacherBank(BankKeys(**keys), kinds, CLASSES, CLASSES + 1)


def filled(steps=3, **keys):
    made = bank(**keys)
    for seed in range(steps):
        of = batch(seed=seed)
        made.fill(telling(of), context(of, seed))
    return made


@pytest.mark.parametrize("kind", ["pixel", "region"])
def test_every_entry_is_of_the_class_of_its_ring(kind):
    queue = getattr(filled(bank_dtype="float32"), kind)
    for which in range(CLASSES - 1):
        entries = queue.entries[which, : queue.written[which]]
        assert len(entries) and (entries.argmax(1) == which).all()
        torch.testing.assert_close(entries.norm(dim=1), torch.ones(len(entries)))
    assert queue.written[-1] == 0


def test_pixels_by_the_public_index_are_of_other_classes():
    """The test above would fail with positions that count within the class, not in the map."""
    of = batch()
    features = telling(of).flatten(2)
    wrong = 0
    for which in range(CLASSES - 1):
        own = (of.labels[0].flatten() == which).nonzero()[:, 0]
        places = torch.randperm(len(own))[:3]
        wrong += (features[0][:, places].argmax(0) != which).sum()
    assert wrong > 0


def test_counts_are_pixels_and_regions_of_the_images():
    made, of = bank(), batch()
    made.fill(telling(of), context(of))
    assert made.pixel.written.tolist() == [6, 6, 6, 0]
    assert made.region.written.tolist() == [2, 2, 2, 0]


def test_region_is_the_mean_of_unit_vectors():
    made, of = bank(bank_dtype="float32"), batch()
    features = telling(of)
    made.fill(features, context(of))
    unit = features / features.norm(dim=1, keepdim=True)
    mean = unit[0][:, (of.labels[0] == 1) & of.not_padding[0]].mean(1)
    torch.testing.assert_close(made.region.entries[1, 0], mean / mean.norm())


def test_samples_are_of_all_classes_seen_and_of_no_other():
    made = filled(pixel_keys=40, region_keys=9)
    of = batch()
    found = {kind: (keys, known) for kind, keys, known in made.sample(context(of))}
    assert found["pixel"][0].shape == (40, CLASSES + 1) and len(found["region"][0]) == 12
    for keys, known in found.values():
        classes = torch.arange(CLASSES).repeat_interleave(len(keys) // CLASSES)
        assert torch.equal(known, classes < CLASSES - 1)
        assert torch.equal(keys[known].argmax(1), classes[known])


def test_a_bank_of_one_kind_holds_no_other():
    made = filled(kinds=("region",))
    assert {name.split(".")[0] for name in made.state_dict()} == {"region"}
    assert [kind for kind, *_ in made.sample(context(batch()))] == ["region"]


def test_what_is_stored_takes_half_of_the_memory():
    assert filled().pixel.entries.dtype is torch.bfloat16
    assert filled(bank_dtype="float32").pixel.entries.dtype is torch.float32


def test_more_than_a_ring_holds_is_refused():
    with pytest.raises(ConfigError, match=r"pixel_queue=2 .* pixels_per_class=3"):
        bank(pixel_queue=2)
    made, of = bank(region_queue=1), batch()
    with pytest.raises(ConfigError, match=r"region_queue: a queue of 1 .* at least 2"):
        made.fill(telling(of), context(of))
