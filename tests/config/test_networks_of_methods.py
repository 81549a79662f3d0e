"""Networks that an entry of ``methods:`` describes: checked like ``student:``."""

import pytest

from segkd.config.load import dump_config, load_config, load_text
from segkd.config.recipe import expand
from segkd.errors import ConfigError

HEAD = """\
steps: 4
out: runs/x
data: {name: streets, batch_size: 4}
student: {arch: enet}
methods:
  dml:
    peers:
"""


def load(folder, peers):
    file = folder / "run.yaml"
    file.write_text(HEAD + peers)
    return load_config(file).run


def test_it_survives_a_round_trip(tmp_path):
    run = load(tmp_path, "      wide: {arch: fpn, encoder: resnet34}\n      like: {}\n")
    assert run.methods["dml"].peers == {"wide": {"arch": "fpn", "encoder": "resnet34"}, "like": {}}
    assert load_text(dump_config(run)) == run


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        ("      b: {arch: fpm}", r"run.yaml:8: methods.dml.peers.b.arch: unknown arch.* 'fpn'\?"),
        ("      b: {arch: fpn, encodr: x}", r"peers.b.encodr: unknown key. Did you mean 'encoder'"),
        ("      b: {encoder: resnet18}", r"run.yaml:8: methods.dml.peers.b: give `arch`"),
        ("      b: {arch: 3}", r"peers.b.arch: got 3, expected text"),
        ("      b: {arch: fpn, aux_head: {wait: 1}}", r"peers.b.aux_head.wait: unknown key"),
        ("      b: 7", r"run.yaml:8: methods.dml.peers.b: got 7, expected keys and values"),
        ("      student: {}", r"run.yaml:7: methods.dml.peers: 'student' cannot be the name"),
        ("      a.b: {}", r"'a.b' cannot be the name of a peer"),
        ("      {}", r"methods.dml.peers: give at least one peer"),
        ("      0", r"methods.dml.peers: got 0, expected a number greater than 0"),
        ("      b: {checkpoint: 'run:x'}", r"peers.b.checkpoint: got 'run:x', but only runs of"),
    ],
)
def test_a_mistake_is_one_message(tmp_path, peers, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, peers + "\n")
    assert "\n" not in str(caught.value)


def test_a_peer_may_begin_as_another_run_of_the_recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "out: runs/x\nseeds: [0, 1]\n"
        "common: {steps: 4, data: {name: streets, batch_size: 4}, student: {arch: enet}}\n"
        "runs:\n"
        "  both: {methods: {dml: {peers: {a: {checkpoint: 'run:first'}, b: {}}}}}\n"
        "  first: {}\n"
    )
    plan = expand(load_config(file).recipe)
    assert [(one.name, one.seed) for one in plan][-1] == ("both", 1)
    both = plan[-1]
    expected = {"a": {"checkpoint": "runs/x/first/seed1"}, "b": {}}
    assert both.config.methods["dml"].peers == expected
    assert [str(folder) for folder in both.depends_on] == ["runs/x/first/seed1"]


def test_a_reference_to_no_run_of_the_recipe(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "out: runs/x\n"
        "common: {steps: 4, data: {name: streets, batch_size: 4}, student: {arch: enet}}\n"
        "runs:\n"
        "  both: {methods: {dml: {peers: {a: {checkpoint: 'run:frist'}}}}}\n"
        "  first: {}\n"
    )
    with pytest.raises(ConfigError, match=r"yaml:4: .*peers.a.checkpoint: .* 'frist'.*'first'"):
        load_config(file)
