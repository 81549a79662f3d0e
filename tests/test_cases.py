"""Situations of public bug reports, remade as small inputs: what each asks for comes out.

Each folder of ``$SEGKD_REAL_DATA/cases`` has a README that says what is right.
"""

import os
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from segkd import cli
from segkd.data.reading import read_image
from segkd.inference.media import open_source
from segkd.models.foreign import read_state

pytestmark = pytest.mark.real
CHECK = ("data", "check", "folder", "data.root=.", "data.spec=spec.yaml")
CHEAP = ("log.tensorboard=false", "runtime.device=cpu", "runtime.threads=1")
TRAIN = ("train", "run.yaml", *CHEAP)
CASES = {  # by folder: arguments, exit code, what is said, what is not
    "01_batch_of_one_aspp": (TRAIN, 2, ["data.batch_size=2"], []),
    "02_symlinked_subfolder": (CHECK, 0, ["folder train: 4 images"], []),
    "04_lightning_extra_tensors": (TRAIN, 0, ["3 unused (mean, std, criterion)"], []),
    "06_old_smp_deeplabv3": (
        TRAIN,
        0,
        ["teacher t: old.pth: plain layout", "after 2 steps"],
        ["left over"],
    ),
    "08_binary_0_255": (TRAIN, 2, ["no pixel of 'fg'", "ids: [255]", "`ignore: []`"], []),
    "09_list_with_bom": (
        (*CHECK[:-1], "data.spec=spec_bom.yaml"),
        0,
        ["folder train: 2 images", "no problems"],
        [],
    ),
    "10_notebook_leftovers": (CHECK, 0, ["folder train: 4 images"], ["warning"]),
    "11_cityscapes_apple_double": (
        ("data", "check", "cityscapes", "data.root=.", "data.val_split=train"),
        0,
        ["cityscapes train: 1 images"],
        ["error"],
    ),
    "15_same_stem_twice": (CHECK, 2, ["000.jpg", "000.png", "two images of one name"], []),
    "19_ids_in_three_channels": (CHECK, 0, ["no problems"], ["masks: colors"]),
    "20_jpeg_ids": (CHECK, 2, ["is a JPEG, whose compression changes ids"], []),
    "22_tusimple_absent_lane": (
        ("data", "check", "tusimple", "data.root=.", "data.train_split=all", "data.val_split=all"),
        0,
        ["has no point", "the metric counts it"],
        [],
    ),
    "23_ema_beside_weights": (TRAIN, 0, ["`state_dict` is used", "#state_dict_ema"], []),
    "24_val_sizes_differ": (
        (*TRAIN, "eval.batch_size=2", "eval.every=2"),
        2,
        ["differ in size", "eval.batch_size=1"],
        ["loss"],  # said before the first step
    ),
    "25_all_void_training": (TRAIN, 2, ["no pixel of any class"], []),
    "26_upper_case_mask_ending": (CHECK, 2, ["mask_ending: .PNG"], []),
    "27_unicode_forms": (CHECK, 0, ["folder train: 4 images", "no problems"], []),
    "28_empty_list": (CHECK, 2, ["t.txt: the list is empty"], []),
    "29_palette_masks_tiff_bmp_gif": (CHECK, 0, ["no problems"], ["masks: colors"]),
    "30_anti_aliased_colours": (CHECK, 2, ["`ignore_colors`", "undeclared: ignore"], []),
}


@pytest.fixture
def case(tmp_path, monkeypatch):
    """``case(name)``: goes into a copy of a case's folder, made if it has a make.py."""

    def enter(name):
        source = Path(os.environ["SEGKD_REAL_DATA"]) / "cases" / name
        folder = tmp_path / name
        shutil.copytree(source, folder, symlinks=True)
        for path in (folder, *folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)
                _as_link(path)
        monkeypatch.chdir(folder)
        if (folder / "make.py").exists():
            runpy.run_path("make.py")  # in this process: torch is here already
        return folder

    return enter


def _as_link(path):
    """Some ways of copying leave a text file in the place of a link to a folder."""
    if path.is_file() and not path.suffix and path.stat().st_size < 100:
        target = path.read_text(errors="replace").strip()
        if target.startswith("..") and (path.parent / target).is_dir():
            path.unlink()
            path.symlink_to(target)


def call(capfd, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    out, err = capfd.readouterr()
    return stop.value.code or 0, " ".join((out + err).split())


@pytest.mark.parametrize("name", CASES)
def test_the_command_does_what_is_right(name, case, capfd):
    arguments, code, said, unsaid = CASES[name]
    case(name)
    found, text = call(capfd, *arguments)
    assert "Traceback" not in text and found == code, text
    assert [words for words in said if words not in text] == [], text
    assert [words for words in unsaid if words in text] == [], text


def test_a_notebooks_copies_are_no_images_to_predict(case):
    folder = case("10_notebook_leftovers") / "images/train"
    names = [path.relative_to(folder).as_posix() for path in open_source(folder).files]
    assert names == sorted(f"{number:03d}.png" for number in range(4))


def test_averaged_weights_alone_are_found(case):
    folder = case("23_ema_beside_weights")
    state, whole = read_state(folder / "ema.pth"), torch.load(folder / "both.pth")
    assert state.keys() == whole["state_dict_ema"].keys()
    assert all(torch.equal(value, whole["state_dict_ema"][key]) for key, value in state.items())


def test_bytes_behind_a_png(case):
    assert read_image(case("17_png_trailing_bytes") / "t.png").ndim == 3


def test_no_case_is_left_out():
    folder = Path(os.environ["SEGKD_REAL_DATA"]) / "cases"
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {*CASES, "17_png_trailing_bytes"}
