"""The command line: what it calls, what it prints, and its exit codes."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
import yaml

from segkd import cli, faults
from segkd.commands.evaluate import file_stem
from segkd.errors import Interrupted, SegKDError

ROOT = Path(__file__).parent.parent
RUN = "steps: 3\ndata: {name: toy}\nstudent: {arch: toy}\n"


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """``call("list", "methods")``: exit code, stdout, stderr, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture
def trained(monkeypatch):
    """What ``segkd.api.train`` was called with; ``trained.error`` is raised if set."""

    class Calls(list):
        error = None

    calls = Calls()

    def train(config, overrides=()):
        calls.append((config, list(overrides)))
        if calls.error is not None:
            raise calls.error

    import segkd.api

    monkeypatch.setattr(segkd.api, "train", train)
    return calls


def test_train_passes_config_and_overrides(call, trained):
    assert call("train")[0] == 0
    assert call("train", "camvid/x", "steps=3", "optim.lr=-1")[0] == 0
    assert call("train", "steps=3")[0] == 0
    assert trained == [
        (None, []),
        ("camvid/x", ["steps=3", "optim.lr=-1"]),
        (None, ["steps=3"]),
    ]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (SegKDError("the sky [b]fell[/b]"), 2, "error: the sky [b]fell[/b]\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            2,
            "error: No space left on devic",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "Permission denied: /x\n"),
        (Interrupted("stopped after step 3", 2), 130, "stopped: stopped after step 3\n"),
        (Interrupted("stopped after step 3", 15), 143, "stopped: stopped after step 3\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_mistakes_and_signals_have_their_exit_code_and_no_traceback(
    call, trained, error, code, message
):
    trained.error = error
    got, _, err = call("train")
    assert got == code
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "work"),
    [
        (["eval", "x"], "segkd.api.evaluate"),
        (["export", "x"], "segkd.runtime.limit_threads"),
        (["report", "x"], "segkd.commands.report.make_report"),
        (["distill", "--data", "x"], "segkd.pipeline.distill.distill"),
        (["active-mixup", "streets/active_mixup"], "segkd.commands.stores.active_mixup"),
        (["data", "convert", "x", "y", "--to", "via"], "segkd.commands.lane_convert.convert_lanes"),
    ],
)
def test_a_command_that_is_stopped_says_how_to_go_on(call, monkeypatch, arguments, work):
    monkeypatch.setattr(work, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = call(*arguments)
    assert code == 130 and err.startswith("stopped: ") and "The same command" in err, err


@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("eval", "segkd.api.evaluate"),
        ("report", "segkd.report.make.gather"),
    ],
)
def test_a_folder_below_a_file_is_refused_before_the_work(call, monkeypatch, command, work):
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("the work was begun"))
    monkeypatch.setattr("segkd.report.make.collect", lambda *_: None)
    Path("notes.txt").touch()
    code, _, err = call(command, "x", "--out", "notes.txt/deep")
    assert code == 2 and "this is a file, where a folder is needed" in err, err


def test_a_bug_shows_its_traceback_and_asks_for_a_report(call, trained):
    trained.error = KeyError("oops")
    code, _, err = call("train")
    assert code == 1
    assert "Traceback" in err and "KeyError: 'oops'" in err
    assert "Please report" in err


def test_under_torchrun_the_first_process_tells_a_mistake_and_the_others_do_not(
    call, trained, monkeypatch, tmp_path
):
    trained.error = SegKDError("no")
    slept = []
    monkeypatch.setattr(faults.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    for rank, waits, told in (("0", [], "error: no\n"), ("1", [3.0], "")):
        monkeypatch.setenv("RANK", rank)
        assert call("train") == (2, "", told)
        assert slept == waits


def test_under_torchrun_a_mistake_of_another_process_alone_is_told(
    call, trained, monkeypatch, tmp_path
):
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(faults.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    trained.error = SegKDError("no")
    assert call("train") == (2, "", "error: no\n")
    monkeypatch.setenv("RANK", "0")
    trained.error = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert call("train") == (1, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nope"], "there is no config 'nope'"),
        (["train", "bad.yaml"], "bad.yaml:4: stepz: unknown key. Did you mean 'steps'?"),
        (["train", "run.yaml", "steps"], "command line: got 'steps', expected key=value"),
        (["eval", "nope"], "there is no checkpoint nope"),
        (
            ["eval", "lanes_fpn_efficientnet_lite"],
            "Did you mean 'pretrained:lanes_fpn_efficientnet_lite0'?",
        ),
        (
            ["eval", "nope", "--iou", "0.5", "eval.lanes.iou=[0.7]"],
            "--iou means eval.lanes.iou=[0.5], and eval.lanes.iou=[0.7] is given, too",
        ),
        (["explain", "cdw"], "unknown method 'cdw'. Did you mean 'cwd'?"),
        (["list", "method"], "cannot list 'method'. Did you mean 'methods'?"),
        (["list", "methods", "--kind", "respons"], "Did you mean 'response'?"),
        (["config", "show", "quikstart"], "Did you mean 'quickstart'?"),
        (["config", "copy", "nope"], "there is no config 'nope'"),
        (["config", "copy", "run.yaml", "bad.yaml"], "bad.yaml exists already"),
        (["config", "copy", "run.yaml", "bad.yaml/x.yaml"], "this is a file, where a folder is"),
        (["data", "check", "camvd"], "Datasets that can be checked by name: "),
        (["data", "check", "camvid", "data.root=/nowhere"], "/nowhere"),
        (["data", "show", "camvid", "data.root=/nowhere", "--out", "x.pdf"], "the ending '.pdf'"),
        (["data", "make", "camvid"], "can be made"),
        (["demo", "lanes", "--run", "none", "--out", "run.yaml"], "this is a file, where a folder"),
        (["data", "make", "toy", "--cache"], "has no decoded cache"),
        (["data", "make", "voc", "--out", "x"], "the data root: data.root=FOLDER. It reads none"),
        (["data", "make", "voc", "--train", "800"], "--train would change nothing"),
        (["data", "show", "toy", "--run", "x"], "--run x: toy is a dataset, not a recipe"),
        (["data", "show", "toy", "data.unlabeled.root=."], "give a config that has it"),
        (["data", "make", "culane", "--train", "9"], "--train without --val: for culane they are"),
        (["data", "make", "lanes", "--masks"], "It reads --out, --train, --val"),
        (["data", "make", "cityscapes", "--cache", "--val", "3"], "--val would change nothing"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(call, arguments, message):
    Path("run.yaml").write_text(RUN)
    Path("bad.yaml").write_text(RUN + "stepz: 4\n")
    code, _, err = call(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "train",
        "eval",
        "list",
        "explain",
        "config show",
        "config copy",
        "data make",
        "data check",
        "data show",
        "profile",
        "report",
        "score segmentation",
    ],
)
def test_help_shows_an_example(call, command):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert f"Example: segkd {command}" in out


def test_version(call):
    from segkd import __version__

    assert call("--version") == (0, f"segkd {__version__}\n", "")


def test_lists_as_text_json_and_markdown(call):
    code, out, _ = call("list", "methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {"cwd", "kd"} <= {row["name"] for row in rows}
    assert all(row["kind"] and row["paper"] for row in rows if row["name"] in ("kd", "cwd"))
    assert "| `kd` |" in call("list", "methods", "--markdown")[1]
    assert "kd " in call("list", "methods", "--kind", "response")[1]
    assert "toy" in call("list", "datasets")[1]


def test_list_configs_names_kind_and_root(call):
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text("# My own run.\n" + RUN)
    out = call("list", "configs")[1]
    assert "mine" in out and "My own run." in out
    assert "recipe" in next(line for line in out.splitlines() if line.startswith("quickstart"))
    assert "from configs, " in out


@pytest.mark.parametrize(
    ("method", "words", "counts"),
    [
        ("at", "default: the last three stages", True),
        ("ofd", "default: the deepest stage, before its activation", True),
        ("cwd", "default: `tap`", False),
    ],
)
def test_explain_says_what_default_taps_mean(call, method, words, counts):
    _, out, _ = call("explain", method)
    assert words in out and ("default stages count from the deepest" in out) == counts


def test_explain_tells_all_that_the_class_knows(call):
    _, out, _ = call("explain", "cwd")
    for part in (
        "arXiv 2011.13256",
        "temperature: 4.0",
        "tap: logits",
        "teacher logits",
        "mmrazor",
    ):
        assert part in out
    facts = json.loads(call("explain", "kd", "--json")[1])
    assert facts["accepts_ensembles"] is True
    assert "temperature" in [key["name"] for key in facts["own_keys"]]
    facts = json.loads(call("explain", "meal", "--json")[1])
    assert facts["accepts_ensembles"] is False  # by default it reads features, too


def test_types_of_keys_are_words_and_not_python(call):
    kinds = {}
    for method in ("kd", "cirkd", "cgan", "dml", "sad", "cc", "dkd"):
        facts = json.loads(call("explain", method, "--json")[1])
        kinds[method] = {key["name"]: key["type"] for key in facts["own_keys"]}
    common = {key["name"]: key["type"] for key in facts["common_keys"]}
    assert common["weight"] == "float >= 0 | paper | {auto, every, smoothing, freeze}"
    assert common["weights"] == "dict[str, float >= 0]"
    assert common["adapter_warmup"] == "int >= 0 | null"
    assert common["pseudo_labels"] == "float > 0, <= 1 | null"
    assert common["decay"] == "none|linear|cosine" and common["mask"] == "valid|not_padding"
    assert kinds["kd"]["student_temperature"] == "float > 0 | null"
    assert kinds["cirkd"]["pool"] == "int > 0 | tuple[int > 0, int > 0] | null"
    betas = "float >= 0, < 1"
    assert kinds["cgan"]["critic_betas"] == f"tuple[{betas}, {betas}]"
    assert kinds["dml"]["peers"] == "int > 0 | dict[str, dict[str, any]]"
    assert kinds["sad"]["pairs"] == "list[tuple[str, str]] | null"
    words = " ".join(one for keys in kinds.values() for one in keys.values())
    assert not any(word in words for word in ("Annotated", "Optional", "Union", "(gt", "segkd."))


def test_an_unknown_config_is_answered_with_the_nearest_names_only(call):
    _, _, err = call("train", "camvid/cwd_r18")
    listed = err.partition("The nearest names: ")[2].partition(". See")[0].split(", ")
    assert 2 <= len(listed) <= 5 and listed[0] == "camvid/kd_cwd"
    _, _, err = call("train", "zzzzzz")
    assert err.count(",") <= 2 and "See: segkd list configs" in err


def test_config_show_takes_one_run_of_a_recipe(call):
    code, out, _ = call("config", "show", "quickstart", "--run", "distilled", "common.steps=7")
    assert code == 0
    assert yaml.safe_load(out)["steps"] == 7 and "runs" not in yaml.safe_load(out)
    assert yaml.safe_load(out)["methods"]
    code, _, err = call("config", "show", "quickstart", "--run", "distiled")
    assert code == 2 and "has no run 'distiled'. Did you mean 'distilled'?" in err
    Path("run.yaml").write_text(RUN)
    code, _, err = call("config", "show", "run.yaml", "--run", "x")
    assert code == 2 and "is a single run" in err


def test_results_of_several_evaluations_have_files_of_their_own():
    names = [["eval.flip=true"], ["eval.scales=[0.5,1]"], ["eval.scales=[0.5 1]"], ["a=1", "a=2"]]
    stems = [file_stem(overrides) for overrides in [*names, ["a=2", "a=1"], ["x=" + "é" * 400]]]
    assert len(set(stems)) == 6 and all(len(stem) < 100 and "/" not in stem for stem in stems)
    assert file_stem([]) == "eval" and stems[0].startswith("eval.eval.flip=true.")
    assert file_stem([], "eval.last") == "eval.last"
    assert file_stem(["b=1", "a=2"]) == file_stem(["a=2", "b=1"])


def test_config_show_prints_yaml_that_loads_to_the_same(call):
    from segkd.config.load import load_config

    Path("run.yaml").write_text(RUN)
    _, out, _ = call("config", "show", "run.yaml", "steps=9")
    Path("shown.yaml").write_text(out)
    assert load_config("shown.yaml").run == load_config("run.yaml", ["steps=9"]).run


def test_config_copy_is_small_and_loads_from_anywhere(call):
    from segkd.config.load import load_config

    for folder, base in (
        ("configs/_base_", ""),
        ("configs/sets", "base: ../_base_/one.yaml # why\n"),
    ):
        Path(folder).mkdir(parents=True)
        Path(folder, "one.yaml").write_text(base + RUN)
    code, out, _ = call("config", "copy", "sets/one", "away/two.yaml")
    assert code == 0 and "away/two.yaml" in out
    assert Path("away/two.yaml").read_text() == "base: _base_/one.yaml # why\n" + RUN
    assert load_config("away/two.yaml").run.steps == 3
    code, out, _ = call("config", "copy", "away/two.yaml", "away/three.yml")
    assert code == 0 and load_config("away/three.yml").run.steps == 3


def test_data_check_reads_both_splits(call):
    code, out, _ = call("data", "check", "toy")
    assert code == 0
    assert "toy train: 7 images" in out and "toy val: 7 images" in out


def test_data_check_reads_each_different_set_of_a_recipe(call):
    runs = "  first: {}\n  same: {data: {batch_size: 2}}\n"
    runs += "  more: {data: {train_split: more}}\n  fewer: {data: {images: 3}}\n"
    Path("recipe.yaml").write_text(
        f"common: {{{RUN.strip().replace(chr(10), ', ')}}}\nruns:\n{runs}"
    )
    code, out, err = call("data", "check", "recipe.yaml")
    assert code == 0, err
    told = [line for line in out.splitlines() if line.startswith(("Data", "toy"))]
    assert [line.partition(" images")[0] for line in told] == [
        "Data of first, same:",
        "toy train: 7",
        "toy val: 7",
        "Data of more:",
        "toy more: 7",
        "toy val: see above",
        "Data of fewer:",
        "toy train: 3",
        "toy val: 3",
    ]


def test_data_show_draws_training_images_as_the_student_sees_them(call):
    import cv2
    import numpy as np

    _, out, _ = call("data", "show", "toy", "--images", "9")
    assert "first 9 training images of seed 0; the set has 7, so some are there twice" in out
    sheets = []
    for augment in ("[]", "[{InvertImg: {p: 1}}]"):
        code, out, _ = call("data", "show", "toy", f"data.augment={augment}", "--images", "2")
        assert code == 0 and out.startswith("samples.png: the first 2 training images of seed 0")
        sheets.append(cv2.imread("samples.png").astype(int))
    changed = (sheets[0] != sheets[1]).any(axis=2)
    rows, columns = (np.flatnonzero(changed.any(axis=axis)) for axis in (1, 0))
    tile = slice(rows[0], rows[0] + 250), slice(columns[0] + 2, columns[0] + 430)
    assert np.mean(np.abs(sheets[0][tile] + sheets[1][tile] - 255) <= 2) > 0.9
    assert columns[0] == 24 and rows[-1] - rows[0] > 500 and "label" not in out


def test_data_show_takes_a_run_of_a_recipe(call):
    keys = ["common.data.train_images=4", "common.data.size=[32,64]", "common.data.crop=[32,64]"]
    keys += ["runs.distilled.data.unlabeled_images=8"]
    shown = call("data", "show", "quickstart", "--run", "distilled", "--out", "a.png", *keys)
    assert shown[0] == 0 and Path("a.png").is_file()
    code, _, err = call("data", "show", "quickstart", "--run", "distiled")
    assert code == 2 and "has no run 'distiled'. Did you mean 'distilled'?" in err
    Path("run.yaml").write_text(RUN)
    code, _, err = call("data", "show", "run.yaml", "--run", "x")
    assert code == 2 and "is a single run" in err


def test_the_shims_work_from_a_clone(tmp_path):
    for shim in ("train.py", "eval.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / shim), "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Usage: segkd" in done.stdout


@pytest.mark.parametrize(("code", "left"), [(0, True), (2, False)])
def test_a_command_that_succeeds_leaves_the_process_group(code, left, tmp_path, monkeypatch):
    """After a failure the others may be waiting, and leaving could wait for them."""

    def app(arguments, prog_name):
        store = f"file://{tmp_path / 'store'}"
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        sys.exit(code)

    monkeypatch.setattr(cli, "app", app)
    try:
        with pytest.raises(SystemExit):
            cli.main([])
        assert dist.is_initialized() is not left
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_names_and_paths_are_printed_as_they_are(capsys):
    from segkd.commands.display import fail, say
    from segkd.engine.logging import display_print

    for show in (say, display_print):
        show("runs/a:100:b [bold]:car:")
        assert capsys.readouterr().out == "runs/a:100:b [bold]:car:\n"
    fail("module:on:off")
    assert capsys.readouterr().err == "error: module:on:off\n"


def test_a_bar_shows_the_title_as_it_is(monkeypatch):
    from segkd.commands.display import progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with progress("predict a[/b] [old] :car:") as advance:
        advance(1, 2)
    assert "predict a[/b] [old] :car:" in sys.stderr.getvalue()
