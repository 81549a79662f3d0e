from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segkd.commands.data import check
from segkd.data.check import check_dataset
from segkd.data.duplicates import find_duplicates, fingerprint
from segkd.data.folder import Folder, FolderConfig

SPEC = {
    "classes": [{"name": "road"}, {"name": "car"}],
    "splits": {
        "train": {"images": "train", "masks": "train_masks"},
        "val": {"images": "val", "masks": "val_masks"},
    },
}
CONFIG = """
steps: 2
student: {{arch: toy}}
data:
  name: folder
  root: {root}
  spec:
    classes: [{{name: road}}, {{name: car}}]
    splits:
      train: {{images: train, masks: train_masks}}
      val: {{images: val, masks: val_masks}}
"""


def put(root: Path, split: str, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.arange(24, dtype=np.uint8).reshape(4, 6) % 2
    for folder, array in (
        (split, rng.integers(0, 256, (4, 6, 3)).astype(np.uint8)),
        (f"{split}_masks", label),
    ):
        (root / folder).mkdir(exist_ok=True)
        stem = Path(name).stem if folder != split else None
        Image.fromarray(array).save(root / folder / (f"{stem}.png" if stem else name))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "train", "a.png", 1)
    put(tmp_path, "train", "b.png", 2)
    put(tmp_path, "val", "c.png", 3)
    return tmp_path


def duplicates(root: Path):
    config = FolderConfig(name="folder", root=root, spec=SPEC)
    splits = ("train", "val")
    return find_duplicates({s: check_dataset(Folder(config, s)).fingerprints for s in splits})


def test_images_of_two_splits_are_named_on_both_sides(root):
    assert duplicates(root) == []
    put(root, "val", "other_name.png", 2)
    (finding,) = duplicates(root)
    assert finding.level == "error" and finding.file == str(root / "val/other_name.png")
    assert f"split 'train': {root / 'train/b.png'}" in finding.text and finding.repair


def test_another_file_format_hides_nothing(root):
    put(root, "val", "d.bmp", 1)
    (finding,) = duplicates(root)
    assert Path(finding.file).name == "d.bmp" and "a.png" in finding.text


def test_one_changed_pixel_or_another_shape_is_another_image():
    image = np.zeros((4, 6, 3), np.uint8)
    changed = image.copy()
    changed[3, 5, 2] = 1
    marks = {fingerprint(x) for x in (image, changed, image.reshape(6, 4, 3))}
    assert len(marks) == 3
    assert fingerprint(np.asfortranarray(changed)) == fingerprint(changed)


def test_all_pairs_of_splits_are_compared():
    splits = {"a": {"1": "x"}, "b": {"2": "y"}, "c": {"1": "z", "2": "w"}}
    assert [finding.file for finding in find_duplicates(splits)] == ["z", "w"]


def test_the_command_finds_them(root, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(root=root))
    assert check(str(path), [])
    put(root, "val", "d.png", 1)
    assert not check(str(path), [])
    assert "the same image as split 'train'" in capsys.readouterr().out
