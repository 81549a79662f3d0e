import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segkd.errors import DataError
from segkd.metrics.confusion import (
    ConfusionMatrix,
    _bincount,
    _histogram,
    confusion,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from segkd.runtime import Runtime

K, VOID = 6, 255


def maps(seed=0, size=(23, 31), void=VOID):
    """A label map without classes 4 and 5, and a prediction with class 4."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 4, size, generator=generator)
    prediction = torch.randint(0, 5, size, generator=generator).where(
        torch.rand(size, generator=generator) < 0.4, label
    )
    label[torch.rand(size, generator=generator) < 0.2] = void
    return prediction, label


def reference(prediction, label, void=VOID):
    matrix = torch.zeros(K, K, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
        if t != void:
            matrix[t, p] += 1
    return matrix


def reference_iou(matrix):
    scores = []
    for k in range(K):
        both = int(matrix[k, k])
        either = int(matrix[k].sum()) + int(matrix[:, k].sum()) - both
        scores.append(both / either if either else math.nan)
    return scores


@pytest.mark.parametrize("dtypes", [(torch.uint8, torch.int64), (torch.int64, torch.uint8)])
def test_equals_the_slow_reference(dtypes):
    prediction, label = maps()
    found = confusion(prediction.to(dtypes[0]), label.to(dtypes[1]), K, VOID)
    assert found.dtype is torch.int64 and torch.equal(found, reference(prediction, label))


@pytest.mark.parametrize("void", [-1, 6, 255, 256, 65535])
def test_any_ignore_index(void):
    prediction, label = maps(void=void)
    assert torch.equal(confusion(prediction, label, K, void), reference(prediction, label, void))


def test_an_ignored_class_counts_nowhere_as_label():
    prediction, label = maps(void=2)
    assert torch.equal(confusion(prediction, label, K, 2), reference(prediction, label, 2))


def test_predictions_at_void_pixels_do_not_matter():
    prediction, label = maps()
    other = prediction.where(label != VOID, 255)
    assert torch.equal(confusion(other, label, K, VOID), reference(prediction, label))


@pytest.mark.parametrize(("wrong", "named"), [(6, "6"), (254, "254"), (1000, "1000"), (-3, "-3")])
def test_unknown_ids_are_refused(wrong, named):
    prediction, label = maps()
    place = tuple((label != VOID).nonzero()[5].tolist())
    for what, changed in (("label", label), ("prediction", prediction)):
        kept = changed[place].item()
        changed[place] = wrong
        with pytest.raises(DataError, match=rf"{what} has the ids {named}, .*0 to 5"):
            confusion(prediction, label, K, VOID)
        changed[place] = kept


@pytest.mark.parametrize("classes", [127, 128, 256, 400])
def test_many_classes(classes):
    prediction, label = maps()
    matrix = confusion(prediction + classes - 5, label.clamp(max=4) + classes - 5, classes, 999)
    assert torch.equal(matrix[-5:, -5:], reference(prediction, label.clamp(max=4))[:5, :5])
    assert matrix.shape == (classes, classes) and matrix.sum() == label.numel()


def test_sizes_must_agree():
    with pytest.raises(DataError, match=r"\(4, 5\).*\(4, 6\)"):
        confusion(torch.zeros(4, 5).long(), torch.zeros(4, 6).long(), K, VOID)


def test_scores_against_the_slow_reference():
    matrix = reference(*maps())
    expected = reference_iou(matrix)
    assert iou(matrix).tolist() == pytest.approx(expected, nan_ok=True)
    assert expected[4] == 0 and math.isnan(expected[5])  # predicted only; absent
    present = [score for score in expected if not math.isnan(score)]
    assert mean_iou(matrix) == pytest.approx(sum(present) / 5)
    hits = [int(matrix[k, k]) for k in range(K)]
    assert pixel_accuracy(matrix) == pytest.approx(sum(hits) / int(matrix.sum()))
    recalls = [hits[k] / int(matrix[k].sum()) for k in range(4)]
    assert mean_accuracy(matrix) == pytest.approx(sum(recalls) / 4)


def test_nothing_counted_is_not_a_number():
    empty = torch.zeros(K, K, dtype=torch.int64)
    assert all(math.isnan(score(empty)) for score in (mean_iou, pixel_accuracy, mean_accuracy))


def test_equals_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    per_class = MulticlassJaccardIndex(K, ignore_index=VOID, average="none")
    mean = MulticlassJaccardIndex(K, ignore_index=VOID)
    ours = ConfusionMatrix(K, VOID)
    for seed in range(3):
        prediction, label = maps(seed)
        ours.update(prediction, label)
        per_class.update(prediction[None], label[None])
        mean.update(prediction[None], label[None])
    assert mean_iou(ours.matrix) == pytest.approx(float(mean.compute()), abs=1e-6)
    assert iou(ours.matrix).nan_to_num(0).tolist() == pytest.approx(
        per_class.compute().tolist(), abs=1e-6
    )


def test_equals_cityscapesscripts():
    official = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", exc_type=ImportError
    )
    from cityscapesscripts.helpers.labels import labels as table

    trained = sorted((item.trainId, item.id) for item in table if 0 <= item.trainId < 19)
    to_id = np.zeros(256, np.int64)
    to_id[[train for train, _ in trained]] = [identity for _, identity in trained]
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 17, (64, 96), generator=generator)
    prediction = torch.randint(0, 18, label.shape, generator=generator).where(
        torch.rand(label.shape, generator=generator) < 0.3, label
    )
    label[:9] = VOID  # id 0, unlabeled
    args = SimpleNamespace(evalLabels=[item.id for item in table if item.id >= 0])
    theirs = np.zeros((max(args.evalLabels) + 1,) * 2, np.uint64)
    np.add.at(theirs, (to_id[label].ravel(), to_id[prediction].ravel()), 1)
    scores = {i: official.getIouScoreForLabel(i, theirs, args) for _, i in trained}
    matrix = confusion(prediction, label, 19, VOID)
    assert iou(matrix).tolist() == pytest.approx(list(scores.values()), nan_ok=True, rel=1e-12)
    assert math.isnan(scores[trained[18][1]]) and scores[trained[17][1]] == 0
    assert mean_iou(matrix) == pytest.approx(official.getScoreAverage(scores, args), rel=1e-12)


def test_counts_beyond_float32():
    matrix = ConfusionMatrix(1, VOID)
    matrix._totals[0] = 2**24
    matrix.update(torch.zeros(1, 1).long(), torch.zeros(1, 1).long())
    assert int(matrix.matrix) == 2**24 + 1


def test_images_and_skipped():
    matrix = ConfusionMatrix(K, VOID)
    prediction, label = maps()
    matrix.update(prediction, label)
    matrix.update(prediction, torch.full_like(label, VOID))
    matrix.skip(2)
    matrix.reduce(Runtime.single())
    assert (matrix.images, matrix.skipped) == (1, 3)


def test_reduce_is_one_sum_of_everything():
    calls = []

    def all_reduce(tensor):
        calls.append(tensor.shape)
        return tensor * 2

    matrix = ConfusionMatrix(K, VOID)
    prediction, label = maps()
    matrix.update(prediction, label)
    matrix.reduce(SimpleNamespace(all_reduce=all_reduce))
    assert torch.equal(matrix.matrix, 2 * reference(prediction, label))
    assert matrix.images == 2 and len(calls) == 1


@pytest.mark.parametrize(("classes", "void"), [(19, 255), (3, 1), (256, 0), (1, 255)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_both_kernels_count_the_same(classes, void, dtype, monkeypatch):
    monkeypatch.setattr("segkd.metrics.confusion._EXACT", 1000)  # several histograms are added up
    generator = torch.Generator().manual_seed(classes)
    prediction, label = torch.randint(0, classes, (2, 37, 61), generator=generator).to(dtype)
    label[torch.rand(label.shape, generator=generator) < 0.1] = void
    counts = _histogram(prediction, label, classes, void)
    assert torch.equal(counts, _bincount(prediction, label, classes, void))


def test_the_histogram_leaves_other_ids_to_the_bincount():
    prediction, label = torch.randint(0, 3, (2, 5, 7))
    assert _histogram(prediction + 1, label, 3, 255) is None
    assert _histogram(prediction, label - 1, 3, 255) is None
    assert _histogram(prediction, label, 3, -1) is None


@pytest.mark.parametrize("void", [256, -1, -100])
def test_no_byte_is_taken_for_a_void_beyond_bytes(void):
    """Of bytes, 0 equals 256 and 156 equals -100, as torch compares them."""
    label = torch.arange(200, dtype=torch.uint8)[None]
    assert confusion(label, label, 200, void).diagonal().tolist() == [1] * 200
    assert confusion(label, label, 256, void).sum() == 200
