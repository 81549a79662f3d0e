"""Lane points go where their pixels go."""

import numpy as np
import pytest
from lane_trees import SIZE, lane

from segkd.data.base import DataConfig, Sample
from segkd.data.bdd100k import BDD100KConfig
from segkd.data.lane_base import LaneDataConfig, LaneDataset, lane_classes, lane_palette
from segkd.data.lane_geometry import moved, swapped, turned
from segkd.data.lane_masks import painted
from segkd.data.llamas import LLAMASConfig
from segkd.data.loader import eval_loader, train_loader
from segkd.data.transforms import FILL, TrainTransform
from segkd.synthetic.lanes import LanesConfig


def transform(**keys) -> TrainTransform:
    return TrainTransform(LaneDataConfig(name="toy", **keys), ignore_index=255)


def random_lanes(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray | None, ...]:
    """Four slots of smooth lanes; one may be missing, points may lie beyond the image."""
    lanes = []
    for foot in np.linspace(-0.1, 1.1, 4) * size[1] + rng.uniform(-10, 10, 4):
        y = np.linspace(size[0] - 1, rng.uniform(0.2, 0.5) * size[0], 12)
        share = (size[0] - 1 - y) / size[0]
        x = foot + (size[1] / 2 - foot) * 0.8 * share + rng.uniform(-20, 20) * share**2
        lanes.append(np.stack([x, y], axis=1).astype(np.float32))
    if rng.random() < 0.5:
        lanes[rng.integers(4)] = None
    return tuple(lanes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "keys",
    [
        {"scale": (1, 1), "flip": 1.0},
        {"crop": (90, 150), "scale": (0.6, 1.7), "rotation": 5.0},
        {"resize": (64, 140), "scale": (0.9, 1.1), "crop": (60, 120), "rotation": 20.0},
        {"crop": (200, 300), "scale": (0.8, 1.5)},
    ],
    ids=["flip", "crop", "resize", "pad"],
)
def test_points_stay_on_the_mask(keys, seed):
    """A thin lane's mask, transformed, still shows each point, under the slot's new id."""
    rng = np.random.default_rng(seed)
    size = (120, 200)
    lanes = random_lanes(rng, size)
    mask = painted(lanes, size, 5)
    image = np.zeros((*size, 3), np.uint8)
    _, label, inside, after = transform(**keys).with_lanes(image, mask, lanes, seed)
    seen = 0
    for slot, one in enumerate(after):
        for x, y in one if one is not None else ():
            column, row = round(float(x)), round(float(y))
            around = slice(row - 4, row + 5), slice(column - 4, column + 5)
            if not (4 <= row < label.shape[0] - 4 and 4 <= column < label.shape[1] - 4):
                continue
            if inside[around].all() and len(set(np.unique(label[around])) - {0}) == 1:
                assert label[row, column] == slot + 1
                seen += 1
    assert seen >= 3


@pytest.mark.parametrize("seed", range(8))
def test_points_find_their_pixel_again(seed):
    """The image carries its own coordinates, so each point can be looked up."""
    rows, columns = np.mgrid[:120, :200].astype(np.uint8)
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1)
    points = np.stack(np.meshgrid([30, 90, 150.0], [30, 60, 90.0]), axis=-1).reshape(-1, 2)
    augment = transform(crop=(110, 180), scale=(0.8, 1.6), rotation=4.0)
    drawn, _, inside, lanes = augment.with_lanes(image, None, (points, None), seed)
    (after,) = [one for one in lanes if one is not None]
    for (x, y), (column, row) in zip(points, after, strict=True):
        place = round(float(row)), round(float(column))
        within = 2 <= place[0] < 108 and 2 <= place[1] < 178
        if within and inside[place[0] - 2 : place[0] + 3, place[1] - 2 : place[1] + 3].all():
            assert abs(int(drawn[place][0]) - y) <= 1.5 and abs(int(drawn[place][1]) - x) <= 1.5


def test_a_flip_swaps_ids_slots_and_points():
    lanes = (lane(-20), lane(50), None, lane(180))
    mask = painted(lanes, SIZE, 3)
    label, after = swapped(mask[:, ::-1], lanes, SIZE[1])
    assert [one is None for one in after] == [False, True, False, False]
    assert after[0][0].tolist() == pytest.approx([159 - 180, 59])
    assert (label[:, ::-1] == 1).sum() == (mask == 4).sum()
    void = np.full(SIZE, 255, np.uint8)
    assert (swapped(void, lanes, 160)[0] == 255).all()


def test_two_flips_are_none():
    lanes = (lane(-20), lane(50), None, lane(180))
    mask = painted(lanes, SIZE, 3)
    label, after = swapped(mask[:, ::-1], lanes, SIZE[1])
    label, after = swapped(label[:, ::-1], after, SIZE[1])
    assert np.array_equal(label, mask) and after[2] is None
    assert np.allclose(after[0], lanes[0], atol=1e-4)


def test_what_rotation_brings_in_is_padding():
    image, label = np.full((40, 60, 3), 9, np.uint8), np.ones((40, 60), np.uint8)
    fills = FILL, 255
    whole = np.ones((40, 60), bool)
    image, label, inside, _ = turned(image, label, whole, None, 10.0, fills)
    assert 0.5 < inside.mean() < 1
    assert (label[~inside] == 255).all() and (label[inside] == 1).all()
    assert (image[~inside] == FILL).all() and not inside[0, 0]


def test_positive_degrees_turn_anticlockwise_as_seen():
    image = np.zeros((41, 61, 3), np.uint8)
    whole, right = np.ones((41, 61), bool), np.array([[50.0, 20.0]])
    (after,) = turned(image, None, whole, (right,), 30.0, (FILL, 255))[3]
    assert after[0].tolist() == pytest.approx([30 + 20 * np.cos(np.pi / 6), 20 - 10])


def test_rotation_is_drawn_from_both_sides_and_keeps_within():
    line = np.array([[20.0, 50.0], [60.0, 50.0]])
    image = np.zeros((100, 160, 3), np.uint8)
    angles = []
    for seed in range(60):
        augment = transform(scale=(1, 1), flip=0, rotation=7.0)
        (x0, y0), (x1, y1) = augment.with_lanes(image, None, (line,), seed)[3][0]
        angles.append(np.degrees(np.arctan2(y1 - y0, x1 - x0)))
    assert max(np.abs(angles)) <= 7 and min(angles) < -5 and max(angles) > 5


def test_resizing_keeps_the_image_borders():
    """The pixel edges -0.5 and W - 0.5 stay edges: no shift by half a pixel."""
    edges = np.array([[-0.5, -0.5], [159.5, 59.5]])
    augment = transform(resize=(30, 40), scale=(1, 1), flip=0)
    image = np.zeros((*SIZE, 3), np.uint8)
    (after,) = augment.with_lanes(image, None, (edges,), 0)[3]
    assert after.tolist() == [[-0.5, -0.5], [39.5, 29.5]]
    assert moved((None,), (2, 1), (3, 1)) == (None,)


class Toy(LaneDataset):
    """One image with four lanes, of which ``missing`` are not there."""

    name = "toy"
    metric = "culane"
    classes, palette = lane_classes(4), lane_palette(4)

    def __init__(self, missing: tuple[int, ...] = (), labelled: bool = True, **keys) -> None:
        super().__init__(LaneDataConfig(name="toy", **keys), "train")
        self.missing, self.labelled = missing, labelled

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Sample:
        image = np.zeros((*SIZE, 3), np.uint8)
        if not self.labelled:
            return Sample(image, None, str(index))
        feet = (0, 50, 110, 160)
        lanes = tuple(None if i in self.missing else lane(f) for i, f in enumerate(feet))
        return Sample(image, painted(lanes, SIZE, 4), str(index), lanes)


def batches(toy: Toy, **keys):
    keys = {"batch_size": 3, "seed": 1, "start": 0, "stop": 1} | keys
    return list(train_loader(toy, config=toy.config, **keys))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_existence_and_points(workers):
    (batch,) = batches(Toy(missing=(2,), scale=(1, 1), flip=0, workers=workers))
    assert batch.extra["exist"].tolist() == [[1, 1, 0, 1]] * 3
    lanes = batch.extra["lanes"].numpy()
    assert lanes.shape == (3, 4, 6, 2) and lanes.dtype == np.float32
    assert np.isnan(lanes[:, 2]).all() and np.allclose(lanes[0, 1], lane(50), atol=1e-3)


def test_a_flip_swaps_existence():
    (batch,) = batches(Toy(missing=(0,), scale=(1, 1), flip=1.0))
    assert batch.extra["exist"].tolist() == [[1, 1, 1, 0]] * 3
    assert np.isnan(batch.extra["lanes"][:, 3].numpy()).all()


def test_existence_is_what_the_crop_shows():
    """Narrow crops lose lanes on both sides, and never claim one that is not in the label."""
    toy = Toy(crop=(30, 50), scale=(1, 1), flip=0.5)
    drawn = batches(toy, stop=30)
    exist = np.concatenate([batch.extra["exist"].numpy() for batch in drawn])
    labels = np.concatenate([batch.labels.numpy() for batch in drawn])
    for slot in range(4):
        shown = (labels == slot + 1).any(axis=(1, 2))
        assert np.array_equal(exist[:, slot] == 1, shown)
        assert 0 < shown.mean() < 1
    points = [batch.extra["lanes"].numpy() for batch in drawn]
    gone = np.concatenate([np.isnan(lanes).all(axis=(2, 3)) for lanes in points])
    assert np.array_equal(gone, exist == 0)


def test_evaluation_batches_hold_existence_only():
    ((batch, _),) = list(eval_loader(Toy(missing=(1,)), batch_size=3))
    assert batch.extra["exist"].tolist() == [[1, 0, 1, 1]] * 3 and "lanes" not in batch.extra


def test_unlabelled_batches_and_other_sets_have_no_lanes():
    (batch,) = batches(Toy(labelled=False))
    assert (batch.labels == 255).all() and not batch.labelled.any()
    assert batch.extra.keys() == {"exist"} and batch.extra["exist"].isnan().all()


@pytest.mark.parametrize("keys", [{}, {"num_lanes": 1}, {"num_lanes": 6, "left_lanes": 3}])
def test_slots_with_a_mirror_image_are_flipped(keys):
    assert LaneDataConfig(name="toy", **keys).flip == 0.5
    assert LaneDataConfig(name="toy", flip=0.25, **keys).flip == 0.25


class OfAnySides(LaneDataConfig):
    any_sides = True


@pytest.mark.parametrize(
    "keys", [{"num_lanes": 5}, {"left_lanes": 1}, {"left_lanes": 4}, {"num_lanes": "3"}]
)
def test_slots_without_a_mirror_image_are_not(keys):
    config = OfAnySides(name="toy", **keys)
    assert config.flip == 0 and OfAnySides(**config.model_dump()) == config
    with pytest.raises(ValueError, match=r"A mirror image has lanes without a slot.*data\.flip=0"):
        OfAnySides(name="toy", flip=0.5, **keys)


@pytest.mark.parametrize("kind", [LanesConfig, LLAMASConfig, BDD100KConfig])
def test_slots_that_the_set_defines_are_what_they_are(kind):
    usual = kind(name="x")
    assert kind(name="x", left_lanes=usual.left_of_car).left_of_car == usual.left_of_car
    for left in (1, 3):
        with pytest.raises(ValueError, match="left_lanes"):
            kind(name="x", left_lanes=left)


def test_lane_keys_leave_segmentation_alone():
    """The same seed draws the same window with and without lanes."""
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    label = image[..., 0] % 5
    keys = {"crop": (40, 60), "color_jitter": 0.5}
    plain = TrainTransform(DataConfig(name="toy", **keys), 255)(image, label, 3)
    lanes = transform(**keys).with_lanes(image, label, None, 3)
    assert all(np.array_equal(a, b) for a, b in zip(plain, lanes[:3], strict=True))
