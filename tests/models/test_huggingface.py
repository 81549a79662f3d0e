"""Models of transformers: small ones with random weights, beside the library's own pipeline."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_run import toy_config

import segkd
from segkd.config.load import load_config
from segkd.config.schema import ClassMap
from segkd.errors import CheckpointError, ConfigError, SegKDError
from segkd.models import huggingface as hf
from segkd.models.frozen import Teacher
from segkd.models.hf_source import read_source
from segkd.models.label_sets import label_set
from segkd.models.teacher_table import own_names

transformers = pytest.importorskip("transformers")

NAMES = ("road", "car", "sky", "tree", "person")
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 16}
PLAIN |= {"intermediate_size": 64, "image_size": 64}
POOLED = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 16}
SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
SWIN |= {"out_features": ["stage1", "stage2", "stage3", "stage4"], "model_type": "swin"}
CONVNEXT = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
CONVNEXT |= {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
RESNET = {"model_type": "resnet", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
QUERIES = {"num_queries": 7, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
QUERIES |= {"hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32}
DETR = {"model_type": "detr", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
DETR |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
DETR |= {"encoder_ffn_dim": 32, "num_queries": 7, "backbone_config": RESNET}
EOMT = PLAIN | {"num_blocks": 2, "num_queries": 7, "num_upscale_blocks": 1}
SEGFORMER = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
SEGFORMER |= {"num_attention_heads": [1, 2, 3, 4]}
MOBILEVIT = {"hidden_sizes": [16, 20, 24], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}

MODELS = {  # by model type: prefixes of the library's classes, and settings
    "segformer": ("Segformer", "Segformer", SEGFORMER),
    "upernet": (
        "UperNet",
        "Segformer",
        {"backbone_config": CONVNEXT, "hidden_size": 16}
        | {"pool_scales": [1, 2], "auxiliary_channels": 16, "auxiliary_in_channels": 24},
    ),
    "beit": ("Beit", "Beit", PLAIN | POOLED),
    "data2vec-vision": ("Data2VecVision", "Beit", PLAIN | POOLED),
    "dpt": (
        "DPT",
        "DPT",
        PLAIN
        | {"backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
        | {"neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16},
    ),
    "mobilevit": ("MobileViT", "MobileViT", MOBILEVIT | {"aspp_out_channels": 16}),
    "mobilenet_v2": ("MobileNetV2", "MobileNetV2", {"depth_multiplier": 0.35}),
    "maskformer": (
        "MaskFormer",
        "MaskFormer",
        {"fpn_feature_size": 32, "mask_feature_size": 32}
        | {"backbone_config": SWIN, "decoder_config": DETR},
    ),
    "mask2former": (
        "Mask2Former",
        "Mask2Former",
        QUERIES | {"backbone_config": SWIN} | {"feature_size": 32, "mask_feature_size": 32},
    ),
    "oneformer": (
        "OneFormer",
        "OneFormer",
        QUERIES
        | {"backbone_config": SWIN, "conv_dim": 32}
        | {"mask_dim": 32, "text_encoder_width": 32, "text_encoder_num_layers": 1}
        | {"text_encoder_vocab_size": 99, "text_encoder_context_length": 8}
        | {"task_seq_len": 8},
    ),
    "eomt": ("Eomt", "Eomt", EOMT),
    "eomt_dinov3": ("EomtDinov3", "Eomt", EOMT),
}
MASK_MODELS = ("maskformer", "mask2former", "oneformer", "eomt", "eomt_dinov3")
KINDS = ("SemanticSegmentation", "UniversalSegmentation", "InstanceSegmentation")


def library_model(kind):
    """A small model with random weights, and its image processor."""
    torch.manual_seed(0)
    prefix, processor, settings = MODELS[kind]
    config = getattr(transformers, f"{prefix}Config")
    settings = {key: _nested(value) for key, value in settings.items()}
    model = next(
        getattr(transformers, f"{prefix}For{task}")
        for task in KINDS
        if hasattr(transformers, f"{prefix}For{task}")
    )
    return (
        model(config(**settings, **LABELS)).eval(),
        getattr(transformers, f"{processor}ImageProcessor")(),
    )


def _nested(value):
    if isinstance(value, dict):
        plain = {key: _nested(item) for key, item in value.items() if key != "model_type"}
        return transformers.AutoConfig.for_model(value["model_type"], **plain)
    return value


def _tokenizer(folder):
    """A CLIP tokenizer of single letters for OneFormer's question."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{x}</w>" for x in letters)]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    made = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a saved model by its type; written at the first call."""
    root = tmp_path_factory.mktemp("models")

    def folder(kind):
        path = root / kind
        if not path.exists():
            model, processor = library_model(kind)
            model.save_pretrained(path)
            processor.save_pretrained(path)
            if kind == "oneformer":
                _tokenizer(path)
        return path

    return folder


def opened(folder, **options):
    return hf.HuggingFace(read_source(str(folder)), **options).eval()


def some_images(network, count=2):
    size = network.fixed_size or (64, 96)
    torch.manual_seed(1)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


def library_outputs(folder, kind, images):
    """What the library returns, with its own processor and without resizing."""
    model, _ = library_model(kind)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(
        [image.permute(1, 2, 0).numpy() for image in images],
        do_resize=False,
        **({"do_center_crop": False} if "mobile" in kind else {}),
        return_tensors="pt",
    )["pixel_values"]
    extra = {}
    if kind == "beit":
        extra["interpolate_pos_encoding"] = True
    if kind == "oneformer":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        text = tokenizer(
            ["the task is semantic"], padding="max_length", max_length=8, truncation=True
        )
        ids, seen = torch.tensor(text["input_ids"]), torch.tensor(text["attention_mask"])
        extra["task_inputs"] = (ids * seen).expand(len(images), -1)
    with torch.no_grad():
        return model(pixel_values=pixels, **extra)


def reference_scores(output):
    """Probabilities (B, K, h, w), pixel by pixel, in float64."""
    if getattr(output, "logits", None) is not None:
        return output.logits.double().softmax(1)
    classes = output.class_queries_logits.double()
    masks = output.masks_queries_logits.double()
    (batch, queries, outputs), (height, width) = classes.shape, masks.shape[-2:]
    scores = torch.zeros(batch, outputs - 1, height, width, dtype=torch.float64)
    for image in range(batch):
        for query in range(queries):
            chances = torch.exp(classes[image, query] - classes[image, query].logsumexp(0))
            for k in range(outputs - 1):
                inside = 1 / (1 + torch.exp(-masks[image, query]))
                scores[image, k] += chances[k] * inside
    return scores / scores.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_librarys_pipeline(folders, kind):
    network = opened(folders(kind))
    images = some_images(network)
    with torch.no_grad():
        found = network(images)
    expected = reference_scores(library_outputs(folders(kind), kind, images))
    assert network.classes == NAMES
    assert found.kind == ("log_prob" if kind in MASK_MODELS else "logits")
    probabilities = found.logits.softmax(1)
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-5)
    first, second = expected.topk(2, dim=1).values.unbind(1)
    clear = first - second > 2e-5
    assert (probabilities.argmax(1) == expected.argmax(1))[clear].all()


@pytest.mark.parametrize("kind", ["maskformer", "oneformer"])
def test_label_map_equals_the_librarys_post_processing(folders, kind):
    network = opened(folders(kind))
    images = some_images(network)
    with torch.no_grad():
        mine = network(images).logits.argmax(1)
    processor = transformers.AutoImageProcessor.from_pretrained(folders(kind))
    theirs = processor.post_process_semantic_segmentation(
        library_outputs(folders(kind), kind, images)
    )
    assert all((a == b).all() for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_stages_and_head_are_maps(folders, kind):
    network = opened(folders(kind))
    images = some_images(network)
    taps = network.known_taps()
    assert {"stage3", "stage4", "stage5", "head", "logits"} <= set(taps)
    values = Teacher(network, taps)(images)
    for tap, info in network.tap_info(taps).items():
        height, width = (-(-side // info.stride) for side in images.shape[-2:])
        assert values.tap(tap).shape == (2, info.channels, height, width), tap
    strides = [info.stride for tap, info in network.tap_info(taps).items() if "stage" in tap]
    assert strides == sorted(strides)


def test_patch_tokens_lie_where_their_patches_are(folders):
    """A change of the image in one corner changes tokens there most, also with class tokens."""
    network = opened(folders("beit"))
    images = some_images(network, 1)
    changed = images.clone()
    changed[..., :16, -16:] = 255 - changed[..., :16, -16:]
    with torch.no_grad():
        before, after = (network(x, ["stage2"]).features["stage2"] for x in (images, changed))
    difference = (before - after).square().sum(1)[0]
    assert difference.argmax() == difference.shape[1] - 1


def test_other_statistics_are_those_of_the_processor(folders, tmp_path):
    shutil.copytree(folders("segformer"), tmp_path / "model")
    path = tmp_path / "model/preprocessor_config.json"
    facts = json.loads(path.read_text()) | {
        "image_mean": [0.1, 0.2, 0.3],
        "rescale_factor": 1 / 128,
    }
    path.write_text(json.dumps(facts))
    network = opened(tmp_path / "model")
    images = some_images(network)
    expected = images.double() / 128 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).double()
    expected = expected / torch.tensor(facts["image_std"]).view(3, 1, 1).double()
    torch.testing.assert_close(network.normalized(images).double(), expected, rtol=0, atol=1e-5)
    assert "configured" in opened(tmp_path / "model", normalize="none").normalization.warning


def teachers(folder, classes, data=NAMES, **more):
    from segkd.config.schema import TeacherConfig
    from segkd.models.teacher import build_teachers

    config = TeacherConfig.model_validate({"hf": str(folder), "classes": classes, **more})
    return build_teachers({"t": config}, {"t": ["logits"]}, len(data), classes=data)


def test_classes_in_another_order_are_reordered(folders):
    order = [3, 0, 4, 1, 2]
    data = [NAMES[number] for number in order]
    network = opened(folders("segformer"))
    images = some_images(network)
    built = teachers(folders("segformer"), [], data)
    with torch.no_grad():
        expected = network(images).logits[:, order]
    assert torch.equal(built(images)["t"].logits, expected)
    assert "reordered by name" in built.members["t"].network.classes_match


def test_other_classes_are_mapped(folders):
    table = {"road": "ground", "car": "thing", "sky": None, "tree": "thing", "person": "thing"}
    built = teachers(folders("mask2former"), {"map": table}, ["ground", "thing"])
    images = some_images(opened(folders("mask2former")))
    found = built(images)["t"]
    with torch.no_grad():
        own = opened(folders("mask2former"))(images).logits.softmax(1)
    ground, things = own[:, 0], own[:, [1, 3, 4]].sum(1)
    expected = torch.stack([ground, things], 1) / (ground + things)[:, None]
    assert found.kind == "log_prob"
    torch.testing.assert_close(found.logits.exp(), expected, rtol=0, atol=1e-5)


def with_names(folders, tmp_path, names):
    """A copy of a model whose classes have other names."""
    shutil.copytree(folders("segformer"), tmp_path / "model")
    path = tmp_path / "model/config.json"
    facts = json.loads(path.read_text()) | {"id2label": dict(enumerate(names))}
    path.write_text(json.dumps({k: v for k, v in facts.items() if k != "label2id"}))
    return tmp_path / "model"


def test_its_own_names_are_mapped_if_that_is_asked_for(folders, tmp_path):
    data = ["street", "vehicle", "flower pot"]
    built = teachers(folders("segformer"), {"map": "names"}, data)
    assert built.members["t"].class_map.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert "unknown to it: flower pot" in built.members["t"].about_classes
    with pytest.raises(ConfigError, match=r"teachers\.t\.classes: segkd has no table from"):
        teachers(folders("segformer"), {}, data)
    with pytest.raises(ConfigError, match=r"19 classes, but .* has 5\. Remove `from`"):
        teachers(folders("segformer"), {"from": "cityscapes", "map": "names"}, data)
    with pytest.raises(ConfigError, match=r"19 classes, but .* has 5"):
        own_names(ClassMap(source="cityscapes"), NAMES, "m")
    folder = with_names(folders, tmp_path, [f"LABEL_{number}" for number in range(5)])
    built = teachers(folder, {"from": list(NAMES), "map": {"car": "vehicle"}}, data)
    assert built.members["t"].class_map.tolist() == [[0] * 5, [0, 1, 0, 0, 0], [0] * 5]


def test_a_set_that_the_model_does_not_have_is_refused():
    cityscapes = label_set("cityscapes").classes
    shuffled = cityscapes[::-1]
    assert own_names(ClassMap(source="cityscapes"), shuffled, "m") == shuffled
    assert own_names(ClassMap(), shuffled, "m") == shuffled
    unnamed = [f"LABEL_{number}" for number in range(19)]
    assert own_names(ClassMap(source="cityscapes"), unnamed, "m") == cityscapes
    others = ["toaster", *cityscapes[1:]]
    with pytest.raises(ConfigError, match=r"classes of m are not those of cityscapes.*toaster"):
        own_names(ClassMap(source="cityscapes"), others, "m")


def test_library_names_without_meaning_are_a_warning(folders, tmp_path):
    shutil.copytree(folders("segformer"), tmp_path / "model")
    path = tmp_path / "model/config.json"
    facts = json.loads(path.read_text())
    facts |= {"id2label": {str(i): f"LABEL_{i}" for i in range(5)}}
    path.write_text(json.dumps({k: v for k, v in facts.items() if k != "label2id"}))
    built = teachers(tmp_path / "model", [])
    assert "no class names" in built.members["t"].network.classes_match
    built = teachers(tmp_path / "model", list(reversed(NAMES)))
    assert "reordered" in built.members["t"].network.classes_match


def test_licence_is_that_of_the_model_card(folders, tmp_path):
    assert read_source(str(folders("segformer"))).licence == ""
    shutil.copytree(folders("segformer"), tmp_path / "model")
    (tmp_path / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert read_source(str(tmp_path / "model")).licence == "apache-2.0"


def broken(folders, tmp_path, change):
    shutil.copytree(folders("segformer"), tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(SegKDError) as raised:
        teachers(tmp_path / "model", [])
    text = str(raised.value)
    assert text.startswith("teachers.t: hf: ") and "\n" not in text
    return text


def test_missing_processor(folders, tmp_path):
    text = broken(folders, tmp_path, lambda path: (path / "preprocessor_config.json").unlink())
    assert "has no preprocessor_config.json, so how images are normalised is not known" in text
    assert f"from_pretrained(ID_OR_FOLDER).save_pretrained('{tmp_path / 'model'}')" in text


def test_damaged_processor(folders, tmp_path):
    text = broken(
        folders, tmp_path, lambda path: (path / "preprocessor_config.json").write_text("{")
    )
    assert "preprocessor_config.json of" in text and "cannot be read, so how images" in text


def test_missing_weights(folders, tmp_path):
    text = broken(folders, tmp_path, lambda path: (path / "model.safetensors").unlink())
    assert "cannot be read" in text


def test_classifier_without_weights(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    def cut(path):
        weights = load_file(path / "model.safetensors")
        kept = {key: value for key, value in weights.items() if "decode_head" not in key}
        save_file(kept, path / "model.safetensors", {"format": "pt"})

    assert "no weights for" in broken(folders, tmp_path, cut)


def test_cut_weights(folders, tmp_path):
    def cut(path):
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:1000])

    assert "cannot be read" in broken(folders, tmp_path, cut)


def test_no_such_model(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="there is no folder nobody/nothing"):
        read_source("nobody/nothing")


def test_the_hub_is_asked_once_and_then_its_cache(folders, tmp_path, monkeypatch):
    asked = []

    def unreachable(self, model, *, timeout):
        asked.append((model, timeout))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(
        CheckpointError, match=r"\(no network\).*hf download a/b --local-dir FOLDER"
    ):
        read_source("a/b")
    assert asked == [("a/b", 5.0)]
    cache = tmp_path / "models--a--b"
    shutil.copytree(folders("segformer"), cache / "snapshots/123")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = read_source("a/b")
    assert source.place == str(cache / "snapshots/123") and source.model == "a/b"
    assert hf.HuggingFace(source).num_classes == 5 and len(asked) == 2
    with pytest.raises(CheckpointError, match=r"no config\.json, but one below it has: .*/123$"):
        read_source(str(cache))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"empty has no config\.json.*It is empty\. .*save_pretrained"),
        ("other", r"other has no config\.json.*It holds a\.pt\. .*hf download"),
        ("other/a.pt", r"a\.pt is a file\. Give the folder that holds config\.json"),
        ("nowhere", r"there is no folder .*nowhere\. .*hf download ID"),
    ],
)
def test_folders_that_hold_no_model(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.pt").touch()
    with pytest.raises(CheckpointError, match=message):
        read_source(str(tmp_path / name))


def test_other_number_of_classes(folders):
    with pytest.raises(ConfigError, match=r"has 5 classes, the data has 2.*classes: \{map: FILE\}"):
        teachers(folders("segformer"), [], ["a", "b"])


def test_images_of_another_size_than_the_only_one(folders):
    network = opened(folders("eomt"))
    with pytest.raises(SegKDError, match="images of 64x64 only, got 96x96"):
        network(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hf": "x", "arch": "enet"}, "give `arch` or `checkpoint`"),
        ({"hf": "x", "timm": "y"}, r"give `arch` .*Got hf and timm; `hf: null` removes it"),
        ({"checkpoint": "x", "timm": "y"}, "Got checkpoint and timm; `checkpoint: null` removes"),
        ({"hf": "x", "weights": "imagenet"}, "`weights` is for networks of segkd"),
        ({"torchvision": "x", "options": {"blocks": 1}}, "`options` is for networks of segkd"),
        ({"timm": "x", "trust_remote_code": True}, "`trust_remote_code` is for models of `hf`"),
        ({"arch": "enet", "classes": {"map": "x.yaml"}}, "name the teacher's classes"),
    ],
)
def test_contradicting_keys(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config("quickstart", values={"common": {"teachers": {"more": keys}}})


def run_with(folder, out, methods):
    table = dict.fromkeys(NAMES, "sky") | {"road": "road", "car": "car", "tree": "tree"}
    teacher = {"hf": str(folder), "classes": {"map": table}}
    data = {"name": "toy", "batch_size": 2, "workers": 0, "crop": [64, 64], "resize": [64, 64]}
    config = toy_config(out, teachers={"t": teacher}, methods=methods, data=data, steps=2)
    return segkd.train(config)


def test_run_with_a_mask_model(folders, tmp_path):
    """kd takes its probabilities, feature methods its features; the licence is kept."""
    card = "---\nlicense: mit\n---\n"
    shutil.copytree(folders("mask2former"), tmp_path / "model")
    (tmp_path / "model/README.md").write_text(card)
    summary = run_with(tmp_path / "model", tmp_path / "run", {"kd": {}, "fitnets": {}})
    assert np.isfinite(summary["best_score"])
    assert summary["teachers"]["t"]["licence"] == "mit"
    assert "licence mit" in (tmp_path / "run/log.txt").read_text()


def test_a_method_that_needs_logits_refuses_a_mask_model(folders, tmp_path):
    with pytest.raises(ConfigError, match="needs logits, but teacher 't'"):
        run_with(folders("mask2former"), tmp_path, {"cwd": {}})


def test_kd_from_a_mask_model_equals_kd_on_its_probabilities(folders):
    from segkd.methods.kd import kd_loss

    network = opened(folders("maskformer"))
    images = some_images(network)
    with torch.no_grad():
        teacher = network(images).logits
    torch.manual_seed(2)
    student = torch.randn(2, 5, *teacher.shape[-2:])
    p, q = teacher.exp(), student.softmax(1)
    expected = (p * (p.clamp_min(1e-30).log() - q.log())).sum(1).mean()
    torch.testing.assert_close(kd_loss(student, teacher), expected, rtol=1e-4, atol=1e-5)
    assert F.softmax(teacher, 1).allclose(p, atol=1e-5)
