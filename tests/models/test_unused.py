import pytest
import segmentation_models_pytorch as smp
import torch

from segkd.checkpoint import restore
from segkd.config.schema import ModelConfig
from segkd.errors import CheckpointError
from segkd.models.smp import SmpNetwork
from segkd.models.unused import Unused

ENCODERS = (
    "resnet18",
    "mobilenet_v2",
    "efficientnet-b0",
    "timm-efficientnet-b0",
    "mit_b0",
    "vgg11_bn",
    "densenet121",
    "mobileone_s0",
    "dpn68",
    "xception",
    "se_resnet50",
    "inceptionv4",
    "tu-tf_efficientnet_lite0",
    "tu-mobilenetv3_small_100",
)


def network(encoder, depth, arch="pspnet"):
    return SmpNetwork(
        ModelConfig(arch=arch, encoder=encoder, options={"encoder_depth": depth}), 5
    ).eval()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_what_nothing_reads_is_dropped(encoder):
    torch.manual_seed(0)
    whole = smp.create_model("pspnet", encoder, None, classes=5, encoder_depth=3).eval()
    cut = network(encoder, 3)
    restore(cut, whole.state_dict(), "an earlier file")  # with weights of the dropped layers
    images = torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        assert torch.equal(cut.segmentation_head(cut.decoder(cut.encoder(images))), whole(images))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_that_stays_gets_a_gradient(encoder):
    cut = network(encoder, 3)
    cut.train()
    features = cut.encoder(torch.randn(2, 3, 64, 64))
    sum(feature.sum() for feature in features if feature.requires_grad).backward()
    bare = [name for name, item in cut.encoder.named_parameters() if item.grad is None]
    parents = {name.rpartition(".")[0] for name in bare}
    for parent in parents:  # single parameters of used modules may stay
        module = cut.encoder.get_submodule(parent)
        assert any(item.grad is not None for item in module.parameters()), parent


def test_parameters_of_the_published_pspnet_form_and_of_the_shallow_one():
    deep, shallow = network("resnet18", 5), network("resnet18", 3)
    assert not any(isinstance(module, Unused) for module in deep.modules())
    count = [sum(p.numel() for p in net.encoder.parameters()) for net in (deep, shallow)]
    assert count == [11_176_512, 683_072]  # torchvision's ResNet-18 without fc; up to layer2
    assert not any("layer3" in name for name in shallow.state_dict())


def test_what_is_stored_loads_again_and_a_missing_layer_is_still_an_error():
    cut = network("resnet18", 3)
    cut.load_state_dict(cut.state_dict())
    state = cut.state_dict()
    whole = smp.create_model("pspnet", "resnet18", None, classes=5, encoder_depth=3)
    restore(cut, whole.state_dict(), "an earlier file")
    assert torch.equal(cut.encoder.conv1.weight, whole.encoder.conv1.weight)
    with pytest.raises(CheckpointError, match=r"unknown: encoder\.layer9"):
        restore(cut, {**whole.state_dict(), "encoder.layer9.weight": torch.zeros(1)}, "a file")
    del state["encoder.layer2.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"layer2\.0\.conv1"):
        cut.load_state_dict(state)
    with pytest.raises(RuntimeError, match="layer9"):
        cut.load_state_dict({**cut.state_dict(), "encoder.layer9.weight": torch.zeros(1)})


def test_batch_norms_and_the_mode_are_left_as_they_were():
    whole = smp.create_model("pspnet", "resnet18", None, classes=5, encoder_depth=3)
    cut = SmpNetwork(
        ModelConfig(arch="pspnet", encoder="resnet18", options={"encoder_depth": 3}), 5
    )
    assert cut.encoder.training
    assert all(module.training for module in cut.encoder.modules())
    assert torch.equal(cut.encoder.bn1.running_mean, whole.encoder.bn1.running_mean)
    assert int(cut.encoder.bn1.num_batches_tracked) == 0
