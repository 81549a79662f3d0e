"""Packed arrays give every window as it was; samples in shared memory are seen by all processes."""

import multiprocessing
import pickle

import cv2
import numpy as np
import pytest

from segkd.data import packing
from segkd.data.base import Sample
from segkd.data.packing import Packed, array_of, pack, unpack
from segkd.data.sample_cache import SampleCache

DRAW = np.random.default_rng(0)
SMOOTH = cv2.GaussianBlur(DRAW.integers(0, 256, (200, 90, 3), np.uint8), (31, 31), 0)
LANES = (np.array([[1.0, 2.0], [np.nan, 3.0]], np.float32), None)


@pytest.fixture(params=["lz4", "without"])
def codec(request, monkeypatch):
    if request.param == "lz4":
        pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    else:
        monkeypatch.setattr(packing, "_lz4_or_none", lambda: None)
    return request.param


def round_trip(array):
    layout, parts = pack(array, packing.SCARCE)
    return unpack(pickle.loads(pickle.dumps(layout)), memoryview(b"".join(parts)))


@pytest.mark.parametrize(
    "array",
    [
        *(SMOOTH, SMOOTH[:64], SMOOTH[:65, ::2], SMOOTH[:, ::-1], SMOOTH[..., 0] // 64),
        *(np.arange(70 * 5, dtype=np.int32).reshape(70, 5) % 7, SMOOTH[:1], SMOOTH[:0]),
        DRAW.integers(0, 256, (130, 40, 3), np.uint8),
    ],
)
def test_every_window_is_as_it_was(array, codec):
    found = round_trip(array)
    assert found.shape == array.shape and found.dtype == array.dtype
    assert np.array_equal(array_of(found), array)
    height, width = array.shape[:2]
    for top in {0, 1, 63, 64, 65, height // 2} & set(range(height + 1)):
        for bottom in {top, top + 1, 64, 128, height - 1, height} & set(range(top, height + 1)):
            window = slice(top, bottom), slice(width // 3, width)
            assert np.array_equal(found[window], array[window]), window


def test_nothing_is_compressed_where_nothing_is_to_be_packed(monkeypatch):
    monkeypatch.setattr(packing, "_lz4_or_none", lambda: pytest.fail("lz4 was called"))
    layout, parts = pack(SMOOTH, 0.0)
    assert not layout.lengths and bytes(parts[0]) == SMOOTH.tobytes()


def test_what_packs_is_packed_and_noise_is_not():
    pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    label = np.repeat(np.arange(4, dtype=np.uint8), 50 * 90).reshape(200, 90)
    found = round_trip(label)
    assert isinstance(found, Packed) and len(found.data) < label.nbytes / 20
    assert isinstance(round_trip(DRAW.integers(0, 256, (200, 90), np.uint8)), np.ndarray)


def sample(number, label=True):
    image = np.full((30, 40, 3), number, np.uint8)
    return Sample(image, image[..., 0].astype(np.int32) if label else None, f"s{number}", LANES)


def same(one, other):
    assert one.name == other.name and np.array_equal(array_of(one.image), other.image)
    assert (one.label is None) == (other.label is None)
    assert one.label is None or np.array_equal(array_of(one.label), other.label)
    assert np.array_equal(one.lanes[0], LANES[0], equal_nan=True) and one.lanes[1] is None


def test_samples_come_back(codec):
    cache = SampleCache(3, 1, 1)
    assert cache.read(0) is None
    cache.keep(2, sample(2))
    cache.keep(0, sample(0, label=False))
    cache.keep(2, sample(1))  # as a second process that has read it as well
    same(cache.read(2), sample(2))
    same(cache.read(0), sample(0, label=False))
    assert cache.read(1) is None


def test_what_one_process_keeps_all_can_read(codec):
    context = multiprocessing.get_context("fork")
    cache = SampleCache(4, 1, 2)
    others = [context.Process(target=cache.keep, args=(k, sample(k))) for k in (1, 3)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
    same(cache.read(1), sample(1))
    same(cache.read(3), sample(3))
    assert cache.read(0) is None and cache.read(2) is None


def test_a_spawned_process_has_memory_of_its_own():
    cache = SampleCache(2, 1, 2)
    cache.keep(0, sample(0))
    assert pickle.loads(pickle.dumps(cache)).read(0) is None


def test_more_than_the_machine_has_is_no_error():
    cache = SampleCache(2, 2**40, 8)
    cache.keep(1, sample(1))
    same(cache.read(1), sample(1))


def test_photographs_are_packed_where_memory_is_scarce():
    pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    image = cv2.resize(SMOOTH[:40, :40], (400, 300)) // 8 * 8
    photograph = image + DRAW.integers(0, 3, (300, 400, 3), np.uint8) * (image > 120)
    label = image[..., 0] // 64
    for length, packed in ((2, False), (20, True)):
        cache = SampleCache(length, 1, 1)
        cache.keep(1, Sample(photograph, label, "a"))
        found = cache.read(1)
        assert isinstance(found.image, Packed) == isinstance(found.label, Packed) == packed
        assert np.array_equal(array_of(found.image), photograph)
        assert np.array_equal(array_of(found.label), label)
