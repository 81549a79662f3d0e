"""One image a step and a network that pools whole images: told before the first step."""

import pytest
from resuming import make_trainer
from toy_run import toy_config

from segkd.errors import ConfigError


@pytest.mark.parametrize(
    ("arch", "batch", "micro", "wanted"),
    [("deeplabv3", 1, 1, 2), ("deeplabv3plus", 2, 2, 4), ("upernet", 1, 1, 2), ("pan", 1, 1, 2)],
)
def test_a_single_value_is_explained(arch, batch, micro, wanted, tmp_path):
    def config(images):
        return toy_config(
            tmp_path,
            student={"arch": arch, "encoder": "resnet18"},
            data={"name": "toy", "batch_size": images, "resize": [128, 128], "workers": 0},
            optim={"accumulate": micro},
        )

    message = rf"single value per channel.*data\.batch_size={wanted} or more"
    with pytest.raises(ConfigError, match=message):
        make_trainer(config(batch))
    make_trainer(config(wanted))  # the advice works


def test_images_that_shrink_to_nothing(tmp_path):
    config = toy_config(
        tmp_path,
        student={"arch": "pan", "encoder": "resnet18"},
        data={"name": "toy", "batch_size": 2, "resize": [64, 64], "workers": 0},
    )
    with pytest.raises(ConfigError, match=r"too small for this network.*larger data\.crop"):
        make_trainer(config)


def test_other_errors_of_torch_stay_what_they_are(tmp_path, monkeypatch):
    def broken(self, images, taps=()):
        raise ValueError("something else")

    trainer = make_trainer(toy_config(tmp_path))
    monkeypatch.setattr(type(trainer.student), "forward", broken)
    with pytest.raises(ValueError, match="something else"):
        trainer._dry_step()
