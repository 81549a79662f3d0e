"""Decoded files: packed or plain, old ones are made anew, and damaged ones are told."""

import os

import numpy as np
import pytest

from segkd.data import packing
from segkd.data.decoded_files import is_current, read_pixels, write_pixels
from segkd.data.packing import Packed, array_of
from segkd.errors import DataError

LABEL = np.repeat(np.arange(4, dtype=np.uint8), 50 * 90).reshape(200, 90)
NOISE = np.random.default_rng(0).integers(0, 256, (70, 30, 3), np.uint8)


@pytest.fixture
def lz4(monkeypatch):
    """Switches it off and on."""
    pytest.importorskip("lz4", reason="pip install 'segkd[fast]'")
    found = packing._lz4_or_none

    def switch(on):
        monkeypatch.setattr(packing, "_lz4_or_none", found if on else lambda: None)

    return switch


@pytest.mark.parametrize("array", [LABEL, NOISE])
@pytest.mark.parametrize("packs", [True, False])
def test_what_was_written_is_read(array, packs, tmp_path, lz4):
    lz4(packs)
    path = tmp_path / "deep" / "a.b_image"
    source = tmp_path / "source.png"
    source.write_bytes(b"")
    assert not is_current(path, source)
    size = write_pixels(path, array, source)
    assert is_current(path, source) and size == sum(
        file.stat().st_size for file in path.parent.iterdir()
    )
    assert np.array_equal(array_of(read_pixels(path)), array)
    assert isinstance(read_pixels(path), Packed) == (packs and array is LABEL)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("array", [LABEL, NOISE])
def test_images_of_equal_names_in_another_root_are_never_taken_for_these(
    array, packs, tmp_path, lz4
):
    lz4(packs)
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    first.write_bytes(b"one")
    second.write_bytes(b"another")
    os.utime(second, ns=(first.stat().st_atime_ns, first.stat().st_mtime_ns))
    write_pixels(tmp_path / "a", array, first)
    assert is_current(tmp_path / "a", first) and not is_current(tmp_path / "a", second)
    assert np.array_equal(array_of(read_pixels(tmp_path / "a", first)), array)
    with pytest.raises(DataError, match=r"from another file than .*second\.png.*folder of its own"):
        read_pixels(tmp_path / "a", second)


@pytest.mark.parametrize("packs", [True, False])
def test_files_of_version_0_1_do_not_say_what_they_were_made_from(packs, tmp_path, lz4):
    lz4(packs)
    source = tmp_path / "source.png"
    source.write_bytes(b"one")
    write_pixels(tmp_path / "a", LABEL)
    assert np.array_equal(array_of(read_pixels(tmp_path / "a", source)), LABEL)


def test_plain_files_are_read_until_they_are_made_anew(tmp_path, lz4):
    lz4(False)
    write_pixels(tmp_path / "a", LABEL)
    lz4(True)
    assert not is_current(tmp_path / "a", tmp_path)
    assert np.array_equal(read_pixels(tmp_path / "a"), LABEL)
    write_pixels(tmp_path / "a", LABEL)
    assert [file.name for file in tmp_path.iterdir()] == ["a.rows"]


def test_without_lz4_packed_files_say_what_to_type(tmp_path, lz4):
    write_pixels(tmp_path / "a", LABEL)
    lz4(False)
    assert not is_current(tmp_path / "a", tmp_path)
    with pytest.raises(DataError, match=r"a\.rows: .* needs lz4.*pip install 'segkd\[fast\]'"):
        read_pixels(tmp_path / "a")
    write_pixels(tmp_path / "a", LABEL)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.replace(b"segkd rows 1", b"segkd rows 0"), "another version"),
        (lambda data: data[:-1], "damaged"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: data.replace(b'"shape"', b'"shade"'), "damaged"),
        (lambda data: data[:5], "another version"),
        (lambda data: b"", "cannot be read"),
    ],
)
def test_files_of_other_versions_and_damaged_ones_are_never_read_wrongly(
    change, told, tmp_path, lz4
):
    write_pixels(tmp_path / "a", LABEL)
    file = tmp_path / "a.rows"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=rf"a\.rows.* {told}.*segkd data make cityscapes --cache"):
        read_pixels(tmp_path / "a")


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(DataError, match="segkd data make cityscapes --cache"):
        read_pixels(tmp_path / "a")


def test_damage_within_a_block_is_told(tmp_path, lz4):
    write_pixels(tmp_path / "a", LABEL)
    file = tmp_path / "a.rows"
    data = bytearray(file.read_bytes())
    data[-20:] = b"\xff" * 20
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"image of 200x90 is damaged.*data\.decoded=false"):
        array_of(read_pixels(tmp_path / "a"))
    assert np.array_equal(read_pixels(tmp_path / "a")[0:64, 3:7], LABEL[:64, 3:7])
