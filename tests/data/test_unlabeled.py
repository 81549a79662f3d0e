"""Images without labels: where they come from, and how a step's images are chosen."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from image_folders import folder
from toy_lanes import SIZE, ToyLanes
from toy_run import ToyData

from segkd.data.base import DataConfig, Dataset, Sample, UnlabeledConfig
from segkd.data.camvid import CamVid
from segkd.data.folder import Folder, FolderConfig
from segkd.data.loader import train_loader
from segkd.data.unlabeled import (
    ImageFolder,
    Images,
    Joined,
    SomeLabels,
    WithoutLabels,
    has_labels,
    in_both,
    labels_as_told,
    natural,
    open_unlabelled,
    unlabelled_config,
)
from segkd.errors import ConfigError, DataError


class Numbers(Dataset):
    """Images of one grey value, their index plus ``first``; ``broken`` ones cannot be read."""

    name = "numbers"
    classes = ("a", "b")
    palette = np.zeros((2, 3), np.uint8)

    def __init__(self, length: int, first: int = 0, broken: tuple[int, ...] = (), **keys) -> None:
        super().__init__(DataConfig(name="numbers", **keys), "train")
        self.length, self.first, self.broken, self.reads = length, first, broken, 0

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError(f"number {index} is broken.")
        self.reads += 1
        image = np.full((8, 8, 3), self.first + index, np.uint8)
        return Sample(image, np.zeros((8, 8), np.uint8), f"number {index}")


def both(share: float = 0.5, **keys) -> Joined:
    """Five labelled images, 0 to 4, and seven unlabelled ones, 100 to 106."""
    main = Numbers(5, crop=(8, 8), **keys)
    return Joined(main, WithoutLabels(Numbers(7, 100), main), share)


def batches(data: Dataset, batch_size: int = 4, start: int = 0, stop: int = 30, **keys):
    config = getattr(data, "config", None)
    loader = train_loader(
        data, config=config, batch_size=batch_size, seed=3, start=start, stop=stop, **keys
    )
    return list(loader)


def values(found) -> list[list[int]]:
    return [batch.images[:, 0, 4, 4].tolist() for batch in found]


def row(found) -> list[int]:
    return [value for batch in values(found) for value in batch]


def whole_images(**keys):
    return {"scale": (1.0, 1.0), "flip": 0.0, "workers": 0} | keys


# -- a step's images -------------------------------------------------------------------------------


def test_kinds_alternate_and_are_marked():
    (batch,) = batches(both(**whole_images()), stop=1)
    assert batch.labelled.tolist() == [True, False, True, False]
    assert batch.labelled.tolist() == [value < 100 for value in values([batch])[0]]
    assert (batch.labels[batch.labelled] == 0).all() and (
        batch.labels[~batch.labelled] == 255
    ).all()
    assert batch.valid.equal(batch.not_padding)
    for value, index in zip(values([batch])[0], batch.index.tolist(), strict=True):
        assert index == (value if value < 100 else value - 100 + 5)


@pytest.mark.parametrize(
    ("share", "images", "unlabelled"),
    [(0.5, 4, 2), (0.5, 5, 3), (0.3, 8, 2), (0.01, 8, 1), (0.99, 8, 7), (0.7, 10, 7), (0.5, 2, 1)],
)
def test_the_share_is_rounded_and_leaves_one_of_each(share, images, unlabelled):
    found = batches(both(share, **whole_images()), batch_size=images)
    assert both(share).per_step(images) == unlabelled
    assert all((~batch.labelled).sum() == unlabelled for batch in found)


def test_both_sets_are_seen_evenly_in_new_orders():
    found = row(batches(both(0.25, **whole_images()), stop=70))
    one = [value for value in found if value < 100]
    other = [value for value in found if value >= 100]
    assert all(sorted(one[i : i + 5]) == list(range(5)) for i in range(0, 210, 5))
    assert all(sorted(other[i : i + 7]) == list(range(100, 107)) for i in range(0, 70, 7))
    assert len({tuple(other[i : i + 7]) for i in range(0, 70, 7)}) > 7


def test_another_seed_orders_both_kinds_anew():
    keys = {"config": both(**whole_images()).config, "batch_size": 4, "start": 0, "stop": 30}
    one, other = (row(train_loader(both(**whole_images()), seed=seed, **keys)) for seed in (1, 2))
    for kind in (range(100), range(100, 200)):
        assert [v for v in one if v in kind] != [v for v in other if v in kind]


def test_labelled_images_come_in_the_order_that_they_have_alone():
    joined = row(batches(both(0.5, **whole_images())))
    alone = row(batches(Numbers(5, crop=(8, 8), **whole_images()), batch_size=2))
    assert [value for value in joined if value < 100] == alone


@pytest.mark.parametrize("share", [0.5, 0.25, 0.75])
def test_ranks_and_micro_steps_hold_slices_of_the_same_step(share):
    data = both(share, **whole_images())
    whole = values(batches(data, batch_size=8))
    ranks = [values(batches(data, batch_size=4, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    micro = values(batches(data, batch_size=2, accumulate=4))
    steps = [micro[i : i + 4] for i in range(0, len(micro), 4)]
    assert [[*a, *b, *c, *d] for a, b, c, d in steps] == whole
    mixed = [
        values(batches(data, batch_size=2, rank=rank, world=2, accumulate=2)) for rank in (0, 1)
    ]
    joined = [a + b for a, b in zip(*mixed, strict=True)]
    assert [joined[i] + joined[i + 1] for i in range(0, len(joined), 2)] == whole


def test_each_micro_step_has_its_share():
    found = batches(both(0.25, **whole_images()), batch_size=4, accumulate=4)
    assert all((~batch.labelled).sum() == 1 for batch in found)


def augmented(**keys):
    return both(0.5, color_jitter=0.5, **keys)


def equal(ours, others) -> bool:
    names = ("images", "labels", "not_padding", "index", "labelled")
    return len(ours) == len(others) > 0 and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(ours, others, strict=True)
        for name in names
    )


def test_workers_cache_and_resume_change_nothing():
    alone = batches(augmented(workers=0))
    assert equal(alone, batches(augmented(workers=2)))
    assert equal(alone[20:], batches(augmented(workers=0), start=20))
    kept = augmented(workers=0, cache=1)
    assert equal(alone, batches(kept))
    assert kept.main.reads == 5 and kept.other.dataset.reads == 7


def test_a_broken_image_is_replaced_by_one_of_its_kind():
    main = Numbers(5, broken=(1,), on_error="skip", crop=(8, 8), **whole_images())
    data = Joined(main, WithoutLabels(Numbers(7, 100, broken=(2, 3)), main), 0.5)
    found = batches(data)
    assert {value for batch in values(found) for value in batch}.isdisjoint({1, 102, 103})
    assert all(batch.labelled.tolist() == [True, False] * 2 for batch in found)


# -- where they come from --------------------------------------------------------------------------


def put(path: Path, value: int, size=(8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    for number in (10, 9, 1):
        put(tmp_path / "frames" / "b" / f"frame{number}.png", number)
    put(tmp_path / "frames" / "a.JPG", 50)
    (tmp_path / "frames" / "notes.txt").write_text("no image")
    return tmp_path / "frames"


def test_a_folder_is_read_in_natural_order(frames):
    data = ImageFolder(frames, Numbers(1))
    assert [data.read(i).name for i in range(4)] == [
        "a.JPG",
        "frame1.png",
        "frame9.png",
        "frame10.png",
    ]
    assert data.read(3).label is None and data.read(3).image[0, 0].tolist() == [10, 10, 10]
    assert data.classes == ("a", "b") and data.unlabelled == 4
    assert data.files(1) == (frames / "b" / "frame1.png", None)


def test_label_maps_among_the_images_are_left_out(tmp_path, caplog):
    folder(tmp_path, lambda n: (f"images/{n}.png", f"masks/{n}.png"), count=3)
    found = ImageFolder(tmp_path, Numbers(2))
    assert [path.parent.name for path in found.paths] == ["images"] * 3
    assert "3 files are label maps of other images there and are skipped (masks)" in caplog.text
    assert len(ImageFolder(tmp_path / "masks", Numbers(2))) == 3  # if they are asked for


def test_digits_that_are_no_numbers_are_letters():
    names = ["2²10.png", "2²9.png", "²", "①.png", "٣.png", "10.png", "9.png"]  # ٣ is 3
    found = [path.name for path in sorted(map(Path, names), key=natural)]
    assert found == ["²", "①.png", "2²9.png", "2²10.png", "٣.png", "9.png", "10.png"]


def test_a_list_chooses_and_orders(frames):
    (frames / "names.txt").write_text("b/frame9\n\na.JPG\n")
    data = ImageFolder(frames, Numbers(1), Path("names.txt"))
    assert [data.read(i).name for i in range(2)] == ["frame9.png", "a.JPG"]
    (frames / "names.txt").write_text("b/frame9\nb/frame8\n")
    with pytest.raises(DataError, match=r"names\.txt: no image for b/frame8"):
        ImageFolder(frames, Numbers(1), Path("names.txt"))
    (frames / "names.txt").write_text("b/frame9\nb/frame9.png\nb/frame9\n")
    with pytest.raises(DataError, match=r"duplicate lines b/frame9"):
        ImageFolder(frames, Numbers(1), Path("names.txt"))
    with pytest.raises(DataError, match=r"data\.unlabeled\.list: there is no list file other"):
        ImageFolder(frames, Numbers(1), Path("other.txt"))


def test_a_line_without_ending_that_two_images_fit_is_refused(frames):
    (frames / "a.png").write_bytes((frames / "a.JPG").read_bytes())
    (frames / "names.txt").write_text("b/frame9\na.png\n")
    assert ImageFolder(frames, Numbers(1), Path("names.txt")).paths[1] == frames / "a.png"
    (frames / "names.txt").write_text("b/frame9\na\n")
    with pytest.raises(DataError, match=r"names\.txt: 'a' may be a\.JPG, a\.png\. Write it with"):
        ImageFolder(frames, Numbers(1), Path("names.txt"))


def test_a_folder_beside_a_lane_set_loses_the_same_rows(frames):
    lanes = ToyLanes(ToyLanes.Config(name="toy_lanes", cut_top=3))
    assert ImageFolder(frames, lanes).read(0).image.shape == (5, 8, 3)
    lanes = ToyLanes(ToyLanes.Config(name="toy_lanes", cut_top=8))
    with pytest.raises(DataError, match=r"data\.cut_top=8 leaves nothing of .*a\.JPG"):
        ImageFolder(frames, lanes).read(0)


@pytest.mark.parametrize(
    ("rows", "kept"), [((0.25, 0.75), slice(2, 6)), ((0.99, 1.0), slice(7, 8))]
)
def test_rows_are_shares_of_the_height_of_each_image(tmp_path, rows, kept):
    image = np.arange(8 * 5 * 3, dtype=np.uint8).reshape(8, 5, 3)
    cv2.imwrite(str(tmp_path / "a.png"), image[..., ::-1])
    found = ImageFolder(tmp_path, Numbers(1), rows=rows).read(0).image
    assert np.array_equal(found, image[kept])


def test_arrays_may_be_images_or_pairs():
    image = np.full((4, 6, 3), 7, np.uint8)
    data = Images([image, (image + 1, np.zeros((4, 6), int))], Numbers(1))
    assert data.read(0).image[0, 0, 0] == 7 and data.read(1).image[0, 0, 0] == 8
    assert data.read(1).label is None
    with pytest.raises(DataError, match="unlabeled_set: has no images"):
        Images([], Numbers(1))


def test_the_same_dataset_keeps_its_keys_and_another_has_its_own():
    toy = ToyData.Config(name="toy", images=3, void=False, unlabeled={"split": "val"})
    own = unlabelled_config(toy)
    assert own.images == 3 and own.void is False and own.unlabeled is None
    data = open_unlabelled(toy, Numbers(1))
    assert len(data) == 3 and data.read(0).label is None and data.classes == ("a", "b")
    assert np.array_equal(data.read(1).image, ToyData(toy, "val").read(1).image)
    other = DataConfig(name="numbers", unlabeled={"name": "toy", "split": "train", "images": 2})
    assert len(open_unlabelled(other, Numbers(1))) == 2


def test_nothing_is_chosen_silently(frames):
    with pytest.raises(ConfigError, match="no images are named"):
        open_unlabelled(DataConfig(name="numbers", unlabeled={}), Numbers(1))
    config = DataConfig(name="numbers", unlabeled={"root": frames / "nowhere"})
    with pytest.raises(DataError, match="no such folder"):
        open_unlabelled(config, Numbers(1))
    config = DataConfig(name="numbers", unlabeled={"name": "toy", "split": "val", "images": 0})
    with pytest.raises(DataError, match="toy, split 'val', has no images"):
        open_unlabelled(config, Numbers(1))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"root": "x", "split": "val", "list": "y"}, "give the list file as `split`"),
        ({"list": "y"}, "selects images below `root`"),
        ({"name": "toy"}, "name the split of 'toy'"),
        ({"root": "x", "sahre": 0.5}, "unknown key 'sahre'. Known: root, list"),
        ({"split": "x", "crop": [4, 4]}, "`crop` is a key of `data`"),
        ({"root": "x", "share": 1.01}, "less than or equal to 1"),
        ({"root": "x", "share": -0.1}, "greater than or equal to 0"),
        ({"root": "x", "rows": [0.6, 0.3]}, "two shares of the height, top first"),
        ({"root": "x", "rows": [0, 300]}, "two shares of the height, top first"),
        ({"root": "x", "split": "val", "rows": [0, 0.5]}, "for images of a folder"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        UnlabeledConfig.model_validate(block)


def test_images_in_two_sets_are_found(frames):
    one, other = ImageFolder(frames, Numbers(1)), ImageFolder(frames / "b" / ".." / "b", Numbers(1))
    assert [Path(path).name for path in in_both(one, other)] == [
        "frame1.png",
        "frame10.png",
        "frame9.png",
    ]
    assert in_both(one, Numbers(3)) == []


# -- labels that are not there ---------------------------------------------------------------------


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two images in each split; train/b has no mask."""
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c"), ("val", "a")):
        put(tmp_path / split / f"{stem}.png", 9)
        if stem != "b":
            (tmp_path / f"{split}annot").mkdir(exist_ok=True)
            mask = np.full((8, 8), 3, np.uint8)
            cv2.imwrite(str(tmp_path / f"{split}annot" / f"{stem}.png"), mask)
    return tmp_path


def opened(root: Path, split: str = "train", **keys) -> CamVid:
    return CamVid(DataConfig(name="camvid", root=root, crop=(8, 8), **whole_images(**keys)), split)


def test_missing_masks_are_an_error_that_names_the_key(camvid):
    with pytest.raises(DataError, match=r"1 of 4 files are missing.*data\.labels=optional"):
        batches(opened(camvid))


def test_with_optional_labels_such_images_are_unlabelled(camvid):
    data = labels_as_told(opened(camvid), DataConfig(name="camvid", labels="optional"))
    assert isinstance(data, SomeLabels) and (len(data), data.unlabelled) == (2, 1)
    assert has_labels(data) and data.read(0).label is not None and data.read(1).label is None
    (batch,) = batches(data, batch_size=2, stop=1)
    assert batch.labelled[batch.index.argsort()].tolist() == [True, False]
    (camvid / "trainannot" / "a.png").unlink()
    assert not has_labels(
        labels_as_told(opened(camvid), data.config.model_copy(update={"labels": "optional"}))
    )


def test_without_labels_no_mask_is_looked_for(camvid):
    (camvid / "trainannot" / "a.png").write_bytes(b"no image")
    data = labels_as_told(opened(camvid), DataConfig(name="camvid", labels="none"))
    assert not has_labels(data) and data.unlabelled == len(data) == 2
    (batch,) = batches(data, batch_size=2, stop=1)
    assert not batch.labelled.any() and (batch.labels == 255).all() and batch.valid.all()


def test_sets_that_say_nothing_are_read_until_a_label_is_found():
    assert has_labels(Numbers(3, broken=(0, 1)))
    assert not has_labels(Numbers(2, broken=(0, 1)))
    assert has_labels(both()) and not has_labels(WithoutLabels(Numbers(2)))


# -- splits that are lists -------------------------------------------------------------------------


def test_camvid_takes_a_list_for_a_split(camvid, tmp_path):
    (tmp_path / "my.txt").write_text(
        "val/a.png\ntrain/b\n/SegNet/CamVid/val/c.png valannot/c.png\n"
    )
    data = opened(camvid, "my.txt")
    assert [(path.parent.name, path.stem) for path, _ in data.pairs] == [
        ("val", "a"),
        ("train", "b"),
        ("val", "c"),
    ]
    assert data.pairs[1][1] == camvid / "trainannot" / "b.png"
    assert data.read(2).label[0, 0] == 3
    (tmp_path / "my.txt").write_text("train/b trainannot/b\ntrain/a.png 1 0\n")
    assert [path.stem for path, _ in opened(camvid, "my.txt").pairs] == ["b", "a"]
    for line, message in (
        ("train/zebra 1.png", "no image for train/zebra 1"),
        ("train/zebra", "no image for train/zebra"),
        ("zebra", "'zebra' has no folder"),
        ("train/b\ntrain/b.png", "duplicate lines train/b"),
        ("", "the list is empty"),
    ):
        (tmp_path / "my.txt").write_text(line)
        with pytest.raises(DataError, match=message):
            opened(camvid, "my.txt")
    with pytest.raises(DataError, match=r"no list file other\.txt, neither here nor in"):
        opened(camvid, "other.txt")


def test_lists_are_found_below_the_configs(camvid, tmp_path, monkeypatch):
    (tmp_path / "configs" / "own").mkdir(parents=True)
    (tmp_path / "configs" / "own" / "drive.txt").write_text("train/b")
    monkeypatch.chdir(tmp_path)
    assert len(opened(camvid, "configs/own/drive.txt")) == 1
    assert len(opened(camvid, "own/drive.txt")) == 1


def test_a_folder_set_takes_a_list_of_images_of_all_its_splits(camvid):
    spec = {
        "classes": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}],
        "splits": {
            "train": {"images": "train", "masks": "trainannot"},
            "val": {"images": "val", "masks": "valannot"},
        },
    }
    (camvid / "few.txt").write_text("val/a\ntrain/a.png\n")
    data = Folder(FolderConfig(name="folder", root=camvid, spec=spec), "few.txt")
    assert data.pairs == [
        (camvid / "val" / "a.png", camvid / "valannot" / "a.png"),
        (camvid / "train" / "a.png", camvid / "trainannot" / "a.png"),
    ]
    (camvid / "few.txt").write_text("val/a\ntrain/z\n")
    with pytest.raises(DataError, match=r"no image for train/z\. Lines are paths below"):
        Folder(FolderConfig(name="folder", root=camvid, spec=spec), "few.txt")


# -- lanes -----------------------------------------------------------------------------------------


def test_lanes_of_unlabelled_images_are_unknown(frames):
    config = ToyLanes.Config(name="toy_lanes", crop=(32, 64), workers=0)
    lanes = ToyLanes(config, "train")
    put(frames / "road.png", 100, SIZE)
    (frames / "roads.txt").write_text("road")
    data = Joined(lanes, ImageFolder(frames, lanes, Path("roads.txt")), 0.5)
    (batch,) = batches(data, stop=1)
    assert batch.extra["exist"][1::2].isnan().all() and not batch.extra["exist"][::2].isnan().any()
    assert batch.extra["lanes"][1::2].isnan().all()
    assert not batch.extra["lanes"][::2].isnan().all()
    (one,) = batches(Joined(lanes, data.other, 0.75), batch_size=1, rank=1, world=4, stop=1)
    assert one.extra["exist"].shape == (1, 4) and one.extra["exist"].isnan().all()


def test_links_to_nothing_and_labels_of_other_endings_are_no_missing_labels(camvid, caplog):
    """Of a store whose files were not fetched, nothing was read; nor of masks like `a.PNG`."""
    mask = opened(camvid).pairs[0][1]
    stored = mask.rename(camvid / "stored.png")
    mask.symlink_to(camvid / "store/abc")
    config = opened(camvid).config.model_copy(update={"labels": "optional"})
    data = labels_as_told(opened(camvid), config)
    assert data.unlabelled == 1 and not caplog.records
    message = r"1 of 3 files are missing.*It is a link to .*store/abc.*git annex get"
    with pytest.raises(DataError, match=message):
        batches(data)
    with pytest.raises(DataError, match=r"no such file.*It is a link to .*store/abc"):
        data.read(0)
    mask.unlink()
    stored.rename(mask.with_suffix(".PNG"))
    assert labels_as_told(opened(camvid), config).unlabelled == 2
    (told,) = caplog.records
    assert "2 images have no label" in told.message and "There is a.PNG next" in told.message


def test_an_image_is_no_mask_of_another_ending(tmp_path):
    keys = {"classes": ["a", "b"], "splits": {"train": {"images": ".", "masks": "."}}}
    for name in ("1.jpg", "2.jpg", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((4, 4, 3), np.uint8))
    config = FolderConfig(name="folder", root=tmp_path, spec=keys | {"image_ending": ".jpg"})
    with pytest.raises(DataError, match=r"1 of 4 files are missing") as caught:
        train_loader(Folder(config, "train"), config=config, batch_size=1, seed=0, start=0, stop=1)
    assert "next to it" not in str(caught.value)
