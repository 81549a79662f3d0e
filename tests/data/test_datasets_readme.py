from pathlib import Path

import pytest

from segkd import registry

FOLDER = Path(__file__).parents[2] / "datasets"


OURS = [entry for entry in registry.datasets if entry.__module__.startswith("segkd.")]


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_the_readme_shows_every_set_and_its_tree(entry):
    text = (FOLDER / "README.md").read_text()
    assert f"## {entry.name}" in text
    assert not entry.expected_tree or f"```\n{entry.expected_tree}\n```" in text


def test_the_folder_is_no_package():
    assert not (FOLDER / "__init__.py").exists()
