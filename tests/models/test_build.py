"""Student files: round trips, what does not fit, and files that would run code."""

import os

import pytest
import torch

from segkd import registry
from segkd.config.load import load_config
from segkd.config.schema import ModelConfig, TeacherConfig
from segkd.errors import CheckpointError, ConfigError
from segkd.models import weights
from segkd.models.build import build_network, network_from_file
from segkd.models.normalization import IMAGENET
from segkd.models.weights import save_safetensors
from segkd.registry import architectures

CLASSES = ["road", "car", "sky"]


def student(**keys):
    torch.manual_seed(1)
    network = build_network(ModelConfig(arch="enet", **keys), len(CLASSES))
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("aux_heads.")}
    model = network.config.model_copy(update={"aux_head": None}).model_dump(mode="json")
    facts = {"classes": CLASSES, "palette": [[0, 0, 0]] * 3, "ignore_index": 255}
    return network, {"format": weights.FORMAT, "model": model, "weights": state, **facts}


@pytest.fixture
def run(tmp_path):
    network, payload = student(normalize="none")
    (tmp_path / "checkpoints").mkdir()
    torch.save(payload, tmp_path / "checkpoints" / "best.pt")
    return tmp_path, network


def answer(network):
    torch.manual_seed(2)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        return network.eval()(images).logits


def test_run_folder_and_file_give_the_same_network(run):
    folder, network = run
    for source in (folder, folder / "checkpoints" / "best.pt"):
        found, payload = network_from_file(source)
        assert torch.equal(answer(found), answer(network))
        assert payload["classes"] == CLASSES


def test_checkpoint_in_a_config(run):
    folder, network = run
    config = ModelConfig(arch="enet", normalize="none", checkpoint=str(folder))
    assert torch.equal(answer(build_network(config, 3)), answer(network))
    anything = ModelConfig(arch="", checkpoint=str(folder), aux_head={"tap": "stage3"})
    found = build_network(anything, 3)
    assert found.config.normalize == "none" and found.aux_weight == 0.4
    assert torch.equal(answer(found), answer(network))


@pytest.mark.parametrize(
    ("keys", "num_classes", "hint"),
    [
        ({"arch": "enet", "normalize": "none"}, 4, r"3 classes \(road, car, sky\), the data has 4"),
        ({"arch": "enet", "normalize": "imagenet"}, 3, "normalize"),
        ({"arch": "unet", "normalize": "none"}, 3, "arch 'enet', the configuration has 'unet'"),
        ({"options": {"stages": 4}}, 3, r"with no options, the configuration has \{'stages': 4\}"),
        ({"arch": "enet", "options": {"stages": 4}}, 3, r"the configuration has \{'stages': 4\}"),
        ({"classes": ["a", "b", "c"]}, 3, r"names its classes itself \(road, car, sky\).*Remove"),
    ],
)
def test_checkpoint_of_another_network(run, keys, num_classes, hint):
    with pytest.raises(CheckpointError, match=hint):
        build_network(ModelConfig(checkpoint=str(run[0]), **keys), num_classes)


def test_a_table_of_a_students_file_is_refused(run):
    for file in ("best.pt", "best.safetensors"):
        path = run[0] / "checkpoints" / file
        if not path.exists():
            save_safetensors(torch.load(path.with_suffix(".pt"), weights_only=True), path)
        with pytest.raises(CheckpointError, match=r"one network, without tables. Remove '#ema'"):
            network_from_file(f"{path}#ema")


def test_classes_without_a_checkpoint_are_refused():
    with pytest.raises(ConfigError, match=r"classes: .* `checkpoint`.*Remove"):
        build_network(ModelConfig(arch="enet", classes=CLASSES), 3)


def test_the_encoder_of_a_file_is_compared(tmp_path):
    built = build_network(ModelConfig(arch="fcn", encoder="mobilenet_v2"), 3)
    _, payload = student()
    model = built.config.model_dump(mode="json")
    path = tmp_path / "fcn.pt"
    torch.save(payload | {"model": model, "weights": built.state_dict()}, path)
    for keys in ({"arch": "fcn"}, {}):
        with pytest.raises(CheckpointError, match=r"mobilenet_v2', the .* has 'resnet50"):
            build_network(ModelConfig(checkpoint=str(path), encoder="resnet50", **keys), 3)
    # The default of an entry of `teachers:` stands in configurations that say nothing.
    entry = TeacherConfig(checkpoint=str(path)).model()
    assert build_network(entry, 3).config.encoder == "mobilenet_v2"


@pytest.mark.parametrize("arch", ["", "enet"])
def test_an_existence_branch_that_the_file_does_not_have_begins_untrained(run, arch, tmp_path):
    folder, network = run
    keys = {"arch": arch, "normalize": "auto", "checkpoint": str(folder)}
    found = build_network(ModelConfig(**keys, exist_head={"channels": 8}), 3)
    assert found.exist_head is not None and found.config.exist_head.channels == 8
    assert torch.equal(answer(found), answer(network))
    _, payload = student(exist_head={"channels": 8})
    torch.save(payload, tmp_path / "with.pt")
    keys["checkpoint"] = str(tmp_path / "with.pt")
    assert build_network(ModelConfig(**keys, exist_head={"channels": 8}), 3).exist_head
    assert build_network(ModelConfig(**keys), 3).exist_head
    with pytest.raises(CheckpointError, match=r"exist_head .*channels: 8.*, the .*channels: 4"):
        build_network(ModelConfig(**keys, exist_head={"channels": 4}), 3)


def test_statistics_by_name_or_number_are_the_same(tmp_path):
    _, payload = student()
    torch.save(payload, tmp_path / "a.pt")
    keys = {"checkpoint": str(tmp_path / "a.pt"), "normalize": IMAGENET}
    assert build_network(ModelConfig(arch="enet", **keys), 3).normalization.warning == ""


def test_missing_and_unexpected_weights_are_listed(tmp_path):
    _, payload = student()
    payload["weights"]["extra"] = payload["weights"].pop("classifier.bias")
    torch.save(payload, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"missing: classifier.bias.*extra"):
        network_from_file(tmp_path / "best.pt")


@pytest.mark.parametrize("half", [True, False])
def test_safetensors_round_trip(tmp_path, half):
    network, payload = student()
    weights.save_safetensors(payload, tmp_path / "small.safetensors", half=half)
    found, facts = network_from_file(tmp_path / "small.safetensors")
    assert {key: facts[key] for key in ("classes", "model", "ignore_index")} == {
        key: payload[key] for key in ("classes", "model", "ignore_index")
    }
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    tolerance = {"rtol": 0.05, "atol": 0.01} if half else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(answer(found), answer(network), **tolerance)
    size = (tmp_path / "small.safetensors").stat().st_size
    assert (size < 1.0e6) == half


def test_large_values_stay_in_full_precision(tmp_path):
    _, payload = student()
    payload["weights"]["classifier.weight"][0, 0, 0, 0] = 1e6
    weights.save_safetensors(payload, tmp_path / "small.safetensors")
    found, _ = network_from_file(tmp_path / "small.safetensors")
    assert found.classifier.weight[0, 0, 0, 0] == 1e6


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("entry", ["checkpoint", "weights"])
def test_pickled_code_is_refused_and_not_run(tmp_path, entry):
    torch.save({"format": weights.FORMAT, "x": Malicious(tmp_path / "ran")}, tmp_path / "bad.pt")
    arch = "enet" if entry == "checkpoint" else "unet"
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        build_network(ModelConfig(arch=arch, **{entry: str(tmp_path / "bad.pt")}), 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("missing.pt", "there is no checkpoint"),
        ("pretrained:nothing", "no pretrained network 'nothing'"),
        ("run:teacher", "recipe"),
    ],
)
def test_sources_that_are_not_there(source, hint):
    with pytest.raises(CheckpointError, match=hint):
        build_network(ModelConfig(arch="enet", checkpoint=source), 3)


def test_files_that_are_no_students(tmp_path):
    torch.save({"format": "segkd-run-1", "student": {}}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt of a run"):
        network_from_file(tmp_path / "last.pt")
    _, payload = student()
    torch.save(payload | {"model": {"arch": "enet", "depth": 3}}, tmp_path / "newer.pt")
    with pytest.raises(CheckpointError, match=r"newer\.pt.*depth"):
        network_from_file(tmp_path / "newer.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        network_from_file(tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not a segkd student"):
        network_from_file(tmp_path / "plain.safetensors")


def test_own_architectures_refuse_what_they_do_not_have():
    with pytest.raises(ConfigError, match=r"options\.width.*has no such option"):
        build_network(ModelConfig(arch="erfnet", options={"width": 2}), 3)
    with pytest.raises(ConfigError, match=r"options\.stage: .*Did you mean 'stages'"):
        build_network(ModelConfig(arch="enet", options={"stage": 4}), 3)
    with pytest.raises(ConfigError, match="no pretrained encoder"):
        build_network(ModelConfig(arch="enet", weights="imagenet"), 3)
    with pytest.raises(ConfigError, match="a wrapped Python module"):
        build_network(ModelConfig(arch="module"), 3)


@pytest.mark.parametrize(
    ("arch", "gone"), [("enet", ["options", "weights"]), ("unet", ["options"])]
)
def test_options_of_a_base_file_are_removed_as_the_message_says(tmp_path, arch, gone):
    base = "student: {arch: fpn, weights: imagenet, options: {decoder_pyramid_channels: 64}}\n"
    (tmp_path / "base.yaml").write_text(f"data: {{name: streets}}\nsteps: 1\n{base}")
    (tmp_path / "own.yaml").write_text(f"base: base.yaml\nstudent: {{arch: {arch}}}\n")
    student = load_config(tmp_path / "own.yaml").run.student
    with pytest.raises(ConfigError, match=r"of a `base:` file: `options: null`") as caught:
        build_network(student, 3)
    typed = str(caught.value).partition("command line ")[2].split()
    assert typed == [f"student.{key}=null" for key in gone]
    typed += ["student.weights=null"]  # no download here
    student = load_config(tmp_path / "own.yaml", typed).run.student
    assert build_network(student, 3).config.arch == arch


def test_names_of_all_architectures():
    assert {"enet", "unet", "deeplabv3plus", "segformer"} <= set(architectures())
    assert "enet" in registry.models and "unet" not in registry.models
