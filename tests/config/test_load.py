"""Loading: bases, overrides, where configs are found, what is stored, what may change."""

from pathlib import Path

import pytest

from segkd.config.load import (
    config_difference,
    dump_config,
    load_config,
    load_evaluation,
    load_text,
)
from segkd.config.schema import TeacherConfig
from segkd.config_files import find_config, known_configs
from segkd.errors import ConfigError
from segkd.methods.cwd import CWD


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_run_is_typed_and_merged_over_its_base(folder):
    run = load_config("run").run
    assert (run.data.name, run.data.batch_size, run.optim.lr, run.eval.every) == (
        "toy",
        4,
        0.01,
        50,
    )
    assert isinstance(run.methods["cwd_head"], CWD.Config)
    assert run.methods["cwd_head"].tap == "head"
    assert run.out == Path("runs/run")


def test_overrides_win(folder):
    run = load_config("run", ["optim.lr=3e-3", "methods.kd=null", "eval.flip=on", "out=x/y"]).run
    assert (run.optim.lr, list(run.methods), run.eval.flip) == (0.003, ["cwd_head"], True)
    assert run.out == Path("x/y")


def test_a_first_argument_with_an_equals_sign_is_an_override(folder):
    write("configs/quickstart.yaml", Path("configs/run.yaml").read_text())
    assert load_config("steps=7").run.steps == 7
    assert load_config(None, ["steps=8"]).run.steps == 8


def test_several_bases_merge_in_order_relative_to_their_file(folder):
    write("elsewhere/a.yaml", "steps: 1\nseed: 1\n")
    write("elsewhere/deep/b.yaml", "base: ../a.yaml\nseed: 2\n")
    write("configs/two.yaml", "base: [run.yaml, ../elsewhere/deep/b.yaml]\noptim: {lr: 5}\n")
    run = load_config("two").run
    assert (run.steps, run.seed, run.optim.lr, run.optim.name) == (1, 2, 5, "sgd")


def test_a_base_is_also_found_by_its_name_below_the_root(folder):
    write("mine/copy.yaml", "base: run.yaml\nsteps: 5\n")
    assert load_config("mine/copy.yaml").run.steps == 5


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, "configs/b.yaml:1: base: is circular"),
        ({"a": "base: a.yaml"}, "a.yaml -> configs/a.yaml"),
        ({"a": "steps: 1\nbase: runn.yaml"}, "configs/a.yaml:2: base: there is no config"),
        ({"a": "base: {b: 1}"}, "configs/a.yaml:1: base: got {'b': 1}, expected a path or a list"),
        ({"a": ""}, "configs/a.yaml: got nothing"),
        ({"a": "- 1"}, "configs/a.yaml: got a list"),
        ({"a": "hello"}, "configs/a.yaml: got 'hello'"),
    ],
)
def test_a_base_or_file_that_does_not_do(folder, files, message):
    for name, text in files.items():
        write(f"configs/{name}.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config("a")
    assert message in str(caught.value)


def test_a_file_that_is_no_text(folder):
    Path("configs/a.yaml").write_bytes(b"steps: \xff\xfe")
    with pytest.raises(
        ConfigError, match=r"configs/a\.yaml, line 1: the byte 0xff is not valid UTF-8"
    ):
        load_config("a")


@pytest.mark.parametrize("name", ["run", "run.yaml", "configs/run", "configs/run.yaml"])
def test_a_config_is_found_by_path_and_by_name(folder, name):
    assert find_config(name) == folder / "configs" / "run.yaml"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "/", "configs", "configs/", "./configs"])
def test_a_folder_is_no_config(folder, name):
    with pytest.raises(
        ConfigError, match=r"a folder, expected a config|name of the config is empty"
    ):
        find_config(name)


def test_the_configs_of_a_folder_are_named(folder, monkeypatch):
    with pytest.raises(ConfigError, match=r"It contains configs/recipe\.yaml, configs/run\.yaml"):
        find_config("configs")
    monkeypatch.chdir("configs")
    with pytest.raises(ConfigError, match=r"'\.' is a folder.*It contains recipe\.yaml, run\.yaml"):
        find_config(".")


def test_configs_of_the_clone_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/quickstart.yaml").name == "quickstart.yaml"
    assert "quickstart" in known_configs()
    assert not any("_base_" in name for name in known_configs())


def test_an_unknown_config_is_answered_with_the_closest_one(folder):
    write("configs/toys/fine.yaml", "steps: 1")
    for asked, meant in (("rum", "run"), ("fine", "toys/fine"), ("toys/fin", "toys/fine")):
        with pytest.raises(ConfigError, match=f"no config '{asked}'. Did you mean '{meant}'"):
            load_config(asked)
    with pytest.raises(ConfigError, match=r"'configs/toys' is a folder.*toys/fine"):
        load_config("configs/toys")


def test_the_resolved_text_gives_an_equal_run(folder):
    loaded = load_config("run", ["eval.sliding=[64,32]", "optim.weight_decay=1e-5", "ema=0.9"])
    assert load_text(loaded.text) == loaded.run
    assert loaded.text == dump_config(load_text(loaded.text))
    write("stored.yaml", loaded.text)
    assert load_config("stored.yaml").run == loaded.run


def test_plain_values_from_python(folder):
    plain = {"steps": 3, "data": {"name": "toy"}, "student": {"arch": "toy"}}
    run = load_config(plain, ["seed=4"], values={"optim": {"lr": 0.5}, "out": Path("o")}).run
    assert (run.steps, run.seed, run.optim.lr, run.out) == (3, 4, 0.5, Path("o"))
    with pytest.raises(ConfigError, match=r"keyword arguments: stps: .*'steps'"):
        load_config(plain, values={"stps": 1})


def test_the_difference_names_keys_and_skips_what_may_change(folder):
    old = load_config("run").run
    same = ["runtime.device=cpu", "log.every=3", "data.workers=0", "out=z", "save_every=9"]
    assert config_difference(old, load_config("run", same).run) == []
    lines = config_difference(old, load_config("run", ["optim.lr=0.5", "methods.kd=null"]).run)
    assert "optim.lr: 0.01 -> 0.5" in lines
    assert "methods.kd.weight: 2.0 -> not set" in lines
    assert all(line.startswith(("optim.lr: ", "methods.kd.")) for line in lines)


def test_bases_that_double_end_with_a_message(folder):
    for number in range(25):
        Path(f"configs/b{number}.yaml").write_text(f"base: [b{number + 1}, b{number + 1}]\n")
    Path("configs/b25.yaml").write_text("steps: 1\n")
    with pytest.raises(ConfigError, match=r"b0\.yaml: more than 200 files are read"):
        load_config("b0")


def test_a_file_of_data_is_no_config(folder):
    Path("configs/a.yaml").write_text("steps: [" + "1, " * 400_000 + "1]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: has 1.1 MB, a configuration at most 1 MB"):
        load_config("a")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_config_in_another_unicode_encoding(folder, encoding):
    text = Path("configs/run.yaml").read_text()
    Path("configs/run.yaml").write_bytes(text.encode(encoding))
    assert load_config("run").run is not None


STORED = """
data: {name: streets, val_split: teacher_val, seed: 5, val_images: 3, resize: [64, 128], workers: 1}
eval: {flip: true}
"""


def test_another_set_is_scored_without_the_keys_of_the_former():
    found = load_evaluation(STORED, ["data.name=cityscapes", "data.root=/data/x"])
    assert found.data.name == "cityscapes" and found.data.root == Path("/data/x")
    assert found.data.val_split == "val" and found.data.resize == (64, 128)
    assert found.data.workers == 1 and found.eval.flip
    with pytest.raises(ConfigError, match=r"command line: data\.seed: unknown key"):
        load_evaluation(STORED, ["data.name=cityscapes", "data.seed=1"])
    with pytest.raises(ConfigError, match="Did you mean 'cityscapes'"):
        load_evaluation(STORED, ["data.name=cityscape"])


def test_the_same_set_keeps_its_keys():
    for overrides in ([], ["data.name=streets"], ["data.resize=null"]):
        found = load_evaluation(STORED, overrides).data
        assert (found.val_split, found.seed, found.val_images) == ("teacher_val", 5, 3)


def test_stored_configs_may_have_a_folder_that_nothing_was_read_from():
    plain = {"steps": 1, "student": {"arch": "enet"}, "data": {"name": "streets"}}
    text = dump_config(load_config(plain).run)
    assert text.count("root: null") == 1
    stored = load_text(text.replace("root: null", "root: some/folder"))
    assert stored.data.root == Path("some/folder"), "earlier versions took it"
    with pytest.raises(ConfigError, match="draws its images and reads no folder"):
        load_config({**plain, "data": {"name": "streets", "root": "some/folder"}})


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"ensemble": ["a", "b"], "classes": ["x", "y"]}, "`classes` is for networks. Give it to"),
        ({"ensemble": ["a", "b"], "classes": {"from": "camvid"}}, "`classes` is for networks"),
        ({"ensemble": ["a", "b"], "normalize": "none"}, "`normalize` is for networks. Give it to"),
        ({"ensemble": ["a", "b"], "encoder": "resnet50"}, "`encoder` is for networks of segkd"),
        ({"torchvision": "fcn_resnet50", "encoder": "resnet50"}, "`encoder` is for networks of"),
    ],
)
def test_keys_that_a_kind_of_teacher_does_not_read_are_refused(keys, told):
    with pytest.raises(ValueError, match=told):
        TeacherConfig(**keys)
