"""Black boxes of a config: what they are asked, what they may return, and what is wrong."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from segkd.config.schema import TeacherConfig
from segkd.errors import CheckpointError, ConfigError, DataError, SegKDError
from segkd.models.black_box import open_black_box
from segkd.models.frozen import BlackBox, average
from segkd.models.query_error import QueryError
from segkd.structures import Outputs

CLASSES = ("sky", "road", "car")
IMAGES = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)

MODULE = """
import numpy as np
asked = []

def probabilities(images):
    assert images.dtype == np.uint8 and images.shape[3] == 3
    asked.append(len(images))
    values = np.exp(images.astype(np.float32).transpose(0, 3, 1, 2) / 100)
    return values / values.sum(1, keepdims=True)

def logits(images):
    return images.astype(np.float32).transpose(0, 3, 1, 2) / 100

def labels(images):
    return images.argmax(3).astype(np.uint16)

def broken(images):
    raise OSError(28, "no\\nspace")

def four(images):
    return np.full((len(images), 4, 4, 6), 0.25)

def one(images):
    return probabilities(images)[:1]

def words(images):
    return "sky"

def nothing(images):
    probabilities(images)

def rows(images):
    return [[0.5, 0.5], [1.0]]

def mapping(images):
    return {"out": probabilities(images), "aux": 0}

def items(images):
    return list(probabilities(images))

def dots(images):
    values = [item.tolist() for item in probabilities(images)[:, :, ::4, ::4]]
    return [values[0], [None] * 3]

async def later(images):
    return probabilities(images)

def coroutine(images):
    return later(images)

def channels_last(images):
    return probabilities(images).transpose(0, 2, 3, 1)

def turned(images):
    return probabilities(images).transpose(0, 1, 3, 2)

def flat(images):
    return probabilities(images).max(1)

def gap(images):
    values = probabilities(images)
    values[1, 2, 3, 4] = np.nan
    return values

def empty(images):
    return probabilities(images)[:, :, :0]

def halves(images):
    return np.full(images.shape[:3], 0.5)

def leaves(images):
    raise SystemExit(3)

def refuses(images):
    from segkd.data.reading import SampleError
    raise SampleError("mask.png", "is cut off", "Fetch it again")

def signed(images):
    return probabilities(images) - 0.5

def whole(images):
    return images.argmax(3).astype(np.float64)

def classes(images):
    return np.full(images.shape[:3], 7)

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "my_box.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_box", raising=False)


def opened(stride=1, classes=None, **keys):
    config = TeacherConfig(black_box=keys, **({"classes": classes} if classes else {}))
    return open_black_box("t", config, 3, CLASSES, stride)


def expected(stride):
    p = (IMAGES.float() / 100).softmax(1)
    return F.avg_pool2d(p, stride)


@pytest.mark.parametrize("stride", [1, 8])
@pytest.mark.parametrize(
    "keys",
    [
        {"function": "my_box:probabilities"},
        {"function": "my_box:logits", "returns": "logits"},
    ],
)
def test_probabilities_are_averaged_over_cells(keys, stride):
    found = opened(stride, **keys)(IMAGES)
    assert found.kind == "log_prob" and found.known is None and found.tail is None
    torch.testing.assert_close(found.logits.exp(), expected(max(4, stride)))


def test_class_ids_become_shares_of_cells():
    found = opened(function="my_box:labels", stride=8)(IMAGES).logits.exp()
    ids = torch.from_numpy(IMAGES.permute(0, 2, 3, 1).numpy().argmax(3))
    for b, k, i, j in torch.ones(2, 3, 2, 3).nonzero().tolist():
        cell = ids[b, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
        assert found[b, k, i, j] == pytest.approx(float((cell == k).float().mean()), abs=1e-6)


def test_where_nothing_is_known():
    labels = torch.zeros(1, 8, 8, dtype=torch.int32)
    labels[:, :, 4:] = 255
    labels[:, 0, 0], labels[:, 4:, :4] = 1, 255
    labels[:, 4:6, :4] = 2
    found = BlackBox(lambda images: labels, 3, stride=4)(IMAGES[:1, :, :8, :8])
    assert found.known.tolist() == [[[True, False], [True, False]]]
    shares = torch.tensor([15 / 16, 1 / 16, 1e-8])
    torch.testing.assert_close(found.logits.exp()[0, :, 0, 0], shares)


def test_answers_are_kept_and_counted(tmp_path):
    keys = {"function": "my_box:probabilities", "cache": tmp_path / "cache", "max_queries": 3}
    import my_box

    box = opened(**keys)
    first = box(IMAGES)
    again = opened(**keys)(torch.cat([IMAGES, IMAGES.flip(3)[:1], IMAGES.flip(3)[:1]]))
    assert my_box.asked == [2, 1], "what is known is not asked, equal images are asked once"
    assert torch.equal(again.logits[:2], first.logits)
    assert torch.equal(again.logits[2], again.logits[3])
    torch.testing.assert_close(first.logits.exp(), expected(4), atol=1e-3, rtol=1e-3)
    assert "max_queries" in box.not_evaluated
    with pytest.raises(SegKDError, match=r"black_box: max_queries=3 .* 2 of this batch"):
        opened(**keys)(IMAGES.flip(2))
    left = opened(**keys, missing="skip")(torch.cat([IMAGES[:1], IMAGES[:1].flip(2)]))
    assert left.known.flatten(1).all(1).tolist() == [True, False]
    assert my_box.asked == [2, 1]
    with pytest.raises(ConfigError, match="another box"):
        opened(**{**keys, "function": "my_box:logits"})


def test_a_cache_of_the_top_class_has_a_tail(tmp_path):
    box = opened(function="my_box:probabilities", cache=tmp_path / "cache", top_k=1)
    for found in (box(IMAGES), box(IMAGES)):
        p = expected(4)
        top = p.max(1, keepdim=True).values
        rest = torch.where(p == top, 0, (1 - top) / 2).expand(-1, 3, -1, -1)
        torch.testing.assert_close(found.tail, rest, atol=1e-3, rtol=1e-2)
        named = torch.where(p == top, p, rest)
        torch.testing.assert_close(found.logits.exp(), named, atol=1e-3, rtol=1e-2)


def test_classes_in_another_order_and_other_classes():
    plain = opened(function="my_box:probabilities")(IMAGES).logits
    found = opened(function="my_box:probabilities", classes=["car", "sky", "road"])(IMAGES).logits
    torch.testing.assert_close(found, plain[:, [1, 2, 0]])
    with pytest.raises(CheckpointError, match="other classes than those of the data"):
        opened(function="my_box:probabilities", classes=["car", "sky", "lane"])
    box = BlackBox(lambda images: torch.tensor([0.5, 0.3, 0.2, 0.0]).view(1, 4, 1, 1), 4)
    box.map_classes(torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1.0]]))
    shares = box(IMAGES[:1]).logits.exp().flatten()
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.4]))
    box = BlackBox(lambda images: torch.zeros(1, 8, 8, dtype=torch.int64), 4)
    box.map_classes(torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1.0]]))
    assert not box(IMAGES[:1]).known.any(), "it sees only what the data has no class for"


def test_an_ensemble_knows_what_all_members_know():
    known = torch.tensor([[[True, False]]])
    one = Outputs(torch.zeros(1, 2, 1, 2), kind="log_prob", known=known)
    tail = torch.full((1, 2, 1, 2), 0.2)
    other = Outputs(torch.zeros(1, 2, 1, 2), kind="log_prob", tail=tail)
    both = average([one, other])
    assert torch.equal(both.known, known)
    torch.testing.assert_close(both.tail, tail / 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"function": "my_box:broken"},
            r"broken failed on images of shape \(2, 16, 24, 3\)",
        ),
        ({"function": "my_box:four"}, r"returned shape \(2, 4, 4, 6\).*expected probabilities"),
        ({"function": "my_box:one"}, "for 2 images; expected .* one prediction for each"),
        ({"function": "my_box:words"}, "words returned a value of type str; expected prob"),
        ({"function": "my_box:classes"}, "returned class 7; it has 3 classes"),
        ({"function": "my_box:logits"}, "no probabilities. If these are logits, set"),
        (
            {"function": "my_box:nothing"},
            r"nothing returned None \(does every path end .*\(B, 3, h",
        ),
        ({"function": "my_box:rows"}, "rows returned a list of 2: list; expected"),
        ({"function": "my_box:dots"}, "dots returned a list of 2: list; expected"),
        ({"function": "my_box:mapping"}, "a dict with the keys 'out', 'aux': return one of them"),
        ({"function": "my_box:coroutine"}, "a coroutine, which nobody awaits: call asyncio.run"),
        (
            {"function": "my_box:channels_last"},
            r"shape \(2, 16, 24, 3\) of float32: 16 classes.*transpose\(0, 3, 1, 2\)",
        ),
        (
            {"function": "my_box:turned"},
            r"shape \(2, 3, 24, 16\) .* images of 16x24 .*exchange the last two axes",
        ),
        ({"function": "my_box:flat"}, r"shape \(2, 16, 24\) of float32; expected probabilities"),
        ({"function": "my_box:gap"}, "returned NaN for 1 of 2 images"),
        ({"function": "my_box:empty"}, "without any value"),
        ({"function": "my_box:leaves"}, "failed on images of shape .*: SystemExit: 3"),
        ({"function": "my_box:signed"}, r"smallest value -0\.45.*`returns: logits`"),
        ({"function": "my_box:labels", "returns": "logits"}, r"expected logits \(B, 3, h, w\)"),
        ({"function": "my_box:labels", "returns": "probabilities"}, "expected probabilities"),
        ({"function": "my_box:logits", "returns": "labels"}, r"expected class ids \(B, h, w\)"),
        ({"function": "my_box:halves", "returns": "labels"}, "which are not whole numbers"),
    ],
)
def test_what_a_box_may_not_return(keys, message):
    box = opened(**keys)
    with pytest.raises(SegKDError, match=message) as caught:
        box(IMAGES)
    assert "teachers.t.black_box" in str(caught.value) and "\n" not in str(caught.value)


def test_errors_are_about_the_images_they_are_about():
    for function, images in (("gap", (1,)), ("nothing", ()), ("classes", (0, 1))):
        with pytest.raises(QueryError) as caught:
            opened(function=f"my_box:{function}")(IMAGES)
        assert caught.value.images == images, function


def test_an_error_of_segkd_within_a_box_names_the_box():
    with pytest.raises(DataError) as caught:
        opened(function="my_box:refuses")(IMAGES)
    assert str(caught.value) == "teachers.t.black_box: mask.png: is cut off. Fetch it again"


def test_lists_of_arrays_and_whole_floats_as_class_ids():
    plain = opened(function="my_box:probabilities")(IMAGES).logits
    torch.testing.assert_close(opened(function="my_box:items")(IMAGES).logits, plain)
    tensors = BlackBox(lambda images: list((images.float() / 100).softmax(1)), 3, stride=4)
    torch.testing.assert_close(tensors(IMAGES).logits.exp(), expected(4))
    ids = opened(function="my_box:labels")(IMAGES).logits
    found = opened(function="my_box:whole", returns="labels")(IMAGES).logits
    torch.testing.assert_close(found, ids)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"function": "my_box:later"}, "'later' of module 'my_box' is `async def`"),
        ({"function": "no_such_module:ask"}, "module 'no_such_module' cannot be imported"),
        ({"function": "my_box:ask"}, "module 'my_box' has no 'ask'"),
        ({"function": "my_box:number"}, "has a int, no function 'number'"),
        ({"onnx": "missing.onnx"}, "missing.onnx does not exist: give an .onnx file"),
        ({"predictions": "nowhere"}, "there is no such folder: nowhere"),
    ],
)
def test_boxes_that_cannot_be_opened(keys, message):
    with pytest.raises(SegKDError, match=message):
        opened(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "got none of them"),
        ({"onnx": "a.onnx", "function": "a:b"}, "got onnx and function"),
        ({"function": "a.b"}, "expected module:function"),
        ({"function": "a:b", "max_queries": 3}, "`max_queries` needs `cache: FOLDER`"),
        ({"predictions": "a", "cache": "b"}, "`cache` is for boxes that are queried"),
        ({"predictions": "a", "returns": "labels"}, "`returns` is for boxes that are queried"),
    ],
)
def test_keys_that_do_not_go_together(keys, message):
    with pytest.raises(ValidationError, match=message):
        TeacherConfig(black_box=keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arch": "fpn"}, "or `black_box`"),
        ({"weights": "imagenet"}, "is for networks of segkd"),
        ({"normalize": "imagenet"}, "gets images as bytes"),
    ],
)
def test_other_keys_of_a_teacher(keys, message):
    with pytest.raises(ValidationError, match=message):
        TeacherConfig(black_box={"function": "a:b"}, **keys)


def test_labels_of_small_types():
    for dtype in (np.uint8, np.int16, np.uint16, np.int64):
        box = BlackBox(lambda images, kind=dtype: np.ones((1, 4, 4), kind), 3)
        assert (box(IMAGES[:1]).logits.argmax(1) == 1).all()
