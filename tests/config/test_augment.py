"""``data.augment`` in a config: every mistake is told with its line, before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_lanes

from segkd.config.load import dump_config, load_config, load_evaluation, load_text

HEAD = "base: run.yaml\ndata:\n  crop: [48, 64]\n  augment:\n"  # the list begins on line 5


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "RandomFogg: {p: 0.2}",
            ":5: data.augment.0.RandomFogg: unknown transform 'RandomFogg'. Di",
        ),
        ("ToGrey", ":5: data.augment.0: unknown transform 'ToGrey'. Did you mean 'ToGray'?"),
        ("segkd.cli.main", ":5: data.augment.0: unknown transform 'segkd.cli.main'. Known: Additi"),
        ("BasicTransform", ":5: data.augment.0: unknown transform 'BasicTransform'. "),
        ("3", ":5: data.augment.0: got 3, expected a transform by its name, e.g. `RandomFog: {p: "),
        ("{}", ":5: data.augment.0: got {}, expected a transform by its name"),
        ("Blur: 3", ":5: data.augment.0.Blur: got 3, expected arguments, e.g. `Blur: {p: 0.2}`"),
        ("Blur:", ":5: data.augment.0.Blur: is empty: write a value ({} for the defaults), or rem"),
        ("{Blur: {}, ToGray: {}}", ":5: data.augment.0: got Blur, ToGray in one entry: begin a li"),
        (
            "RandomFog:\n        alpha: 1",
            ":6: data.augment.0.RandomFog.alpha: RandomFog has no argument 'alpha'. Did you mean",
        ),
        (
            "RandomFog:\n        p: 1.5",
            ":6: data.augment.0.RandomFog.p: RandomFog: got 1.5; albumentations: Input should be",
        ),
        (
            "CoarseDropout: {fill: red}",
            ":5: data.augment.0.CoarseDropout.fill: CoarseDropout: got 'red'; albumentations: ",
        ),
        (
            "GridElasticDeform: {magnitude: 3}",
            ":5: data.augment.0.GridElasticDeform: GridElasticDef",
        ),
        (
            "Blur: {blur_limit: 4}",
            ":5: data.augment.0.Blur: Blur: albumentations: blur_limit: Non-z",
        ),
        (
            "Affine: {fill_mask: 3}",
            ":5: data.augment.0.Affine.fill_mask: fill_mask is set by segkd",
        ),
        (
            "Affine: {mask_interpolation: 1}",
            ":5: data.augment.0.Affine.mask_interpolation: mask_in",
        ),
        (
            "PixelDropout: {mask_drop_value: 1}",
            ":5: data.augment.0.PixelDropout.mask_drop_value: m",
        ),
        (
            "Normalize",
            ":5: data.augment.0: Normalize is refused: networks normalise images themsel",
        ),
        ("ToTensorV2", ":5: data.augment.0: ToTensorV2 is refused: networks normalise"),
        (
            "RandomCrop: {height: 8, width: 8}",
            ":5: data.augment.0.RandomCrop: RandomCrop is refused",
        ),
        (
            "Resize: {height: 8, width: 8}",
            ":5: data.augment.0.Resize: Resize is refused: it change",
        ),
        (
            "RandomRotate90",
            ":5: data.augment.0: RandomRotate90 is refused: it turns images on their",
        ),
        (
            "Perspective: {keep_size: false}",
            ":5: data.augment.0.Perspective: Perspective is refused",
        ),
        (
            "ToGray: {num_output_channels: 1}",
            ":5: data.augment.0.ToGray: ToGray is refused: the im",
        ),
        (
            "FDA: {reference_images: [/etc/passwd]}",
            ":5: data.augment.0.FDA: FDA is refused: it nee",
        ),
        (
            "TextImage: {font_path: /a.ttf}",
            ":5: data.augment.0.TextImage: TextImage is refused: it",
        ),
        (
            "Lambda: {image: os.system}",
            ":5: data.augment.0.Lambda: Lambda is refused: it needs fun",
        ),
        (
            "Morphological",
            ":5: data.augment.0: Morphological is refused: it would compute with cla",
        ),
        ("CenterCrop3D: {size: [8, 8, 8]}", ":5: data.augment.0.CenterCrop3D: CenterCrop3D is ref"),
        (
            "Compose: {transforms: [Blur]}",
            ":5: data.augment.0.Compose: Compose is refused: the lis",
        ),
        (
            "GridDropout: {unit_size_range: [60, 70]}",
            ":5: data.augment.0.GridDropout: GridDropout ",
        ),
        (
            "OneOf:\n        p: 2\n        transforms:\n          - Blur\n          - Blurr: {}",
            ":6: data.augment.0.OneOf.p: got 2, expected a number from 0 to 1\n"
            "  configs/bad.yaml:9: data.augment.0.OneOf.transforms.1.Blurr: unknown transform 'Bl",
        ),
        (
            "OneOf",
            ":5: data.augment.0: OneOf: transforms: expected a list of transforms, e.g. {tran",
        ),
        (
            "OneOf: {transforms: Blur}",
            ":5: data.augment.0.OneOf.transforms: OneOf: transforms: got",
        ),
        (
            "OneOf: {transforms: [Blur: {p: 0}]}",
            ":5: data.augment.0.OneOf: OneOf: p of its transfo",
        ),
        ("OneOf: {transforms: [Blur], n: 2}", ":5: data.augment.0.OneOf.n: OneOf has no argument "),
        (
            "SomeOf: {transforms: [Blur], n: 2}",
            ":5: data.augment.0.SomeOf: SomeOf: albumentations:",
        ),
        (
            "SomeOf: {transforms: [Blur], n: 0}",
            ":5: data.augment.0.SomeOf.n: got 0, expected a who",
        ),
        (
            "SelectiveChannelTransform: {transforms: [Affine]}",
            ":5: data.augment.0.SelectiveChannelTransform: would move some channels and leave th",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line(refused, entry, message):
    told = refused(f"{HEAD}    - {entry}\n").removeprefix("2 problems in configs/bad.yaml:\n  ")
    assert told.startswith(f"configs/bad.yaml{message}")
    assert told.count("\n") == message.count("\n")


def test_the_problems_of_all_entries_come_together_with_those_of_other_keys(refused):
    message = refused(f"{HEAD}    - Blurr\n    - Blur: {{p: 3}}\noptim: {{lr: fast}}\n")
    assert [line.split(": ")[0] for line in message.splitlines()[1:]] == [
        f"  configs/bad.yaml:{line}" for line in (5, 6, 7)
    ]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("HorizontalFlip", "use data.flip, which exchanges left and right"),
        ("Affine: {scale: {x: [-1, -1], y: [1, 1]}}", "use data.flip, which exchanges left and"),
        ("VerticalFlip", "turns a road upside down"),
        ("D4", "turns a road upside down"),
        ("RandomGridShuffle", "cuts lanes into pieces"),
        ("Affine: {border_mode: 4}", "got 4; of lane sets only 0"),
        (
            "ElasticTransform: {keypoint_remapping_method: direct}",
            "points of lanes move as their pi",
        ),
    ],
)
def test_what_lanes_cannot_take_is_refused_for_lane_sets_alone(refused, folder, entry, reason):
    data = f"  crop: [64, 64]\n  augment: [{entry}]\n"
    message = refused(f"base: run.yaml\ndata:\n  name: {toy_lanes.ToyLanes.name}\n{data}")
    assert message.startswith("configs/bad.yaml:5: data.augment.0") and reason in message
    if "keypoint" not in entry:
        (folder / "configs" / "good.yaml").write_text(f"base: run.yaml\ndata:\n{data}")
        assert load_config("good").run.data.augment


def test_lists_replace_and_null_takes_them_away(folder):
    (folder / "configs" / "base.yaml").write_text(f"{HEAD}    - ToGray\n    - Blur: {{p: 0.1}}\n")
    run = load_config("base").run
    assert run.data.augment == ["ToGray", {"Blur": {"p": 0.1}}]
    assert load_config("base", ["data.augment=[InvertImg]"]).run.data.augment == ["InvertImg"]
    assert load_config("base", ["data.augment=null"]).run.data.augment == []
    assert load_text(dump_config(run)).data.augment == run.data.augment


def test_a_stored_config_is_read_though_its_transforms_are_gone(folder):
    """As by a later albumentations; a run is scored, reported and compared without them."""
    (folder / "configs" / "base.yaml").write_text(f"{HEAD}    - ToGray\n")
    text = dump_config(load_config("base").run).replace("ToGray", "OfAnotherVersion")
    assert load_text(text).data.augment == ["OfAnotherVersion"]
    assert load_evaluation(text).data.augment == ["OfAnotherVersion"]


def test_albumentations_is_imported_for_configs_that_use_it():
    root = Path(__file__).parents[2]
    code = (
        "import sys\nfrom segkd.config.load import load_config\n"
        "load_config('streets/kd_cwd')\nprint('albumentations' in sys.modules)\n"
        "load_config('streets/weather')\nprint('albumentations' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.split() == ["False", "True"]
