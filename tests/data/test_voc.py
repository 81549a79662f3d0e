import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segkd.commands.data import make
from segkd.config.load import load_data
from segkd.data.check import check_dataset
from segkd.data.voc import CLASSES, VOC, VOCConfig, read_sbd
from segkd.errors import DataError
from segkd.synthetic.make_voc import make_train_aug

LISTS = "ImageSets/Segmentation"


def write(root: Path, name: str, folder: str | None, ids: np.ndarray) -> None:
    """An image, and below ``folder`` an indexed mask as VOC has it."""
    noise = np.random.default_rng(len(name) + int(name[-1])).integers(0, 256, (*ids.shape, 3))
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "JPEGImages" / f"{name}.jpg"), noise.astype(np.uint8))
    if folder:
        mask = Image.fromarray(ids, mode="P")
        mask.putpalette(VOC.palette.tobytes())
        (root / folder).mkdir(exist_ok=True)
        mask.save(root / folder / f"{name}.png")


def write_list(root: Path, split: str, text: str) -> None:
    (root / LISTS).mkdir(parents=True, exist_ok=True)
    (root / LISTS / f"{split}.txt").write_text(text)


def opened(root: Path, split: str = "train", **keys) -> VOC:
    return VOC(VOCConfig(name="voc", root=root, **keys), split)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ids = np.array([[0, 1, 20], [255, 15, 0]], np.uint8)
    for name in ("a_1", "b_2", "c_3"):
        write(tmp_path, name, "SegmentationClass", ids)
    write_list(tmp_path, "train", "b_2\na_1\n")
    write_list(tmp_path, "val", "c_3\n")
    return tmp_path


@pytest.fixture
def sbd(root: Path) -> Path:
    """SBD: one image of VOC's train, one of its val, and two of its own."""
    from scipy.io import savemat

    folder = root / "benchmark_RELEASE" / "dataset"
    (folder / "cls").mkdir(parents=True)
    for number, name in enumerate(("a_1", "c_3", "d_4", "e_5")):
        label = np.full((2, 3), number + 5, np.uint8)
        savemat(folder / "cls" / f"{name}.mat", {"GTcls": {"Segmentation": label, "Other": 1}})
        if number > 1:
            write(root, name, None, label)
    (folder / "train.txt").write_text("c_3\ne_5\n")
    (folder / "val.txt").write_text("a_1\nd_4")
    return folder


def test_the_classes_and_colours_are_vocs():
    assert len(CLASSES) == 21 and CLASSES[0] == "background" and CLASSES[15] == "person"
    colours = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bird": (128, 128, 0)}
    colours |= {"person": (192, 128, 128), "tvmonitor": (0, 64, 128), "cat": (64, 0, 0)}
    for name, colour in colours.items():
        assert tuple(VOC.palette[CLASSES.index(name)].tolist()) == colour, name


def test_lists_choose_and_order_and_borders_are_void(root):
    dataset = opened(root)
    assert [image.stem for image, _ in dataset.pairs] == ["b_2", "a_1"]
    assert dataset.read(1).label.tolist() == [[0, 1, 20], [255, 15, 0]]
    assert len(opened(root, "val")) == 1


@pytest.mark.parametrize(
    "line", ["a 1", "a 1.jpg", "/JPEGImages/a 1.jpg /SegmentationClass/b_2.png"]
)
def test_lists_may_have_names_with_blanks(line, root):
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"a_1.{ending}").rename(root / folder / f"a 1.{ending}")
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{line}\nb_2 -1\n")
    assert [image.stem for image, _ in opened(root).pairs] == ["a 1", "b_2"]


def test_the_devkits_folder_is_found(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    (above / "VOCdevkit").mkdir()
    (above / "VOCdevkit" / "VOC2012").symlink_to(root)
    assert opened(above).read(0).label.shape == (2, 3)


def test_a_missing_list_shows_the_tree_and_the_next_step(root):
    with pytest.raises(DataError) as caught:
        opened(root, "trian")
    assert VOC.expected_tree in str(caught.value) and "Did you mean 'train'" in str(caught.value)
    with pytest.raises(DataError, match="segkd data make voc"):
        opened(root, "train_aug")


def test_train_aug_is_made_from_sbd(root, sbd):
    calls = []
    number = make_train_aug(opened(root), progress=lambda *call: calls.append(call))
    assert number == 4 and calls[-1] == (4, 4)
    dataset = opened(root, "train_aug")
    assert [image.stem for image, _ in dataset.pairs] == ["a_1", "b_2", "d_4", "e_5"]
    assert dataset.read(0).label[1, 0] == 255, "VOC's own mask comes first"
    assert [int(dataset.read(i).label[0, 0]) for i in (2, 3)] == [7, 8]
    assert {path.stem for path in (root / "SegmentationClassAug").iterdir()} == {"d_4", "e_5"}
    assert check_dataset(dataset).ok


def test_the_line_that_says_how_to_use_train_aug_is_complete(root, sbd, capsys):
    make("voc", [f"data.root={root}"], out=None, train=None, val=None, cache=False)
    told = shlex.split(capsys.readouterr().out.partition("Use them: ")[2])
    config = load_data("voc", told[1:])
    assert told[0] == "data.name=voc" and len(VOC(config, config.train_split)) == 4


def test_made_masks_are_kept_and_another_folder_is_read(root, sbd, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("sbd") / "dataset"
    sbd.rename(elsewhere)
    with pytest.raises(DataError, match=r"data\.sbd=FOLDER"):
        make_train_aug(opened(root))
    assert make_train_aug(opened(root, sbd=elsewhere)) == 4
    stamp = (root / "SegmentationClassAug/d_4.png").stat().st_mtime_ns
    assert make_train_aug(opened(root, sbd=elsewhere)) == 4
    assert (root / "SegmentationClassAug/d_4.png").stat().st_mtime_ns == stamp


def test_no_list_is_made_that_another_would_hide(root, sbd):
    write_list(root, "trainaug", "a_1\n")
    with pytest.raises(DataError, match=r"trainaug\.txt is there already.*move it away"):
        make_train_aug(opened(root))
    assert not (root / "SegmentationClassAug").exists()


def test_missing_images_are_named_before_anything_is_written(root, sbd):
    (root / "JPEGImages/d_4.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 4 images are missing, e\.g\. d_4\.jpg"):
        make_train_aug(opened(root))
    assert not (root / "SegmentationClassAug").exists()


def test_broken_files_of_sbd_are_named(root, sbd):
    from scipy.io import savemat

    path = sbd / "cls" / "d_4.mat"
    savemat(path, {"GTcls": {"Segmentation": np.full((2, 2), 30, np.uint8)}})
    with pytest.raises(DataError, match=r"d_4\.mat.*30"):
        make_train_aug(opened(root))
    path.write_bytes(b"no mat")
    with pytest.raises(DataError, match=r"d_4\.mat: no segmentation of SBD"):
        read_sbd(path)
    assert not (root / LISTS / "train_aug.txt").exists()


def test_the_list_and_folder_that_others_hand_on(root):
    write(root, "d_4", "SegmentationClassAug", np.full((2, 3), 7, np.uint8))
    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
    write_list(root, "trainaug", line.format("d_4") + line.format("a_1"))
    dataset = opened(root, "train_aug")
    assert [image.stem for image, _ in dataset.pairs] == ["d_4", "a_1"]
    assert int(dataset.read(0).label[0, 0]) == 7


def test_masks_of_other_splits_are_no_findings(root):
    report = check_dataset(opened(root, "val"))
    assert report.ok and not [f for f in report.findings if "without an image" in f.text]


def test_other_values_and_colours_are_refused(root):
    Image.fromarray(np.full((2, 3), 30, np.uint8)).save(root / "SegmentationClass/c_3.png")
    assert "30" in check_dataset(opened(root, "val")).errors[0].text
    Image.fromarray(np.full((2, 3, 3), (1, 2, 3), np.uint8)).save(
        root / "SegmentationClass/c_3.png"
    )
    with pytest.raises(DataError, match=r"c_3\.png: the mask has colours"):
        opened(root, "val").read(0)
