"""Predictions of a teacher as files: averaged, cut to the image, resumed, of one teacher."""

import shutil

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_run import CLASSES, teacher_net

from segkd.data.predictions import PredictionFolder, read_prediction
from segkd.errors import ConfigError, SegKDError
from segkd.inference.media import open_source
from segkd.inference.store import PredictionStore, predicted
from segkd.models.frozen import BlackBox
from segkd.structures import Outputs

DRAW = np.random.default_rng(0)


def picture(size=(32, 48)):
    return DRAW.integers(0, 256, (*size, 3), np.uint8)


def pixels(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def test_whole_maps_are_averaged_to_the_stride():
    network, image = teacher_net().eval(), picture()
    shares = network(pixels(image)).logits.softmax(1)[0].detach()
    for stride in (4, 8):  # the network's own is 8
        np.testing.assert_allclose(predicted(network, image, stride).values, shares, atol=1e-6)
    coarse = F.avg_pool2d(shares, 2).numpy()
    np.testing.assert_allclose(predicted(network, image, 16).values, coarse, atol=1e-6)


def test_padding_of_the_network_is_not_stored():
    network, image = teacher_net().eval(), picture((33, 45))
    found = predicted(network, image, 4)
    assert found.size == (9, 12)
    padded = np.pad(image, ((0, 7), (0, 3), (0, 0)), mode="edge")
    logits = network(pixels(padded)).logits.detach()
    fine = F.interpolate(logits.softmax(1), (40, 48), mode="bilinear")[:, :, :33, :45]
    expected = F.adaptive_avg_pool2d(fine, (9, 12))[0]
    np.testing.assert_allclose(found.values, expected, atol=1e-5)


def test_resized_images_have_predictions_in_their_own_shape():
    found = predicted(teacher_net().eval(), picture((40, 60)), 10, resize=(32, 32))
    assert found.size == (4, 6)
    np.testing.assert_allclose(found.values.sum(0), 1, atol=1e-5)


def test_what_is_not_known_stays_unknown_and_a_tail_stays_one():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :, 4:] = 255
    found = predicted(BlackBox(lambda images: labels, 4, stride=4), picture((8, 8)), 4)
    assert found.values.sum(0).tolist() == [[1, 0], [1, 0]]

    class Top(torch.nn.Module):
        def forward(self, images):
            tail = torch.tensor([0, 0.1, 0.1, 0.1]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
            shares = torch.tensor([0.7, 0.1, 0.1, 0.1]).view(1, 4, 1, 1).expand(1, 4, 2, 2)
            return Outputs(shares.log(), kind="log_prob", tail=tail)

    found = predicted(Top(), picture((8, 8)), 4)
    assert found.ids.shape == (1, 2, 2) and (found.ids == 0).all()
    np.testing.assert_allclose(found.values, 0.7, atol=1e-6)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/a.jpg", "sub/b.png", "c.png", "c.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture())
    return tmp_path / "in"


def store(tmp_path, **keys):
    return PredictionStore(tmp_path / "out", CLASSES, {"teacher": "toy"}, **keys)


def test_a_folder_is_filled_once_and_read_by_name(tmp_path, folder):
    network = teacher_net().eval()
    first = store(tmp_path, top_k=2)
    assert first.fill(network, open_source(folder)) == 5
    assert store(tmp_path, top_k=2).fill(None, open_source(folder)) == 0
    found = PredictionFolder(tmp_path / "out", "key")
    assert found.classes == CLASSES and found.count == 5
    for path in open_source(folder).files:
        kept = read_prediction(found.find(path), 4)
        shares = network(pixels(cv2.imread(str(path))[..., ::-1].copy())).logits.softmax(1)[0]
        top = shares.topk(2, dim=0)
        assert (kept.ids == top.indices.numpy()).all()
        np.testing.assert_allclose(kept.values, top.values.detach(), atol=1e-3)
    with pytest.raises(ConfigError, match="of another teacher, or with other options"):
        store(tmp_path, top_k=3).begin()


def test_a_teacher_whose_file_has_changed_is_another_one(tmp_path, folder):
    network, key = teacher_net().eval(), "teachers.t.checkpoint"
    store(tmp_path).fill(network, open_source(folder))  # of a version without digests
    first = store(tmp_path, digests={key: "aa"})
    assert first.fill(None, open_source(folder)) == 0
    assert store(tmp_path, digests={key: "aa"}).fill(None, open_source(folder)) == 0
    with pytest.raises(ConfigError, match=rf"of {key} as it was before .*--out FOLDER, or remove"):
        store(tmp_path, digests={key: "bb"}).fill(network, open_source(folder))
    assert store(tmp_path, digests={key: "aa"}).fill(None, open_source(folder)) == 0


def test_a_teacher_that_stops_keeps_what_was_written(tmp_path, folder):
    asked = []

    def limited(images):
        asked.append(1)
        if len(asked) > 2:
            raise SegKDError("spent")
        return torch.full((1, 4, 4, 6), 0.25)

    box = BlackBox(limited, 4, stride=8)
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(SegKDError, match="spent"):
        store(tmp_path).fill(box, open_source(folder))
    asked.clear()
    again = store(tmp_path)
    with pytest.raises(SegKDError, match="spent"):
        again.fill(box, open_source(folder))
    assert len(list((tmp_path / "out/probabilities").rglob("*.npz"))) == 4
    assert list(again.broken) == ["broken.png"]


def test_images_of_another_folder_do_not_get_the_predictions_of_these(tmp_path, folder):
    network = teacher_net().eval()
    store(tmp_path).fill(network, open_source(folder))
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other/new.png"), picture())
    assert store(tmp_path).fill(network, open_source(tmp_path / "other")) == 1  # no name twice
    (tmp_path / "third/sub").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "third/sub/b.png"), picture())
    with pytest.raises(ConfigError, match=r"holds the prediction of another sub/b\.png, of .*in"):
        store(tmp_path).fill(network, open_source(tmp_path / "third"))
    assert store(tmp_path).fill(None, open_source(folder)) == 0
    cv2.imwrite(str(folder / "new.jpg"), picture())  # later, with a name of the other folder
    with pytest.raises(ConfigError, match=r"holds the prediction of another new\.jpg, of .*other"):
        store(tmp_path).fill(network, open_source(folder))
    shutil.rmtree(tmp_path / "other")
    assert store(tmp_path).fill(None, open_source(folder)) == 0


def test_an_image_of_a_folder_that_was_predicted_is_there(tmp_path, folder):
    store(tmp_path).fill(teacher_net().eval(), open_source(folder))
    assert store(tmp_path).fill(None, open_source(folder / "a.png")) == 0
