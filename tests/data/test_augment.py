"""``data.augment``: image, label, padding and lane points go together; nothing else is random."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_lanes import toy_set

from segkd.data.augment import library
from segkd.data.augment_list import augment_problems
from segkd.data.base import FILL, DataConfig, Dataset, Sample
from segkd.data.lane_base import LaneDataConfig
from segkd.data.lane_geometry import where_shown
from segkd.data.loader import eval_loader, train_loader
from segkd.data.transforms import TrainTransform
from segkd.data.unlabeled import Images, joined
from segkd.errors import ConfigError

OFF = {"scale": (1, 1), "flip": 0}
SHIFTED = {"Affine": {"translate_px": {"x": [7, 7], "y": [-3, -3]}, "p": 1}}
INVERTED = {"InvertImg": {"p": 1}}


def transform(*entries, ignore_index=255, **keys) -> TrainTransform:
    keys = {**OFF, "augment": list(entries), **keys}
    return TrainTransform(DataConfig(name="toy", **keys), ignore_index)


def lane_transform(*entries, **keys) -> TrainTransform:
    keys = {**OFF, "augment": list(entries), **keys}
    return TrainTransform(LaneDataConfig(name="toy", **keys), 255, True)


def noise(height=40, width=60, seed=0):
    draw = np.random.default_rng(seed)
    image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, draw.integers(0, 5, (height, width), dtype=np.uint8)


# -- geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore_index", [255, -1, 4])
def test_a_shift_moves_everything_alike_and_brings_in_padding(ignore_index):
    image, label = noise()
    label = label.astype(np.int32)
    label[5, 5] = ignore_index  # void, not padding
    augment = transform(SHIFTED, ignore_index=ignore_index)
    moved, moved_label, inside = augment(image, label, 0)
    assert np.array_equal(moved[:37, 7:], image[3:, :53])
    assert np.array_equal(moved_label[:37, 7:], label[3:, :53])
    assert inside[:37, 7:].all() and inside.sum() == 37 * 53
    assert (moved[~inside] == FILL).all() and (moved_label[~inside] == ignore_index).all()
    assert moved_label.dtype == label.dtype and moved.dtype == np.uint8


def test_the_last_classes_that_bytes_hold_are_neither_void_nor_padding():
    image, label = noise()
    label += 250  # 250 to 254
    label[5, 5] = 255
    moved, moved_label, inside = transform(SHIFTED)(image, label, 0)
    assert np.array_equal(moved_label[:37, 7:], label[3:, :53]) and moved_label.dtype == np.uint8
    assert np.array_equal(moved[:37, 7:], image[3:, :53]) and inside.sum() == 37 * 53


def test_padding_of_the_crop_moves_and_has_one_colour_after_changes_of_colours():
    image, label = noise()
    augment = transform(SHIFTED, INVERTED, crop=(60, 80))
    moved, moved_label, inside = augment(image, label, 1)
    before = transform(crop=(60, 80))(image, label, 1)
    assert np.array_equal(inside[:57, 7:], before[2][3:, :73]) and not inside[:, :7].any()
    assert (moved[~inside] == FILL).all() and (moved_label[~inside] == 255).all()
    shown = np.zeros_like(inside)
    shown[:57, 7:] = before[2][3:, :73]
    assert np.array_equal(moved[shown], 255 - before[0][3:, :73][shown[:57, 7:]])


def test_the_border_is_mixed_with_padding_not_with_black():
    image, label = np.full((40, 60, 3), FILL, np.uint8), np.ones((40, 60), np.uint8)
    augment = transform({"Affine": {"rotate": [9, 9], "p": 1}})
    moved, _, inside = augment(image, label, 0)
    assert 0.5 < inside.mean() < 0.99 and (moved == FILL).all()


@pytest.mark.parametrize(
    "entry",
    [
        {"Affine": {"rotate": [-20, 20], "scale": [0.8, 1.3], "shear": [-9, 9], "p": 1}},
        {"Perspective": {"p": 1}},
        {"SafeRotate": {"p": 1}},
        {"CropAndPad": {"percent": [-0.2, 0.2], "p": 1}},
        {"HorizontalFlip": {"p": 1}},
        {"VerticalFlip": {"p": 1}},
        {"ElasticTransform": {"alpha": 60, "sigma": 8, "p": 1}},
        {"GridDistortion": {"p": 1}},
        {"OpticalDistortion": {"distort_limit": [-0.3, 0.3], "p": 1}},
        {"ThinPlateSpline": {"scale_range": [0.05, 0.1], "p": 1}},
        {"RandomGridShuffle": {"p": 1}},
        {"GridElasticDeform": {"num_grid_xy": [4, 3], "magnitude": 4, "p": 1}},
        {"D4": {"p": 1}},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_labels_stay_under_their_pixels(entry):
    """The image says of each pixel where it was; nearest and linear differ by less than a pixel."""
    rows, columns = np.mgrid[:120, :120].astype(np.uint8)
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    label = (rows // 20 * 6 + columns // 20).astype(np.uint8)
    augment = transform(entry, crop=(120, 120))
    changed = 0
    for seed in range(5):
        moved, moved_label, inside = augment(image, label, seed)
        y, x = moved[..., 0].astype(int), moved[..., 1].astype(int)
        steps = [np.abs(np.diff(moved[..., :2].astype(int), axis=axis)).max(2) for axis in (0, 1)]
        even = np.zeros((120, 120), bool)  # neither at the border nor at a cut
        even[1:-1, 1:-1] = (steps[0][1:, 1:-1] < 4) & (steps[1][1:-1, 1:] < 4)
        even &= inside & np.roll(inside, 1, 0) & np.roll(inside, 1, 1)
        even &= np.roll(inside, -1, 0) & np.roll(inside, -1, 1)
        far = (y % 20 > 2) & (y % 20 < 17) & (x % 20 > 2) & (x % 20 < 17)
        seen = even & far
        assert seen.mean() > 0.15
        assert (moved_label == y // 20 * 6 + x // 20)[seen].all()
        changed += not np.array_equal(moved, image)
    assert changed >= 3


def test_dropped_parts_keep_label_and_points():
    image, label = noise()
    points = (np.array([[10.0, 30.0], [20.0, 5.0], [50.0, 20.0]], np.float32),)
    augment = lane_transform({"GridDropout": {"p": 1}}, {"PixelDropout": {"p": 1}})
    moved, moved_label, inside, moved_points = augment.with_lanes(image, label, points, 0)
    assert (moved == 0).all(axis=2).mean() > 0.2
    assert np.array_equal(moved_label, label) and inside.all()
    assert np.array_equal(moved_points[0], points[0])


@pytest.mark.parametrize("ids", [(0, 253), (0, 254), (0, 700)])
def test_all_class_ids_pass(ids):
    label = np.zeros((40, 60), np.int32)
    label[:, 30:] = ids[1]
    label[0] = 999
    augment = transform(SHIFTED, {"RandomFog": {"p": 1}}, ignore_index=999)
    moved = augment(noise()[0], label, 0)[1]
    assert set(np.unique(moved)) == {*ids, 999} and (moved[1:30, 40:] == ids[1]).all()
    assert moved.dtype == np.int32


def test_transforms_of_colours_leave_the_rest_alone():
    image, label = noise()
    moved, moved_label, inside = transform(INVERTED)(image, label, 0)
    assert np.array_equal(moved, 255 - image)
    assert np.array_equal(moved_label, label) and inside.all()


def test_images_without_labels_are_augmented_alike():
    image, label = noise()
    augment = transform({"Affine": {"rotate": [-20, 20], "p": 1}}, {"GaussNoise": {"p": 1}})
    with_label, without = augment(image, label, 3), augment(image, None, 3)
    assert np.array_equal(with_label[0], without[0]) and without[1] is None
    assert np.array_equal(with_label[2], without[2]) and not without[2].all()


# -- lanes -----------------------------------------------------------------------------------------


def dots(points, size=(120, 200)):
    """An image of Gaussian dots, one per channel."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.zeros((*size, 3))
    for channel, (x, y) in enumerate(points):
        image[..., channel] = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
    return image.round().astype(np.uint8)


@pytest.mark.parametrize(
    "entry",
    [
        {"Affine": {"rotate": [-10, 10], "scale": [0.9, 1.1], "translate_percent": 0.05, "p": 1}},
        {"ShiftScaleRotate": {"rotate_limit": [-10, 10], "p": 1}},
        {"Rotate": {"limit": [-15, 15], "p": 1}},
        {"SafeRotate": {"limit": [-15, 15], "p": 1}},
        {"Perspective": {"scale": [0.02, 0.05], "p": 1}},
        {"CropAndPad": {"percent": [-0.08, 0.08], "p": 1}},
        {"ElasticTransform": {"alpha": 600, "sigma": 12, "p": 1}},
        {"GridDistortion": {"distort_limit": [-0.2, 0.2], "p": 1}},
        {"OpticalDistortion": {"distort_limit": [-0.2, 0.2], "p": 1}},
        {"ThinPlateSpline": {"scale_range": [0.05, 0.1], "p": 1}},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_points_go_where_the_image_goes(entry):
    """The middle of a drawn dot is found at its point."""
    points = np.array([[60, 50], [100, 80], [140, 40]], np.float32)
    image = dots(points)
    augment = lane_transform(entry)
    seen, far = 0, 0.0
    for seed in range(6):
        moved, _, _, (lane, none) = augment.with_lanes(image, None, (points, None), seed)
        assert none is None and lane.dtype == np.float32
        for channel, (x, y) in enumerate(lane):
            if not (12 < x < 187 and 12 < y < 107):
                continue
            part = moved[round(y) - 5 : round(y) + 6, round(x) - 5 : round(x) + 6, channel]
            mass = np.where(part > 40, part, 0).astype(float)
            grid = np.mgrid[-5:6, -5:6] * mass
            middle = grid.reshape(2, -1).sum(1) / mass.sum()
            assert np.hypot(round(y) + middle[0] - y, round(x) + middle[1] - x) < 0.9
            seen, far = seen + 1, max(far, np.abs((x, y) - points[channel]).max())
    assert seen >= 12 and far > 0.9


def test_gaps_empty_slots_and_points_beyond_the_image_stay():
    gap = np.full((1, 2), np.nan)
    one = np.concatenate([[[30.0, 39.0], [25.0, 10.0]], gap, [[90.0, 50.0], [-20.0, -9.0]]])
    lanes = (None, one.astype(np.float32), None, np.empty((0, 2), np.float32))
    moved = lane_transform(SHIFTED).with_lanes(*noise(), lanes, 0)[3]
    assert moved[0] is None and moved[2] is None and moved[3].shape == (0, 2)
    assert np.allclose(moved[1], one + np.array((7, -3)), equal_nan=True, atol=1e-3)
    assert lane_transform(SHIFTED).with_lanes(*noise(), (None, None), 0)[3] == (None, None)
    bent = lane_transform({"OpticalDistortion": {"p": 1}}).with_lanes(*noise(), lanes, 0)[3]
    assert np.isnan(bent[1]).all(axis=1).tolist() == [False, False, True, False, False]


def test_batches_of_lane_sets_hold_points_and_existence_after_the_list():
    before, after = (
        next(iter(train_loader(toy, config=toy.config, batch_size=2, seed=0, start=0, stop=1)))
        for toy in (
            toy_set(crop=[118, 328], augment=augment, **OFF)
            for augment in ([], [{"Affine": {"translate_px": {"x": 130, "y": 0}, "p": 1}}])
        )
    )
    assert before.extra["exist"].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]
    assert after.extra["exist"].tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]  # out of the image
    there = after.extra["exist"] == 1
    shifted = before.extra["lanes"][there] + torch.tensor([130.0, 0.0])
    assert torch.allclose(after.extra["lanes"][there], shifted, atol=1e-3)
    assert after.extra["lanes"][~there].isnan().all()
    assert (after.labels[:, :, :130] == 255).all() and (after.labels[:, :, 130:] < 5).all()


@pytest.mark.parametrize("strength", [0.0, 4.0, 15.0])
def test_a_map_is_inverted_where_it_folds_and_beyond_it(strength):
    """Points are found at places that show them, if any place does."""
    rows, columns = np.mgrid[:90, :130].astype(np.float32)
    map_x = columns + strength * np.sin(rows / 7) + 5
    map_y = rows + strength * np.cos(columns / 6)
    draw = np.random.default_rng(0)
    points = draw.uniform((-20, -20), (150, 110), (200, 2))
    found = where_shown(points, map_x, map_y)
    apart = np.hypot(map_x - points[:, :1, None], map_y - points[:, 1:, None])
    shown = apart.min(axis=(1, 2)) < 1.0
    place = found[shown].round().astype(int).clip(0, (129, 89))
    missed = np.hypot(
        map_x[place[:, 1], place[:, 0]] - points[shown][:, 0],
        map_y[place[:, 1], place[:, 0]] - points[shown][:, 1],
    )
    assert shown.sum() > 50 and missed.max() < 2
    if strength == 0:
        assert np.allclose(found, points - (5, 0))


# -- randomness ------------------------------------------------------------------------------------

SEVERAL = (
    {"Affine": {"rotate": [-9, 9], "scale": [0.8, 1.2], "p": 0.5}},
    {
        "OneOf": {
            "p": 0.7,
            "transforms": [
                {"RandomRain": {}},
                {"RandomFog": {}},
                {"Sequential": {"transforms": [{"GaussNoise": {}}, "MotionBlur"], "p": 1}},
            ],
        }
    },
    {"SomeOf": {"n": 2, "transforms": ["ToGray", "RandomShadow", {"CoarseDropout": {"p": 1}}]}},
    {"ElasticTransform": {"alpha": 30, "sigma": 6}},
)


class Toy(Dataset):
    """Noise of different sizes, or of one height."""

    name = "toy"
    height: int | None = None
    classes = ("a", "b", "c", "d", "e")
    palette = np.zeros((5, 3), np.uint8)

    def __init__(self, *entries, **keys) -> None:
        keys = {"crop": (24, 32), "augment": list(entries), **keys}
        super().__init__(DataConfig(name="toy", **keys), "train")
        self.reads = 0

    def __len__(self) -> int:
        return 5

    def read(self, index: int) -> Sample:
        self.reads += 1
        return Sample(*noise(self.height or 30 + index, 40, seed=index), f"image{index}")


def batches(toy: Toy, dataset=None, **keys):
    keys = {"batch_size": 4, "seed": 3, "start": 0, "stop": 4} | keys
    return list(train_loader(dataset or toy, config=toy.config, **keys))


def equal(ours, others) -> bool:
    return len(ours) == len(others) > 0 and all(
        torch.equal(one, other)
        for a, b in zip(ours, others, strict=True)
        for one, other in zip(a.tensors(), b.tensors(), strict=True)
    )


def test_workers_and_resuming_change_nothing():
    alone = batches(Toy(*SEVERAL, workers=0))
    assert equal(alone, batches(Toy(*SEVERAL, workers=2)))
    assert equal(alone[2:], batches(Toy(*SEVERAL, workers=1), start=2))
    assert not equal(alone, batches(Toy(*SEVERAL, workers=0), seed=4))


def test_the_global_generators_stay_untouched():
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    before = state()
    batches(Toy(*SEVERAL, workers=0))
    assert state() == before


def test_what_is_kept_in_memory_stays_as_it_is():
    """Images that no built-in transform copies."""
    keys = {"workers": 0, "crop": None, **OFF}
    kept = Toy(*SEVERAL, cache=1, **keys)
    kept.height = 30
    plain = Toy(*SEVERAL, **keys)
    plain.height = 30
    assert equal(batches(plain, stop=9), batches(kept, stop=9))
    assert kept.reads == 5


def test_a_sample_depends_on_its_seed_alone_in_every_process():
    image, label = noise()
    augment = transform(*SEVERAL)
    first = augment(image, label, 7)
    for seed in range(8):
        augment(image, label, seed)
    copy = pickle.loads(pickle.dumps(augment))
    for other in (augment(image, label, 7), copy(image, label, 7)):
        assert all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    lanes = lane_transform(*SEVERAL)
    points = (np.array([[10.0, 30.0], [20.0, 5.0]], np.float32),)
    again = pickle.loads(pickle.dumps(lanes)).with_lanes(image, label, points, 3)[3]
    assert np.array_equal(again[0], lanes.with_lanes(image, label, points, 3)[3][0])


def test_transforms_of_one_probability_do_not_come_together():
    """As they do where each begins with the same seed."""
    image = np.full((8, 8, 3), 200, np.uint8)
    augment = transform({"InvertImg": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}}, flip=0.5)
    label = np.arange(64, dtype=np.uint8).reshape(8, 8)
    drawn = [augment(image, label, seed) for seed in range(400)]
    facts = np.array(
        [(i[0, 0, 0] < 99, m[0, 0] // 8 == 7, m[0, 0] % 8 == 7) for i, m, _ in drawn], float
    )
    assert np.abs(facts.mean(axis=0) - 0.5).max() < 0.1
    assert np.abs(np.corrcoef(facts.T) - np.eye(3)).max() < 0.2


def test_the_list_is_applied_in_its_order():
    image, label = noise()
    posterized = {"Posterize": {"num_bits": 1, "p": 1}}
    one = transform(INVERTED, posterized)(image, label, 0)[0]
    other = transform(posterized, INVERTED)(image, label, 0)[0]
    assert np.array_equal(one, (255 - image) & 128)
    assert np.array_equal(other, 255 - (image & 128))


def test_groups_choose():
    image, label = noise()
    entry = {
        "OneOf": {"p": 0.5, "transforms": [{"InvertImg": {"p": 3 / 4}}, {"ToGray": {"p": 1 / 4}}]}
    }
    augment, seen = transform(entry), []
    grey = transform({"ToGray": {"p": 1}})(image, label, 0)[0]
    for seed in range(300):
        drawn = augment(image, label, seed)[0]
        seen.append([np.array_equal(drawn, known) for known in (image, 255 - image, grey)])
    shares = np.mean(seen, axis=0)
    assert shares.sum() == 1 and np.abs(shares - (1 / 2, 3 / 8, 1 / 8)).max() < 0.08


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_colour_jitter_is_drawn_as_before(flip):
    """With and without the list: the jitter's seed is drawn after the window and the flip."""
    image, label = noise()
    reference = library().ColorJitter(
        brightness=0.25, contrast=0.25, saturation=0.25, hue=0.05, p=1
    )
    plain = transform(color_jitter=0.5, flip=flip)
    changed = transform({"NoOp": {"p": 1}}, color_jitter=0.5, flip=flip)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rng.uniform(1, 1), rng.integers(1), rng.integers(1)
        flipped = random.Random(int(rng.integers(2**31))).random() < flip
        reference.set_random_seed(int(rng.integers(2**31)))
        wanted = reference(image=np.ascontiguousarray(image[:, ::-1] if flipped else image))
        assert np.array_equal(plain(image, label, seed)[0], wanted["image"])
        assert np.array_equal(changed(image, label, seed)[0], wanted["image"])


# -- where it is used ------------------------------------------------------------------------------


def test_unlabelled_images_are_augmented_too():
    toy = Toy(INVERTED, workers=0, crop=None, **OFF)
    images = [np.full((30, 40, 3), 250, np.uint8)] * 3
    toy.read = lambda index: Sample(np.full((30, 40, 3), 240, np.uint8), noise(30)[1][:, :40], "a")
    both = joined(toy, Images(images, toy), 0.5, 4, 1)
    (batch,) = batches(toy, both, stop=1)
    assert batch.labelled.tolist().count(False) == 2
    assert (batch.images[batch.labelled] == 15).all() and (batch.images[~batch.labelled] == 5).all()


def test_evaluation_sees_images_as_they_are():
    toy = Toy(INVERTED, workers=0)
    for (batch, _), index in zip(eval_loader(toy), range(5), strict=True):
        assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), toy.read(index).image)


def test_what_fails_in_training_is_one_message():
    """Images smaller than what the transform was tried on."""
    augment = transform({"GridDropout": {"unit_size_range": [100, 200], "p": 1}})
    image, label = noise(20, 30)
    with pytest.raises(ConfigError, match=r"^data\.augment: ") as caught:
        augment(image, label, 0)
    assert "GridDropout fails on an image of 20x30: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_used_is_refused_from_python_too():
    with pytest.raises(ConfigError, match=r"^data\.augment\.1\.Blurr: unknown transform 'Blurr'"):
        transform("ToGray", {"Blurr": {}})
    with pytest.raises(ConfigError, match=r"data\.augment\.0: got \['Blur\("):
        transform([library().Blur()][0])


def test_nothing_is_asked_of_the_network_and_nothing_imported_in_vain():
    code = (
        "import sys, urllib.request\n"
        "def ask(*handlers): print('asks')\n"
        "urllib.request.build_opener = ask\n"
        "from segkd.data.base import DataConfig\n"
        "from segkd.data.transforms import TrainTransform\n"
        "TrainTransform(DataConfig(name='x'), 255)\n"
        "print('albumentations' in sys.modules)\n"
        "TrainTransform(DataConfig(name='x', augment=['ToGray']), 255)\n"
        "print('albumentations' in sys.modules)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.split() == ["False", "True"]


# -- all that there is -----------------------------------------------------------------------------

NEEDED = {
    "GridElasticDeform": {"num_grid_xy": [4, 3], "magnitude": 5},
    "CropAndPad": {"percent": [-0.1, 0.1]},
    "XYMasking": {"num_masks_x": 2, "num_masks_y": 1, "mask_x_length": 9, "mask_y_length": 9},
    "OneOf": {"transforms": ["Blur", "Affine"]},
    "OneOrOther": {"transforms": ["Blur", "Affine"]},
    "SomeOf": {"transforms": ["Blur", "Affine"], "n": 2},
    "RandomOrder": {"transforms": ["Blur", "Affine"], "n": 2},
    "Sequential": {"transforms": ["Blur", "Affine"]},
    "SelectiveChannelTransform": {"transforms": ["Blur"], "channels": [0, 2]},
}


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [False, True], ids=["classes", "lanes"])
def test_every_transform_gives_valid_samples_or_is_refused_in_a_line(lanes):
    """Of the installed albumentations; whichever it is, no sample is silently wrong."""
    albumentations, refused, used = library(), {}, []
    names = [
        name for name in dir(albumentations) if isinstance(getattr(albumentations, name), type)
    ]
    draw = np.random.default_rng(0)
    points = (draw.uniform(0, 60, (7, 2)).astype(np.float32), None)
    for name in names:
        entries = [{name: {**NEEDED.get(name, {}), "p": 1}}]
        problems = augment_problems(entries, lanes, (64, 96))
        if problems:
            assert all("\n" not in one.text and len(one.text) > 20 for one in problems), name
            refused[name] = problems[0].text
            continue
        used.append(name)
        augment = (lane_transform if lanes else transform)(
            *entries, crop=(64, 96), scale=(0.6, 1.6)
        )
        for seed in range(8):
            image, label = noise(70, 90, seed)
            label[:3] = 255
            drawn = augment.with_lanes(image, label, points if lanes else None, seed)
            moved, moved_label, inside, moved_points = drawn
            assert moved.dtype == moved_label.dtype == np.uint8, name
            assert moved.shape == (64, 96, 3) and moved_label.shape == inside.shape == (64, 96)
            assert set(np.unique(moved_label)) <= {0, 1, 2, 3, 4, 255}, name
            assert (moved[~inside] == FILL).all() and (moved_label[~inside] == 255).all(), name
            assert inside.mean() > 0.05, name
            again = augment.with_lanes(image, label, points if lanes else None, seed)
            assert all(np.array_equal(a, b) for a, b in zip(drawn[:3], again[:3], strict=True))
            if lanes:
                assert np.isfinite(moved_points[0]).all() and len(moved_points[0]) == 7, name
                assert np.array_equal(moved_points[0], again[3][0]) and moved_points[1] is None
    assert len(used) > (65 if lanes else 70)
    for name in ("Normalize", "ToTensorV2", "RandomCrop", "Lambda", "TextImage", "FDA", "Resize"):
        assert name in refused
    assert ("HorizontalFlip" in refused) == lanes
