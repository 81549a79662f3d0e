"""Names of data sets' classes, what they mean, and drafts of maps between any two of them."""

import itertools

import pytest

from segkd import registry
from segkd.errors import ConfigError
from segkd.models.class_draft import draft, table_of
from segkd.models.label_sets import (
    _concepts,
    above,
    label_set,
    meaning_of,
    named,
    recognised,
    set_names,
)

COUNTS = {"cityscapes": 19, "bdd100k": 19, "camvid": 11, "voc": 21, "ade20k": 150}
COUNTS |= {"coco_stuff": 171, "mapillary": 66, "mapillary_65": 65, "mapillary_v2": 124}


def table(source, target):
    return table_of(draft(label_set(source), label_set(target)))


def test_sets_have_the_classes_of_their_datasets_in_their_order():
    assert set(set_names()) == set(COUNTS)
    for name, count in COUNTS.items():
        classes = label_set(name).classes
        assert len(classes) == len(set(classes)) == count
        if name in registry.datasets and name != "bdd100k":  # whose dataset are its lanes
            assert classes == tuple(registry.datasets.get(name).classes)
    assert label_set("bdd100k").classes == label_set("cityscapes").classes
    mapillary = label_set("mapillary").classes
    assert [mapillary[n] for n in (0, 13, 19, 55, 64, 65)] == [
        *("Bird", "Road", "Person", "Car", "Ego Vehicle", "Unlabeled")
    ]
    assert label_set("mapillary_65").classes == mapillary[:65]


def test_concepts_have_no_circle_and_no_misspelling():
    meanings = [meaning for name in set_names() for meaning in label_set(name).meanings]
    stands_for = {meaning.concept for meaning in meanings if meaning.concept}
    tree = _concepts()["wider"]
    for concept in stands_for:
        assert concept not in above(concept)
    for meaning in meanings:
        assert {*meaning.covers} <= stands_for | {*tree, *tree.values(), "anything"}
    assert {*tree.values()} <= {*tree} | stands_for
    # Narrower concepts are those of classes, or words for users.
    assert {*tree} <= stands_for | {*_concepts()["words"]} | {*tree.values()}
    assert {*_concepts()["words"]} <= stands_for | {*tree, *tree.values()}


@pytest.mark.parametrize("pair", [*itertools.permutations(sorted(COUNTS), 2)])
def test_every_pair_has_a_map_of_names_that_exist(pair):
    source, target = map(label_set, pair)
    found = table(*pair)
    assert tuple(found) == source.classes and set(found.values()) <= {None, *target.classes}
    assert sum(value is not None for value in found.values()) >= 7
    assert {"person", "pedestrian", "Person"} & {*found.values()}


def test_cityscapes_to_camvid_is_as_it_was():
    other = {"sidewalk": "pavement", "wall": "fence", "traffic light": "sign symbol"}
    other |= {"traffic sign": "sign symbol", "vegetation": "tree", "terrain": "tree"}
    other |= {"person": "pedestrian", "rider": "bicyclist", "truck": "car", "bus": "car"}
    other |= {"train": "car", "motorcycle": "bicyclist", "bicycle": "bicyclist"}
    expected = {name: other.get(name, name) for name in label_set("cityscapes").classes}
    assert table("cityscapes", "camvid") == expected


def test_what_a_set_says_that_it_covers_needs_no_look():
    # CamVid's authors put trucks, buses and trains with cars: none is more of a guess than others.
    matches = draft(label_set("cityscapes"), label_set("camvid"))
    assert [one.source for one in matches if one.why] == []
    whys = {one.source: one.why for one in draft(label_set("ade20k"), label_set("camvid"))}
    assert whys["tree"] == "" and whys["van"] == whys["sand"] == "a wider class"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (
            "ade20k",
            "cityscapes",
            {"person": "person", "road": "road", "sidewalk": "sidewalk", "van": "car"}
            | {"skyscraper": "building", "tree": "vegetation", "grass": "terrain", "sky": "sky"}
            | {"minibike": "motorcycle", "bed": None, "water": None, "mountain": None},
        ),
        (
            "mapillary",
            "cityscapes",
            {"Lane Marking - General": "road", "Curb": "sidewalk", "On Rails": "train"}
            | {"Bicyclist": "rider", "Traffic Sign (Front)": "traffic sign", "Ego Vehicle": None}
            | {"Traffic Sign (Back)": None, "Unlabeled": None, "Utility Pole": "pole"},
        ),
        ("camvid", "cityscapes", {"pavement": "sidewalk", "car": "car", "bicyclist": "rider"}),
        ("coco_stuff", "cityscapes", {"wall-brick": "wall", "pavement": "sidewalk", "cat": None}),
        (
            "coco_stuff",
            "voc",
            {
                "couch": "sofa",
                "tv": "tvmonitor",
                "potted plant": "pottedplant",
                "truck": "background",
            }
            | {"road": "background", "furniture-other": None, "table": None},
        ),
        ("ade20k", "voc", {"animal": None, "airplane": "aeroplane", "armchair": "chair"}),
        ("voc", "ade20k", {"background": None, "cat": "animal", "motorbike": "minibike"}),
        ("voc", "coco_stuff", {"tvmonitor": "tv", "diningtable": "dining table", "dog": "dog"}),
        ("cityscapes", "ade20k", {"rider": "person", "traffic sign": "signboard", "train": None}),
        ("mapillary_v2", "mapillary", {"Lane Marking - Stop Line": "Lane Marking - General"}),
    ],
)
def test_spot_checks(source, target, expected):
    found = table(source, target)
    assert {name: found[name] for name in expected} == expected


def test_sets_are_recognised_in_any_spelling_and_order():
    names = ["Sidewalk" if n == "sidewalk" else n for n in label_set("cityscapes").classes]
    found = recognised(names[::-1])
    assert found.name == "cityscapes" and found.classes == tuple(names[::-1])
    assert found.meanings[names[::-1].index("Sidewalk")].concept == "sidewalk"
    longer = {"television": "television receiver", "bed": "bed ", "sidewalk": "sidewalk, pavement"}
    ade = [longer.get(name, name) for name in label_set("ade20k").classes]
    assert recognised(ade).name == "ade20k"
    assert recognised(["road", "sky"]) is None
    with pytest.raises(ConfigError, match="Did you mean 'cityscapes'"):
        label_set("cityscape")
    assert label_set("COCO-Stuff").name == "coco_stuff"


@pytest.mark.parametrize(
    ("name", "concept", "certain"),
    [
        ("Cars", "car", True),
        ("Pedestrians", "person", True),
        ("traffic_light", "traffic light", True),
        ("Side-Walk", "sidewalk", True),
        ("sidewalk, pavement", "sidewalk", True),
        ("human--person", "person", True),
        ("police car", "car", False),
        ("glass", "drinking glass", True),
        ("flux capacitor", "flux capacitor", True),
    ],
)
def test_names_that_no_set_has(name, concept, certain):
    found = meaning_of(name)
    assert (found.concept, found.certain) == (concept, certain)


def test_drafts_of_own_names_tell_what_is_certain():
    theirs = named(
        ["Streets", "trucks", "police car", "animal", "unicorn", "gizmo", "axes", "greenery"]
    )
    ours = named(["street", "vehicle", "my car", "cat", "dog", "gizmos", "axe", "trees"])
    found = {one.source: (one.target, one.how) for one in draft(theirs, ours)}
    assert found == {
        "Streets": ("street", "same"),
        "trucks": ("vehicle", "wider"),
        "police car": ("my car", "guess"),
        "animal": (None, "open"),
        "unicorn": (None, "open"),
        "gizmo": ("gizmos", "same"),
        "axes": ("axe", "same"),
        "greenery": ("trees", "guess"),
    }
    whys = {one.source: one.why for one in draft(theirs, ours)}
    assert whys["animal"] == "may be cat, dog"
    assert table_of(draft(theirs, ours), guesses=False)["police car"] is None
