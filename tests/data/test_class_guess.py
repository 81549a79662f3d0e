"""Classes from the values of masks, and names from files beside the images."""

import cv2
import numpy as np
import pytest
from image_folders import folder, image, mask, write
from PIL import Image

from segkd.data.class_files import Named, read_class_file
from segkd.data.draft import draft
from segkd.data.folder import Folder, FolderConfig
from segkd.errors import DataError

NAMES = lambda n: (f"images/{n}.png", f"masks/{n}.png")  # noqa: E731


def ids_of(found):
    return {entry["name"]: entry["ids"] for entry in found.spec["classes"]}


@pytest.mark.parametrize(
    ("values", "classes", "ignore"),
    [
        ((0, 255), {"background": [0], "foreground": [255]}, []),
        ((0, 1, 2, 3), {f"class_{k}": [k] for k in range(4)}, [255]),
        ((1, 2, 3, 255), {f"class_{k}": [k] for k in (1, 2, 3)}, [255]),
        ((7, 26, 33, 255), {"class_7": [7], "class_26": [26], "class_33": [33]}, [255]),
    ],
)
def test_ids(values, classes, ignore, tmp_path):
    found = draft(folder(tmp_path, NAMES, values=values))
    assert ids_of(found) == classes and found.spec["ignore"] == ignore
    first = next(iter(found.guess.counts.values()))
    assert first == f"{100 / len(set(values)):.2f} % of the pixels, in 8 of 8 masks"


@pytest.mark.parametrize(
    ("values", "classes", "ignore"),
    [
        ((0, 300, 600, 65535), [0, 300, 600], [255, 65535]),
        ((0, 255, 300, 65535), [0, 255, 300], [65535]),
        ((0, 1, 255, 65535), [0, 1], [255, 65535]),
        ((0, 65535), [0, 65535], [255]),  # black and white
    ],
)
def test_65535_is_void_in_masks_of_16_bits(values, classes, ignore, tmp_path):
    root = folder(tmp_path, NAMES)
    for number in range(8):
        places = mask(number, range(len(values)))
        write(root / NAMES(number)[1], np.array(values, np.uint16)[places])
    found = draft(root)
    assert [ids for (ids,) in ids_of(found).values()] == classes
    assert found.spec["ignore"] == ignore
    assert (found.guess.notes["ignore"][:5] == "65535") == (65535 in ignore)


def test_names_of_ids_from_a_file(tmp_path):
    root = folder(tmp_path, NAMES)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    found = draft(root)
    assert ids_of(found) == {"sky": [0], "road": [1], "car": [2], "tree": [3]}
    assert found.guess.origin.endswith("classes.txt")


def test_names_that_fit_from_zero_and_from_one_on_are_refused(tmp_path):
    root = folder(tmp_path, NAMES)  # ids 0 to 3
    (tmp_path / "classes.txt").write_text("road\ncar\ntree\n")
    with pytest.raises(DataError, match="nothing says which of them has no name") as caught:
        draft(root)
    from_one, from_zero = (f"{k}: road` to `{k + 2}: tree`" for k in (1, 0))
    assert from_one in str(caught.value) and from_zero in str(caught.value)


@pytest.mark.parametrize(("text", "void"), [("1: a\n2: b\n3: c\n", 0), ("0: a\n1: b\n2: c\n", 3)])
def test_an_id_without_a_name_is_void_and_it_is_said(text, void, tmp_path):
    root = folder(tmp_path, NAMES)
    (tmp_path / "classes.txt").write_text(text)
    found = draft(root)
    assert list(ids_of(found)) == ["a", "b", "c"] and found.spec["ignore"] == [void, 255]
    notes = [note for note in found.notes if f"assumed: what has the id {void} in the" in note]
    assert len(notes) == 1 and "write a line `id: name` for it there" in notes[0]


def test_names_from_one_on(tmp_path):
    root = folder(tmp_path, NAMES, values=(1, 2, 3, 255))
    (tmp_path / "classes.txt").write_text("road\ncar\ntree\n")
    found = draft(root)
    assert ids_of(found) == {"road": [1], "car": [2], "tree": [3]}
    assert found.spec["ignore"] == [255]


def test_names_that_mean_void_are_no_classes_and_it_is_said(tmp_path):
    root = folder(tmp_path, NAMES)
    (tmp_path / "classes.txt").write_text("Unlabelled\nroad\ncar\ntree\n")
    found = draft(root)
    assert ids_of(found) == {"road": [1], "car": [2], "tree": [3]}
    assert found.spec["ignore"] == [0, 255]
    assert any("assumed: 0 (Unlabelled) in the masks is void" in note for note in found.notes)


def test_too_few_names_are_refused(tmp_path):
    root = folder(tmp_path, NAMES, values=(0, 1, 2, 9))
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    with pytest.raises(DataError, match="names 2 classes, but masks have the ids 0 to 9"):
        draft(root)


def colored(root, colors, noise=0):
    table = np.array(colors, np.uint8)
    for number in range(8):
        ids = mask(number, range(len(colors)))
        rgb = table[ids]
        if noise:
            draw = np.random.default_rng(number)
            rgb[0, :noise] = draw.integers(0, 255, (noise, 3))
        write(root / f"images/{number}.png", image(ids, number))
        write(root / f"masks/{number}.png", rgb)
    return root


def test_colours(tmp_path):
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)]
    found = draft(colored(tmp_path, colors))
    spec = found.spec
    assert spec["masks"] == "colors" and spec["undeclared"] == "error"
    assert [entry["colors"] for entry in spec["classes"]] == [[list(c)] for c in sorted(colors)]
    assert spec["classes"][0]["name"] == "background"


def test_rare_colours_of_resized_masks_are_void(tmp_path):
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)]
    root = colored(tmp_path, colors)
    for number in range(3):  # 1 pixel each of many colours; below the threshold on larger masks
        rgb = np.repeat(np.repeat(np.array(colors, np.uint8)[mask(number)], 8, 0), 8, 1)
        draw = np.random.default_rng(number)
        rgb[0, :30] = draw.integers(60, 255, (30, 3))
        write(tmp_path / f"masks/{number}.png", rgb)
        write(tmp_path / f"images/{number}.png", rgb)
    spec = draft(root).spec
    assert len(spec["classes"]) == 4 and spec["undeclared"] == "ignore"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("label_colors.txt", "255 0 0 road\n0 255 0 car\n0 0 0 void\n10 20 30 tree\n"),
        ("colors.csv", "name,r,g,b\nroad,255,0,0\ncar,0,255,0\nvoid,0,0,0\ntree,10,20,30\n"),
        ("class_dict.csv", "name,r,g,b\nroad,255,0,0\ncar,0,255,0\nvoid,0,0,0\ntree,10,20,30\n"),
        (
            "labelmap.txt",
            "# l:c:p:a\nroad:255,0,0::\ncar:0,255,0\nvoid:0,0,0::\ntree:10,20,30::\n",
        ),
        (
            "classes.json",
            '{"road": [255, 0, 0], "car": [0, 255, 0], "void": [0, 0, 0], "tree": [10, 20, 30]}',
        ),
    ],
)
def test_a_table_of_colours_names_them_and_says_what_is_void(name, text, tmp_path):
    root = colored(tmp_path, [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)])
    (tmp_path / name).write_text(text)
    spec = draft(root).spec
    colors = {entry["name"]: entry["colors"] for entry in spec["classes"]}
    assert colors == {"road": [[255, 0, 0]], "car": [[0, 255, 0]], "tree": [[10, 20, 30]]}
    assert spec["ignore_colors"] == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("sky\nroad\ncar\n", "is not used: it names 3 classes, and the masks have 4 colours"),
        ("sky\nroad\ncar\ntree\n", "from the darkest red on, which is rarely right"),
    ],
)
def test_names_without_colours_are_doubted(names, text, tmp_path):
    root = colored(tmp_path, [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)])
    (tmp_path / "classes.txt").write_text(names)
    notes = [note for note in draft(root).notes if text in note]
    assert len(notes) == 1 and "Write lines `name, r, g, b`" in notes[0]


def test_names_that_may_begin_at_0_or_at_1_are_refused_unless_the_first_is_background(tmp_path):
    root = folder(tmp_path, NAMES, values=(1, 2, 3, 4))
    (tmp_path / "classes.txt").write_text("wall\nfloor\nceiling\ndoor\nwindow\n")
    with pytest.raises(DataError, match=r"id 0 or of id 1.*`0: wall` to `4: window`.*`1: wall`"):
        draft(root)
    (tmp_path / "classes.txt").write_text("background\nfloor\nceiling\ndoor\nwindow\n")
    classes = draft(root).spec["classes"]
    assert {one["name"]: one["ids"] for one in classes}["window"] == [4]
    (tmp_path / "classes.txt").write_text("wall\nfloor\nceiling\ndoor\n")
    assert draft(root).spec["classes"][0] == {"name": "wall", "ids": [1]}


def test_unused_names_of_black_and_white_masks_are_doubted(tmp_path):
    root = folder(tmp_path, NAMES, values=(0, 255))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert any("is not used: it names 3 classes" in note for note in draft(root).notes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((0, 1, 2, 3), True),
        ((1, 2, 3, 255), True),
        ((0, 255), True),
        ((0, 1, 3, 4), False),
        ((2, 3, 4, 5), False),
    ],
)
def test_whether_masks_number_their_classes(values, expected, tmp_path):
    assert draft(folder(tmp_path, NAMES, values=values)).guess.in_order is expected


def test_colours_number_no_classes(tmp_path):
    root = colored(tmp_path, [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)])
    assert not draft(root).guess.in_order


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "road\nguard rail\n", [Named("road"), Named("guard rail")]),
        ("classes.txt", "0 road\n7: car\n", [Named("road", 0), Named("car", 7)]),
        ("labels.txt", "road, 0\ncar, 1\n", [Named("road", 0), Named("car", 1)]),
        ("labels.txt", "a/1.png\na/2.png\n", []),
        ("id2label.json", '{"0": "road", "3": "car"}', [Named("road", 0), Named("car", 3)]),
        ("config.json", '{"id2label": {"0": "a", "1": "b"}}', [Named("a", 0), Named("b", 1)]),
        ("config.json", '{"epochs": 30, "batch_size": 4}', []),
        ("label2id.json", '{"road": 0, "car": 1}', [Named("road", 0), Named("car", 1)]),
        (
            "classes.json",
            '[{"name": "a", "id": 4, "color": [1, 2, 3]}]',
            [Named("a", 4, (1, 2, 3))],
        ),
        ("classes.json", "{broken", []),
        ("classes.json", '{"²": "m²"}', []),  # ² is a digit, but no number
        ("classes.csv", "name,id\nroad,²\ncar,1\n", [Named("road"), Named("car", 1)]),
    ],
)
def test_files_of_classes(name, text, expected, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_class_file(path) == expected


def test_the_palette_of_indexed_masks_gives_colours(tmp_path):
    root = folder(tmp_path, NAMES)
    for number in range(8):
        indexed = Image.fromarray(mask(number), "P")
        indexed.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 200])
        indexed.save(tmp_path / f"masks/{number}.png")
    classes = draft(root).spec["classes"]
    assert classes[1] == {"name": "class_1", "ids": [1], "color": [200, 0, 0]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda path, n: write(path.with_suffix(".jpg"), mask(n)) or path.unlink(), "is a JPEG"),
        (lambda path, n: write(path, np.zeros((32, 48), np.uint8)), "one class only"),
        (
            lambda path, n: cv2.imwrite(
                str(path), np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
            ),
            "more than 254 classes",
        ),
    ],
)
def test_masks_that_cannot_be_classes_are_refused(change, text, tmp_path):
    root = folder(tmp_path, NAMES)
    for number in range(8):
        change(tmp_path / f"masks/{number}.png", number)
    with pytest.raises(DataError, match=text):
        draft(root)


@pytest.mark.parametrize("colored_one", [0, 5])
def test_ids_and_colours_in_one_set_are_refused(colored_one, tmp_path):
    root = folder(tmp_path, NAMES)
    rgb = np.dstack([mask(5), mask(6), mask(7)])
    write(tmp_path / f"masks/{colored_one}.png", rgb)
    text = rf"{colored_one}.png has colours, but .*.png has ids \(1, 2, 3\)\. Convert them"
    with pytest.raises(DataError, match=text):
        draft(root)


@pytest.mark.parametrize("number", [0, 7])  # the first mask, the last
@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_grey_masks_among_colours_are_colours(channels, number, tmp_path):
    colors = [(0, 0, 0), (255, 0, 0), (0, 255, 0), (90, 90, 90)]
    root = colored(tmp_path, colors)
    grey = np.where(mask(0) > 1, 90, 0).astype(np.uint8)
    write(tmp_path / f"masks/{number}.png", np.dstack([grey] * 3) if channels == 3 else grey)
    found = draft(root)
    assert [entry["colors"] for entry in found.spec["classes"]] == [
        [list(c)] for c in sorted(colors)
    ]
    shown = [found.guess.counts[entry["name"]] for entry in found.spec["classes"]]
    often, seldom = (
        "28.12 % of the pixels, in 8 of 8 masks",
        "21.88 % of the pixels, in 7 of 8 masks",
    )
    assert shown == [often, seldom, often, seldom]
    data = Folder(FolderConfig(name="folder", root=root, spec=found.spec), "train")
    labels = [data.read(index).label for index in range(len(data))]
    assert sum(set(np.unique(label)) == {0, 2} for label in labels) == 1


def test_masks_of_void_alone_beside_names_are_refused(tmp_path):
    root = folder(tmp_path, NAMES, values=(255,))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(DataError):
        draft(root)


def test_ids_that_no_mask_can_have_are_no_classes(tmp_path):
    root = folder(tmp_path, NAMES)
    text = '[{"name": "sky", "id": 0}, {"name": "road", "id": 1}, {"name": "plate", "id": -1}]'
    (tmp_path / "classes.json").write_text(text)
    assert ids_of(draft(root)) == {"sky": [0], "road": [1]}


@pytest.mark.parametrize("mark", [";", "\t", ","])
def test_tables_of_spreadsheets_in_any_country(mark, tmp_path):
    rows = [("name", "r", "g", "b"), ("road", 128, 64, 128), ("sky", 70, 130, 180)]
    lines = [mark.join(map(str, row)) for row in rows]
    expected = [Named(row[0], None, row[1:]) for row in rows[1:]]
    for text in ("\r\n".join(lines), "\r\n".join(lines[1:])):
        (tmp_path / "classes.csv").write_bytes(text.encode())
        assert read_class_file(tmp_path / "classes.csv") == expected
    (tmp_path / "classes.csv").write_text(f"id{mark}name\n7{mark}road\n8{mark}sky\n")
    assert read_class_file(tmp_path / "classes.csv") == [Named("road", 7), Named("sky", 8)]
