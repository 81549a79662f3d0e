"""`segkd init`: what it writes can be read, trained and understood."""

from collections import Counter

import pytest
from image_folders import folder, image, mask, write

from segkd import cli
from segkd.config.load import load_config
from segkd.engine.setup import open_dataset
from segkd.pipeline.commented import commented
from segkd.pipeline.settings import choose
from segkd.yaml_tree import parse

NAMES = lambda n: (f"images/{n}.png", f"masks/{n}.png")  # noqa: E731


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_the_written_config_opens_its_images_from_anywhere(call, tmp_path, monkeypatch):
    folder(tmp_path / "fields", NAMES, count=10)
    (tmp_path / "fields/classes.txt").write_text("sky\nroad\ncar\ntree\n")
    code, out, _ = call("init", "fields")
    assert code == 0 and "8 train, 2 val" in out and "4 classes: sky, road, car, tree" in out
    names = ["fields.spec.yaml", "fields.train.txt", "fields.val.txt", "fields.yaml"]
    assert sorted(path.name for path in tmp_path.glob("fields.*")) == names
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = load_config(tmp_path / "fields.yaml").run
    train, val = (open_dataset(run, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (8, 2) and train.classes == ("sky", "road", "car", "tree")
    assert (train.read(3).label == mask(3)).all()


def test_every_choice_has_its_comment(call, tmp_path):
    folder(tmp_path / "fields", NAMES, count=10)
    write(tmp_path / "fields/images/bare.png", image(mask(0), 0))
    call("init", "fields")
    config, spec = ((tmp_path / f"fields{end}.yaml").read_text() for end in ("", ".spec"))
    assert "batch_size: 8  # for " in config and "# images are 32x48" in config
    assert "#   unlabeled: {split: unlabeled, share: 0.334}" in config
    assert "{name: class_0, ids: [0]}  # 25.00 % of the pixels, in 10 of 10 masks" in spec
    assert "splits:  # the last fifth by name" in spec and "# 1 images" in spec


def test_commands_of_names_with_spaces_can_be_pasted(call, tmp_path):
    folder(tmp_path / "my fields", NAMES)
    code, out, _ = call("init", "my fields")
    assert code == 0 and "segkd data show 'my fields.yaml'\n" in out
    assert "Write your teacher" not in out and "segkd train 'my fields.yaml'\n" in out
    text = (tmp_path / "my fields.yaml").read_text()
    assert "# Written by: segkd init 'my fields'\n" in text
    assert "# Train it: segkd train 'my fields.yaml'\n" in text


def test_files_are_not_overwritten(call, tmp_path):
    folder(tmp_path / "fields", NAMES)
    assert call("init", "fields")[0] == 0
    before = (tmp_path / "fields.yaml").read_text()
    code, _, err = call("init", "fields")
    assert code == 2 and "fields.yaml exists already" in err and "--name" in err
    assert (tmp_path / "fields.yaml").read_text() == before
    assert call("init", "fields", "--name", "other", "--out", "new")[0] == 0
    assert (tmp_path / "new/other.spec.yaml").is_file()


def test_lists_are_not_overwritten_and_only_written_files_are_listed(call, tmp_path):
    folder(tmp_path / "fields", NAMES, count=10)
    (tmp_path / "out").mkdir()
    mine = {"fields.val.txt": "my own list\n", "fields.zip": "an archive"}
    for name, text in mine.items():
        (tmp_path / "out" / name).write_text(text)
    code, _, err = call("init", "fields", "--out", "out")
    assert code == 2 and "fields.val.txt exists already" in err and "--name" in err
    there = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert there == mine
    (tmp_path / "out/fields.val.txt").unlink()
    code, out, _ = call("init", "fields", "--out", "out")
    names = ["fields.yaml", "fields.spec.yaml", "fields.train.txt", "fields.val.txt"]
    written = [line for line in out.splitlines() if line.startswith("written: ")]
    assert code == 0 and sorted(written) == sorted(f"written: out/{name}" for name in names)
    assert all((tmp_path / "out" / name).is_file() for name in names)


def test_images_without_masks_need_a_teacher(call, tmp_path):
    folder(tmp_path / "frames", lambda n: (f"{n}.png", None), count=20)
    (tmp_path / "frames/classes.txt").write_text("sky\nroad\n")
    code, out, _ = call("init", "frames")
    assert code == 0 and "no masks: a teacher is needed" in out
    assert "Write your teacher into frames.yaml. Train it: segkd train frames.yaml" in out
    run = load_config(tmp_path / "frames.yaml").run
    assert run.task.weight == 0 and run.data.labels == "none"
    assert run.teachers["main"].checkpoint == "TEACHER.pt"
    assert len(open_dataset(run, "train")) == 18 and len(open_dataset(run, "val")) == 2
    code, _, err = call("train", "frames.yaml")
    assert code == 2 and "TEACHER.pt" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["none"], "the folder does not exist"),
        (["empty"], "there is no image"),
        (["fields", "--images", "x"], "give both"),
        (["fields", "--name", "a/b"], "expected a name without folders: --out a --name b"),
        (["fields", "--out", "x.txt"], "--out: x.txt is a file"),
    ],
)
def test_mistakes_are_one_message(arguments, text, call, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.txt").touch()
    folder(tmp_path / "fields", NAMES)
    code, _, err = call("init", *arguments)
    assert code == 2 and err.count("error:") == 1 and "Traceback" not in err
    assert text in err and "masks:" not in err


def test_comments_do_not_change_the_data():
    data = {
        "a": {"b": 1, "c": [1.5, None], "d": {"e": "no", "f": "1e3"}},
        "list": [{"x": "# y: z"}, {"x": "é"}],
        "empty": {},
        "long": {"words": "w" * 90},
    }
    notes = {"a": "one", "a.c": "two " * 40, "list.1": "three", "long.words": "four"}
    text = commented(data, notes, "head\nmore")
    assert parse(text, "text").plain() == data
    assert text.startswith("# head\n# more\na:  # one\n") and "x: é}  # three\n" in text
    assert max(len(line) for line in text.splitlines() if not line.lstrip().startswith("#")) < 105


def test_settings_follow_images_and_machine(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    small = choose(Counter([(96, 128)]), 4)
    assert "resize" not in small.data and small.data["crop"] == [96, 96]
    assert small.data["batch_size"] == 4 and small.keys["steps"] == 600
    large = choose(Counter([(1024, 2048)]), 1000)
    assert large.data["resize"] == [160, 320] and large.data["crop"] == [128, 256]
    assert large.keys["steps"] == 2000
    assert choose(Counter([(360, 480)]), 300).keys["steps"] == 1125
    fixed = choose(Counter([(360, 480)]), 300, steps=7, fixed=(64, 96))
    assert fixed.data["resize"] == fixed.data["crop"] == [64, 96] and fixed.keys["steps"] == 7
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    gpu = choose(Counter([(1024, 2048)]), 2975)
    assert "resize" not in gpu.data and gpu.data["crop"] == [512, 512]
    assert gpu.keys["runtime"] == {"precision": "bf16"} and gpu.data["batch_size"] == 16
