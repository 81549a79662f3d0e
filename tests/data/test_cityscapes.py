import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from segkd.data import packing, sources
from segkd.data.cityscapes import CLASSES, LABEL_IDS, PALETTE, Cityscapes, CityscapesConfig
from segkd.data.decoded_files import write_pixels
from segkd.data.loader import train_loader
from segkd.data.packing import Packed
from segkd.data.reading import check_sample
from segkd.data.sources import TrainSource
from segkd.errors import DataError
from segkd.synthetic.make import make_cache


def write(root: Path, split: str, city: str, number: int, ids: np.ndarray, kind="labelIds"):
    """One frame in the official tree; the image is made of the ids."""
    image = np.stack([ids, ids * 2, np.full_like(ids, number)], axis=-1)
    stem = f"{city}_{number:06d}_000019"
    for folder, name, array in (
        ("leftImg8bit", f"{stem}_leftImg8bit.png", image[..., ::-1]),
        ("gtFine", f"{stem}_gtFine_{kind}.png", ids),
    ):
        path = root / folder / split / city / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), array)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    write(tmp_path, "train", "ulm", 1, ids)
    write(tmp_path, "train", "aachen", 2, ids[::-1])
    return tmp_path


def opened(root: Path, split: str = "train", **keys) -> Cityscapes:
    return Cityscapes(CityscapesConfig(name="cityscapes", root=root, **keys), split)


def test_classes_are_the_official_ones():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    rows = sorted(
        (label for label in official if 0 <= label.trainId < 19), key=lambda row: row.trainId
    )
    assert [row.name for row in rows] == list(CLASSES)
    assert [row.color for row in rows] == [tuple(color) for color in PALETTE.tolist()]
    assert [row.id for row in rows] == LABEL_IDS.tolist()


def test_label_ids_become_train_ids(root):
    dataset = opened(root)
    sample = dataset.read(1)
    ids = np.arange(34)
    expected = [list(LABEL_IDS).index(i) if i in LABEL_IDS else 255 for i in ids]
    assert sample.label.ravel().tolist() == expected
    assert sample.image[..., 0].ravel().tolist() == ids.tolist()
    assert sample.name == "ulm_000001_000019_leftImg8bit.png"
    assert [path.parent.name for path, _ in dataset.pairs] == ["aachen", "ulm"]


def test_train_ids_are_read_where_label_ids_are_missing(tmp_path):
    ids = np.array([[0, 18, 255]], np.uint8)
    write(tmp_path, "val", "bonn", 1, ids, kind="labelTrainIds")
    assert opened(tmp_path, "val").read(0).label.tolist() == ids.tolist()


def test_the_test_split_has_no_labels(tmp_path):
    write(tmp_path, "test", "bonn", 1, np.zeros((2, 2), np.uint8))
    dataset = opened(tmp_path, "test")
    assert dataset.read(0).label is None and dataset.files(0)[1] is None


def test_a_missing_set_shows_the_tree(root):
    with pytest.raises(DataError) as caught:
        opened(root / "nowhere")
    message = str(caught.value)
    assert f"there is no folder {root / 'nowhere'}. Expected" in message
    assert Cityscapes.expected_tree in message and "$SEGKD_DATASETS/cityscapes" in message
    with pytest.raises(DataError, match="Did you mean 'train'") as caught:
        opened(root, "trian")
    assert str(root / "leftImg8bit" / "trian") in str(caught.value)


def test_the_root_is_looked_for_in_order(root, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("sets")
    (elsewhere / "cityscapes").symlink_to(root)
    monkeypatch.setenv("SEGKD_DATASETS", str(elsewhere))
    assert len(Cityscapes(CityscapesConfig(name="cityscapes"), "train")) == 2
    monkeypatch.delenv("SEGKD_DATASETS")
    (elsewhere / "datasets").mkdir()
    (elsewhere / "datasets" / "cityscapes").symlink_to(root)
    monkeypatch.chdir(elsewhere)
    assert len(Cityscapes(CityscapesConfig(name="cityscapes"), "train")) == 2


def test_ids_beyond_the_table_are_named(root):
    write(root, "train", "ulm", 1, np.full((2, 3), 77, np.uint8))
    with pytest.raises(DataError, match=r"ulm_000001.*labelIds\.png.*77"):
        opened(root).read(1)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_masks_of_16_bits_are_read_as_those_of_8(kind, tmp_path):
    ids = np.array([[0, 7, 18, 255]], np.uint8)
    labels = []
    for bits in (np.uint8, np.uint16):
        write(tmp_path, "train", "ulm", 1, ids, kind)
        path = next(tmp_path.glob(f"gtFine/train/ulm/*{kind}.png"))
        cv2.imwrite(str(path), ids.astype(bits))
        labels.append(opened(tmp_path).read(0).label.tolist())
    assert labels[0] == labels[1]
    cv2.imwrite(str(path), np.array([[7, 7, 263, 65535]], np.uint16))  # 7 and 255 as bytes
    data = opened(tmp_path)
    with pytest.raises(DataError, match=rf"ulm_000001.*{kind}\.png.*values 263, 65535"):
        check_sample(data, 0, data.read(0))


def test_missing_masks_are_found_before_training(root):
    next(root.glob("gtFine/train/ulm/*")).unlink()
    dataset = opened(root, crop=(2, 2))
    keys = {"batch_size": 1, "seed": 0, "start": 0, "stop": 2}
    with pytest.raises(DataError, match=r"1 of 4 files.*ulm_000001_000019_gtFine_labelIds"):
        train_loader(dataset, config=dataset.config, **keys)
    skipping = opened(root, crop=(2, 2), on_error="skip", workers=0)
    loader = train_loader(skipping, config=skipping.config, **keys)
    assert [int(batch.index) for batch in loader] == [0, 0] and len(loader.skipped) == 1


@pytest.mark.parametrize("inside", [True, False])
def test_the_cache_gives_the_same_samples(root, inside, tmp_path_factory):
    folder = None if inside else tmp_path_factory.mktemp("cache")
    assert make_cache(opened(root), folder) == (root / "decoded" if inside else folder)
    plain, cached = opened(root), opened(root, decoded=True if inside else folder)
    for path in root.glob("leftImg8bit/train/ulm/*"):
        reference, times = plain.read(1), path.stat()
        path.write_bytes(bytes(times.st_size))  # the cache alone is read
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    for index, expected in ((0, plain.read(0)), (1, reference)):
        sample = cached.read(index)
        assert np.array_equal(sample.image, expected.image) and sample.name == expected.name
        assert np.array_equal(sample.label, expected.label)


def test_an_incomplete_cache_says_how_to_make_it(root):
    with pytest.raises(DataError, match="segkd data make cityscapes --cache"):
        opened(root, decoded=True).read(0)


def test_a_cache_is_continued(root):
    calls = []
    make_cache(opened(root), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    kept = sorted((root / "decoded").rglob("*.*"))
    assert len(kept) == 4 and not list((root / "decoded").rglob("*.part"))
    kept[0].unlink()
    stamp = kept[2].stat().st_mtime_ns
    make_cache(opened(root))
    assert kept[0].exists() and kept[2].stat().st_mtime_ns == stamp


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("seconds", [60, -60])
def test_a_mask_that_was_changed_is_decoded_anew(root, packed, seconds, monkeypatch):
    if not packed:
        monkeypatch.setattr(packing, "_lz4_or_none", lambda: None)
    make_cache(opened(root))
    mask = next(root.glob("gtFine/train/ulm/*_labelIds.png"))
    times = mask.stat().st_mtime + seconds
    cv2.imwrite(str(mask), np.full((2, 17), 26, np.uint8))  # car
    os.utime(mask, (times, times))
    if seconds > 0:
        with pytest.raises(DataError, match=r"is older than .*labelIds.png.*--cache"):
            opened(root, decoded=True).read(1)
    make_cache(opened(root))
    assert (opened(root, decoded=True).read(1).label == 13).all()


@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_file_of_the_cache_is_repaired_as_its_message_says(root, packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(packing, "_lz4_or_none", lambda: None)
    make_cache(opened(root))
    expected = opened(root).read(0)
    for file in (root / "decoded").rglob("*.*"):
        times = file.stat()
        file.write_bytes(file.read_bytes()[:-5])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match="segkd data make cityscapes --cache"):
        opened(root, decoded=True).read(0)
    make_cache(opened(root))
    found = opened(root, decoded=True).read(0)
    assert np.array_equal(found.image, expected.image)
    assert np.array_equal(found.label, expected.label)


@pytest.mark.real
def test_real_frames(real_data):
    dataset = opened(real_data / "cityscapes_sample")
    assert len(dataset) == 2
    sample = dataset.read(0)
    assert sample.image.shape == (1024, 2048, 3) and sample.label.dtype == np.uint8
    assert set(np.unique(sample.label)) <= {*range(19), 255}
    road = sample.image[sample.label == 0].mean(axis=0)
    sky = sample.image[sample.label == 10].mean(axis=0)
    assert sky.mean() > road.mean() and (sample.label[700:800] == 0).mean() > 0.3


def test_every_dataset_keeps_the_meaning_of_the_base_keys():
    """``data.cache`` once was a folder here and a size in the loader: a TypeError."""
    from segkd import registry
    from segkd.data.base import DataConfig

    for entry in registry.datasets:
        for key, base in DataConfig.model_fields.items():
            assert entry.Config.model_fields[key].annotation == base.annotation, (entry, key)


def test_decoded_images_and_the_cache_of_the_loader_go_together(root):
    make_cache(opened(root))
    dataset = opened(root, decoded=True, cache=64, crop=(4, 4))
    loader = train_loader(dataset, config=dataset.config, batch_size=1, seed=0, start=0, stop=3)
    assert len(list(loader)) == 3


def test_packed_labels_are_checked_once_and_unpacked_by_windows(tmp_path, monkeypatch):
    pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    write(tmp_path, "train", "ulm", 1, np.full((200, 90), 7, np.uint8))
    make_cache(opened(tmp_path))
    dataset = opened(tmp_path, decoded=True, crop=(4, 4))
    assert isinstance(dataset.read_stored(0).label, Packed)
    assert isinstance(dataset.read(0).label, np.ndarray)
    source, calls = TrainSource(dataset, dataset.config, 0), []
    monkeypatch.setattr(sources, "check_sample", lambda *sample: calls.append(sample))
    for epoch in range(3):
        (load,) = source.__getitems__([(epoch, 0)])
        assert load.error is None and (load.batch.labels == 0).all()
    assert len(calls) == 1


def test_a_packed_label_with_other_values_is_refused_in_every_epoch(tmp_path):
    pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    write(tmp_path, "train", "ulm", 1, np.full((200, 90), 7, np.uint8))
    make_cache(opened(tmp_path))
    dataset = opened(tmp_path, decoded=True, crop=(4, 4))
    write_pixels(
        dataset.cache_files(0, dataset.cache_folder())[1], np.full((200, 90), 77, np.uint8)
    )
    source = TrainSource(dataset, dataset.config, 0)
    for epoch in range(2):
        (load,) = source.__getitems__([(epoch, 0)])
        assert "label values 77" in str(load.error)
