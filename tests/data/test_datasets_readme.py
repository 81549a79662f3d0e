import re
from pathlib import Path

import pytest

from segkd import registry

FOLDER = Path(__file__).parents[2] / "datasets"

# What ships; somebody's own in a clone need not be there.
SHIPPED = (
    *("ade20k", "arrays", "bdd100k", "camvid", "cityscapes", "coco_stuff"),
    *("culane", "curvelanes", "folder", "lanes", "llamas", "streets", "tusimple", "voc"),
)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_readme_shows_every_set_and_its_tree(name):
    text, entry = (FOLDER / "README.md").read_text(), registry.datasets.get(name)
    assert f"## {name}" in text
    assert not entry.expected_tree or f"```\n{entry.expected_tree}\n```" in text


def test_what_the_readme_shows_exists():
    shown = re.findall(r"^## (\w+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert set(shown) <= set(SHIPPED) | {"loops"}, shown


def test_the_folder_is_no_package():
    assert not (FOLDER / "__init__.py").exists()
