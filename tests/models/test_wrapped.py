"""What training programs wrap around weights: prefixes, tables, old names, leftovers."""

import re

import pytest
import torch

from segkd.archive import read_archive
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError
from segkd.models.build import build_network
from segkd.models.wrapped import without_prefixes


def network(arch="fpn", **keys):
    torch.manual_seed(3)
    return build_network(ModelConfig(arch=arch, encoder="resnet18", **keys), 3).eval()


def loaded(path, arch="fpn"):
    return network(arch, checkpoint=str(path))


def equal(found, wanted):
    mine, theirs = found.state_dict(), wanted.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_tensors_beside_a_wrapped_network_are_left_over_and_listed(tmp_path):
    source = network()
    state = {f"model.{key}": value for key, value in source.state_dict().items()}
    beside = {key: torch.ones(3) for key in ("mean", "std", "criterion.weight")}
    torch.save({"state_dict": {**state, **beside}, "epoch": 1}, tmp_path / "lit.ckpt")
    found = loaded(tmp_path / "lit.ckpt")
    assert equal(found, source)
    assert "3 unused (mean, std, criterion)" in str(found.match)


def test_tensors_beside_a_table_are_left_over_and_tables_without_tensors_no_tables(tmp_path):
    source = network()
    state = source.state_dict()
    content = {"state_dict": state, "best_acc1": torch.tensor(71.2), "arch": "fpn"}
    torch.save(content, tmp_path / "a.pth")
    found = loaded(tmp_path / "a.pth")
    assert equal(found, source) and "1 unused (best_acc1)" in str(found.match)
    content = {"model": {"name": "fpn", "model": {}}, "net": {"model": state}, "epoch": 3}
    torch.save(content, tmp_path / "b.pth")
    assert equal(loaded(tmp_path / "b.pth"), source)


def test_a_part_beside_others_is_no_prefix():
    state = dict.fromkeys(["model.a", "model.b", "decode_head.c"], torch.ones(1))
    assert without_prefixes(state) == (state, [])
    state = dict.fromkeys(["module.model.a", "module.model.b", "module.mean"], torch.ones(1))
    assert [list(part) for part in without_prefixes(state)] == [["a", "b"], ["mean"]]


def test_names_of_older_smp(tmp_path):
    source = network("deeplabv3")
    rules = (("aspp", "0"), ("conv", "1"), ("bn", "2"))
    state = source.state_dict()
    for new, old in rules:
        state = {re.sub(rf"^decoder\.{new}\.", f"decoder.{old}.", k): v for k, v in state.items()}
    torch.save(state, tmp_path / "old.pth")
    assert equal(loaded(tmp_path / "old.pth", "deeplabv3"), source)


def test_averaged_weights_beside_others(tmp_path):
    source = network()
    state = source.state_dict()
    zeros = {key: value * 0 for key, value in state.items()}
    torch.save({"state_dict": zeros, "state_dict_ema": state}, tmp_path / "both.pth")
    plain = loaded(tmp_path / "both.pth")
    assert not plain.state_dict()["encoder.conv1.weight"].any()
    assert "`state_dict` is used; for the averaged weights" in str(plain.match)
    assert equal(loaded(f"{tmp_path}/both.pth#state_dict_ema"), source)
    with pytest.raises(CheckpointError, match=r"no table 'x'\. Its tables: state_dict, state"):
        loaded(f"{tmp_path}/both.pth#x")
    torch.save({"ema": state}, tmp_path / "ema.pth")
    alone = loaded(tmp_path / "ema.pth")
    assert equal(alone, source) and "`ema` is used, averaged" in str(alone.match)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.pth\n", "git annex get w.pth"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (b'{"error": "not found"}', "JSON text"),
        (b"\x1f\x8b\x08\x00", "compressed archive"),
        (b"", "it is empty"),
    ],
)
def test_what_is_no_file_of_tensors_is_called_what_it_is(content, message, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path / "w.pth")


def test_harmless_extras_are_read_and_others_named(tmp_path):
    import argparse
    import pathlib

    import numpy as np

    extras = {"args": argparse.Namespace(lr=0.1, out=pathlib.Path("a")), "best": np.float64(0.5)}
    torch.save({"state_dict": {"a": torch.ones(2)}, **extras}, tmp_path / "w.pth")
    found = read_archive(tmp_path / "w.pth")
    assert found["args"].lr == 0.1 and found["best"] == 0.5
    torch.save({"a": torch.ones(2), "x": ModelConfig(arch="fpn")}, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"holds a pickled segkd\.config\.networks\.ModelConfig"
    ):
        read_archive(tmp_path / "w.pth")
