import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_run import Share

from segkd.config.schema import EvalConfig
from segkd.data.base import DataConfig, Dataset, Sample
from segkd.errors import ConfigError, DataError
from segkd.evaluation.evaluator import Result, evaluate_network
from segkd.runtime import Runtime
from segkd.structures import Outputs

K = 3


class Drawn(Dataset):
    """Images of different sizes; the label is read off the colours, with void and absent class."""

    name = "drawn"
    classes = ("road", "sky", "car", "tram")
    palette = np.zeros((4, 3), np.uint8)
    sizes = ((16, 24), (20, 26), (16, 24), (9, 31), (16, 24))

    def __init__(self, split="val", **config):
        super().__init__(DataConfig(name="drawn", workers=0, **config), split)

    def __len__(self):
        return len(self.sizes)

    def read(self, index):
        rng = np.random.default_rng(index)
        height, width = self.sizes[index]
        coarse = rng.integers(0, 256, (height // 2 + 1, width // 2 + 1, 3), np.uint8)
        image = coarse.repeat(2, 0).repeat(2, 1)[:height, :width]
        label = image.argmax(2).astype(np.uint8)
        label[:2, :3] = 255
        if index == 4:
            label[:] = 255
        return Sample(image, None if self.split == "test" else label, f"image{index}")


class Colours(nn.Module):
    """Blurred colours as logits of four classes at half the resolution."""

    divisor = 4

    def __init__(self, classes=4):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 3, padding=1, bias=False)
        with torch.no_grad():
            self.layer.weight.zero_()[range(3), range(3), 1, 1] = 0.02
        self.norm = nn.BatchNorm2d(classes)
        self.norm.eval()

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return Outputs(self.layer(F.avg_pool2d(images.float(), 2)))


def slow_matrix(dataset, network, images=5):
    """Whole image, one by one, pixel by pixel."""
    matrix = torch.zeros(4, 4, dtype=torch.int64)
    network.eval()
    for index in range(images):
        sample = dataset.read(index)
        height, width = sample.image.shape[:2]
        pad = ((0, -height % 4), (0, -width % 4), (0, 0))
        padded = torch.from_numpy(np.pad(sample.image, pad, mode="edge")).movedim(2, 0)[None]
        with torch.no_grad():
            logits = network(padded).logits
        logits = F.interpolate(logits, padded.shape[2:], mode="bilinear")[0, :, :height, :width]
        prediction = logits.argmax(0)
        for y in range(height):
            for x in range(width):
                if sample.label[y, x] != 255:
                    matrix[sample.label[y, x], prediction[y, x]] += 1
    return matrix


def run(dataset=None, network=None, runtime=None, **config):
    return evaluate_network(
        network or Colours(), dataset or Drawn(), EvalConfig(**config), runtime or Runtime.single()
    )


def test_equals_the_slow_reference():
    result = run()
    assert torch.equal(result.matrix, slow_matrix(Drawn(), Colours()))
    assert (result.images, result.skipped) == (4, 1)  # one image is all void
    assert 0.5 < result.miou < 1 and result.absent == ["tram"]


def test_limit():
    assert torch.equal(run(limit=2).matrix, slow_matrix(Drawn(), Colours(), 2))


def test_labels_keep_their_own_resolution():
    dataset = Drawn(resize=(8, 12))
    result = run(dataset)
    pixels = sum(height * width - 6 for height, width in dataset.sizes[:4])
    assert int(result.matrix.sum()) == pixels and result.pixel_accuracy > 0.5


@pytest.mark.parametrize("config", [{"scales": [0.5, 1.0], "flip": True}, {"sliding": 12}])
def test_other_modes_see_every_labelled_pixel(config):
    result = run(**config)
    assert result.matrix.sum() == run().matrix.sum() and result.pixel_accuracy > 0.5


def test_shares_of_processes_add_up():
    parts = [run(runtime=Share(rank, 2)) for rank in range(2)]
    assert torch.equal(parts[0].matrix + parts[1].matrix, run().matrix)
    assert sum(part.images + part.skipped for part in parts) == 5
    assert all(part.images for part in parts)


def test_modes_are_restored_even_after_an_error():
    network = Colours().train()
    network.norm.eval()
    run(network=network)
    assert network.training and network.layer.training and not network.norm.training
    with pytest.raises(DataError):
        run(Drawn("test"), network)
    assert network.training and not network.norm.training


def test_progress_counts_images():
    seen = []
    evaluate_network(
        Colours(),
        Drawn(),
        EvalConfig(),
        Runtime.single(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 5) for done in range(1, 6)]


def test_no_labels_is_refused():
    with pytest.raises(DataError, match=r"'image0' of 'drawn' has no label"):
        run(Drawn("test"))


def test_another_number_of_classes_is_refused():
    with pytest.raises(ConfigError, match="network has 3 classes, but the dataset has 4"):
        run(network=Colours(3))


def test_result_as_plain_data():
    matrix = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    result = Result(matrix, ("road", "sky", "tram"), images=2)
    assert result.iou["road"] == pytest.approx(6 / 9) and math.isnan(result.iou["tram"])
    assert result.miou == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert result.mean_accuracy == pytest.approx((0.75 + 0.5) / 2)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["iou"]["tram"] is None and plain["absent"] == ["tram"]
    assert plain["matrix"] == matrix.tolist() and plain["miou"] == result.miou
    assert plain["labelled_miou"] == result.miou and result.unlabelled == []


def test_boundary_iou_is_an_option_and_changes_nothing_else():
    from segkd.metrics.boundary import boundary_counts

    plain, result = run(), run(boundary=True)
    assert plain.boundary is None and "boundary" not in plain.to_dict()
    assert torch.equal(result.matrix, plain.matrix)
    perfect, counts = Drawn(), torch.zeros(2, 4, dtype=torch.int64)
    for index in range(5):
        label = torch.from_numpy(perfect.read(index).label)
        counts += boundary_counts(label, label, 4, 255)
    # What the labels have of boundary is in both, or only in the label.
    assert (result.boundary[1] >= counts[1]).all() and (result.boundary[0] <= counts[0]).all()
    assert 0 < result.boundary[0].sum() < counts[0].sum()
    facts = result.to_dict()["boundary"]
    assert facts["iou"]["tram"] is None and facts["counts"] == result.boundary.tolist()
    shared, either = result.boundary[:, 0].tolist()
    assert facts["iou"]["road"] == result.boundary_iou["road"] == shared / either


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_image_without_label_is_named_in_any_batch(batch_size):
    """Beside one with a label it was taken for an image of void alone, and skipped."""

    class Partly(Drawn):
        sizes = ((16, 24),) * 4

        def read(self, index):
            sample = super().read(index)
            return Sample(sample.image, None if index == 3 else sample.label, sample.name)

    with pytest.raises(DataError, match=r"'image3' of 'drawn' has no label"):
        evaluate_network(Colours(), Partly(), EvalConfig(batch_size=batch_size), Runtime.single())
