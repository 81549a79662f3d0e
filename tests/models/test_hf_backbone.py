"""Backbones of transformers as teachers of features, beside the library's own forward pass."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models.hf_backbone import hf_backbone
from segkd.models.hf_source import read_source

transformers = pytest.importorskip("transformers")

PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 56}
PLAIN |= {"intermediate_size": 64, "patch_size": 14}
LEVELS = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT |= {"intermediate_size": 32, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}

TOKENS = {  # by class: settings, tokens before those of patches, the final normalisation
    "Dinov2Model": (PLAIN, 1, "layernorm"),
    "Dinov2WithRegistersModel": (PLAIN | {"num_register_tokens": 3}, 4, "layernorm"),
    "DINOv3ViTModel": (PLAIN | {"num_register_tokens": 4}, 5, "norm"),
    "SiglipVisionModel": (PLAIN, 0, "post_layernorm"),
    "ViTModel": (PLAIN, 1, "layernorm"),
    "CLIPVisionModel": (PLAIN, 1, None),
}
MAPS = {
    "DINOv3ConvNextModel": LEVELS,
    "ConvNextModel": LEVELS,
    "ResNetModel": LEVELS | {"embedding_size": 8},
    "SwinModel": SWIN,
}


def library_model(name):
    settings = TOKENS[name][0] if name in TOKENS else MAPS[name]
    torch.manual_seed(0)
    config = getattr(transformers, name).config_class(**settings)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():  # norms that scale, so that leaving them out is seen
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a saved model by its class; written at the first call."""
    root = tmp_path_factory.mktemp("backbones")

    def folder(name):
        path = root / name
        if not path.exists():
            library_model(name).save_pretrained(path)
            transformers.ViTImageProcessor().save_pretrained(path)
        return path

    return folder


def opened(folder, **options):
    return hf_backbone(read_source(str(folder)), options=options).eval()


def some_images(height, width):
    torch.manual_seed(1)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)


def pixels(folder, images):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    return processor(arrays, do_resize=False, return_tensors="pt")["pixel_values"]


def taps_of(network, images):
    with torch.no_grad():
        return network(images, network.known_taps())


@pytest.mark.parametrize("name", TOKENS)
def test_stages_are_the_librarys_hidden_states(folders, name):
    """Patch tokens of each quarter of the layers; the last is ``last_hidden_state``."""
    _, before, norm = TOKENS[name]
    network = opened(folders(name))
    images = some_images(42, 70)
    model, collected = library_model(name), []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: collected.append(output))
    free = {"interpolate_pos_encoding": True} if name[:4] != "Dino" and name[:4] != "DINO" else {}
    with torch.no_grad():
        last = model(pixels(folders(name), images), **free).last_hidden_state
        plain = [value[0] if isinstance(value, tuple) else value for value in collected[:-1]]
        states = [getattr(model, norm)(value) if norm else value for value in plain] + [last]
    found = taps_of(network, images)
    assert network.known_taps() == ["stage2", "stage3", "stage4", "stage5", "head"]
    for tap, tokens in zip(network.tap_names(), states, strict=False):
        assert tokens.shape[1] == before + 3 * 5
        for row in range(3):
            for column in range(5):
                expected = tokens[:, before + 5 * row + column]
                value = found.tap(tap)[:, :, row, column]
                torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    assert found.tap("head") is found.tap("stage5")
    assert found.logits.shape == (2, 0, 1, 1)
    assert network.tap_info(["stage5"])["stage5"].channels == 32


@pytest.mark.parametrize("name", MAPS)
def test_stages_are_the_librarys_feature_maps(folders, name):
    network = opened(folders(name))
    images = some_images(64, 96)
    backbone = getattr(transformers, name.replace("Model", "Backbone"))
    model = backbone.from_pretrained(folders(name), out_indices=[1, 2, 3, 4]).eval()
    with torch.no_grad():
        expected = model(pixels(folders(name), images)).feature_maps
    found = taps_of(network, images)
    for level, value in enumerate(expected, start=2):
        tap = f"stage{level}"
        torch.testing.assert_close(found.tap(tap), value, rtol=0, atol=1e-5)
        assert network.tap_info([tap])[tap].stride == 2**level


def test_layers_that_return_maps_are_taken_as_they_are(tmp_path):
    keys = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = transformers.VitDetConfig(**keys, image_size=64, pretrain_image_size=64)
    model = transformers.VitDetModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    network = opened(tmp_path)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(network.normalized(images), output_hidden_states=True).hidden_states
        found = network(images, ["stage4", "stage5"]).features
    torch.testing.assert_close(found["stage5"], expected[-1])
    assert found["stage5"].shape == (1, 32, 4, 4)


def test_a_hierarchical_network_of_one_size_says_so(tmp_path):
    keys = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    model = transformers.HieraModel(transformers.HieraConfig(**keys, image_size=[128, 160]))
    model.save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    network = opened(tmp_path)
    assert network.fixed_size == (128, 160)
    assert network.tap_info(["stage5"])["stage5"].channels == 64
    with pytest.raises(SegKDError, match="images of 128x160 only, got 128x128"):
        network(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))


def test_blocks_may_be_chosen(folders):
    quarters = taps_of(opened(folders("Dinov2Model")), some_images(42, 70))
    network = opened(folders("Dinov2Model"), blocks=[1, 2])
    assert network.tap_names() == ["stage4", "stage5", "head"]
    found = taps_of(network, some_images(42, 70))
    torch.testing.assert_close(found.tap("stage4"), quarters.tap("stage3"))
    torch.testing.assert_close(found.tap("stage5"), quarters.tap("stage4"))
    with pytest.raises(ConfigError, match=r"options.blocks: got 5"):
        opened(folders("Dinov2Model"), blocks=5)
    with pytest.raises(SegKDError, match="has no options"):
        opened(folders("ConvNextModel"), blocks=2)


def test_images_are_resized_to_whole_patches(folders):
    network = opened(folders("DINOv3ViTModel"))
    images = some_images(48, 64)
    larger = F.interpolate(images.float(), (42, 70), mode="bilinear", align_corners=False)
    found, expected = (taps_of(network, one).tap("stage5") for one in (images, larger))
    assert found.shape[2:] == (3, 5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_the_image_part_of_a_model_of_images_and_texts(tmp_path):
    config = transformers.SiglipConfig(vision_config=PLAIN, text_config=TEXT)
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor().save_pretrained(tmp_path)
    images = some_images(28, 42)
    with torch.no_grad():
        inputs = pixels(tmp_path, images)
        tokens = model.vision_model(inputs, interpolate_pos_encoding=True).last_hidden_state
    found = taps_of(opened(tmp_path), images).tap("stage5")
    expected = tokens.transpose(1, 2).reshape(2, 32, 2, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_classifier_teaches_by_its_features(tmp_path):
    """The same model type segments in other files: what is stored decides."""
    model = transformers.BeitForImageClassification(transformers.BeitConfig(**PLAIN))
    model.save_pretrained(tmp_path)
    transformers.BeitImageProcessor().save_pretrained(tmp_path)
    source = read_source(str(tmp_path))
    assert not source.segments and source.classes == ()
    assert not hf_backbone(source).has_classes


def test_licence_is_that_of_the_card_or_a_file(folders, tmp_path):
    shutil.copytree(folders("Dinov2Model"), tmp_path / "model")
    (tmp_path / "model/LICENSE.md").write_text("Some terms")
    assert opened(tmp_path / "model").licence == "see its LICENSE.md"
    card = "---\nlicense: other\nlicense_name: dinov3-license\n---\n"
    (tmp_path / "model/README.md").write_text(card)
    assert opened(tmp_path / "model").licence == "dinov3-license"


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own"
    patch_size = 8

class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.project = torch.nn.Conv2d(3, 12, 8, stride=8)
        self.post_init()

    def forward(self, x):
        tokens = self.project(x).flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A folder with Python code, which leaves a mark when it is executed."""
    mark, folder = tmp_path / "executed", tmp_path / "radio"
    folder.mkdir()
    (folder / "own.py").write_text(CODE + f"\nopen({str(mark)!r}, 'w').close()\n")
    config = {"model_type": "own", "architectures": ["OwnModel"]}
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    transformers.ViTImageProcessor(do_normalize=False).save_pretrained(folder)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 12, 8, stride=8)
    weights = {f"project.{key}": value for key, value in layer.state_dict().items()}
    from safetensors.torch import save_file

    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked on the terminal"))
    return folder, mark, layer


def test_code_of_a_model_is_not_executed_unasked(own_code):
    folder, mark, _ = own_code
    with pytest.raises(ConfigError, match=r"contains Python code.*trust_remote_code: true"):
        read_source(str(folder))
    assert not mark.exists()


def test_code_that_the_user_allows(own_code):
    folder, mark, layer = own_code
    network = hf_backbone(read_source(str(folder), trust=True)).eval()
    assert mark.exists()
    images = some_images(16, 24)
    with torch.no_grad():
        expected = layer(images / 255)
    found = taps_of(network, images)
    assert network.tap_names() == ["stage5", "head"]
    torch.testing.assert_close(found.tap("stage5"), expected, rtol=0, atol=1e-5)


def test_models_that_are_no_backbones(tmp_path):
    transformers.BertModel(transformers.BertConfig(**TEXT)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"of type 'bert', which neither segments.*dinov2"):
        read_source(str(tmp_path))


def test_missing_weights(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folders("Dinov2Model"), tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if ".layer.2." not in key}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"no weights for \d+ tensors of a Dinov2Model"):
        opened(tmp_path / "model")


def test_statistics_that_are_no_numbers(folders, tmp_path):
    shutil.copytree(folders("Dinov2Model"), tmp_path / "model")
    path = tmp_path / "model/preprocessor_config.json"
    facts = json.loads(path.read_text())
    del facts["image_mean"]
    path.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="image_mean in the preprocessor_config"):
        opened(tmp_path / "model")
