import json
import shutil

import cv2
import numpy as np
import pytest
from slow_culane import road, straight
from typer.testing import CliRunner

from segkd import cli
from segkd.commands.score import score
from segkd.errors import DataError
from segkd.evaluation.culane_files import Scorer
from segkd.metrics.culane import Counts, Rules, evaluate_image
from segkd.metrics.culane_text import lines_file, read_categories, read_list

IMAGES = 150  # more than two chunks


def text_of(lanes):
    return "".join(" ".join(f"{x:.4f} {y:.4f}" for x, y in lane) + " \n" for lane in lanes)


def write(folder, entry, text):
    file = folder / lines_file(entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Annotations and predictions of 150 images, and what each image should count."""
    root, rng = tmp_path_factory.mktemp("culane"), np.random.default_rng(1)
    entries = [f"/clip{i % 3}/{i:05d}.jpg" for i in range(IMAGES)]
    expected = []
    for entry in entries:
        truth = [np.round(road(rng), 3) for _ in range(rng.integers(0, 4))]
        guess = [np.round(lane + rng.normal(0, 5, (1, 2)), 3) for lane in truth]
        guess = guess[rng.integers(0, 2) :] + [np.round(road(rng))] * int(rng.integers(0, 2))
        write(root / "truth", entry, text_of(truth))
        write(root / "guess", entry, text_of(guess))
        expected.append(evaluate_image(truth, guess))
    (root / "list.txt").write_text("\n".join(entries) + "\n")
    split = root / "split"
    split.mkdir()
    (split / "test0_normal.txt").write_text("\n".join(e[1:] for e in entries[:100]))
    (split / "test1_crowd.txt").write_text("\n".join(entries[100:149]) + "\n\n")
    return root, entries, np.array(expected)


def scorer(tree, **options):
    root, entries, _ = tree
    return Scorer(entries, root / "truth", **options)


def test_each_image_the_total_and_the_categories(tree):
    root, _, expected = tree
    categories = read_categories(root / "split")
    seen = []
    result = scorer(tree, categories=categories).score_files(
        root / "guess", progress=lambda done, total: seen.append((done, total))
    )
    assert np.array_equal(result.counts, expected)
    assert result.total == Counts(*expected.sum(0).tolist())
    assert result.categories == {
        "normal": (100, Counts(*expected[:100].sum(0).tolist())),
        "crowd": (49, Counts(*expected[100:149].sum(0).tolist())),
    }
    assert result.uncategorised == 1 and not result.missing_predictions + result.malformed
    assert seen[-1] == (IMAGES, IMAGES) and len(seen) == 3


def test_workers_and_kept_annotations_change_nothing(tree, tmp_path):
    root, _, expected = tree
    kept = scorer(tree)
    for one, workers in ((kept, 2), (kept, 2), (kept, None), (scorer(tree, keep=False), 2)):
        result = one.score_files(root / "guess", workers=workers)
        assert np.array_equal(result.counts, expected)
    kept.annotations = tmp_path  # empty: nothing is read again
    assert np.array_equal(kept.score_files(root / "guess").counts, expected)
    other = kept.score_files(root / "truth")
    assert other.total.tp + other.total.fn == expected[:, [0, 2]].sum()
    assert other.total.tp > expected[:, 0].sum()


def test_lanes_in_memory(tree):
    root, entries, _ = tree
    lanes = [[straight(400, 0.5), straight(900)] for _ in entries]
    for entry, own in zip(entries, lanes, strict=True):
        write(root / "memory", entry, text_of(own))
    result = scorer(tree).score_lanes(lanes)
    assert np.array_equal(result.counts, scorer(tree).score_files(root / "memory").counts)
    with pytest.raises(DataError, match="1 predictions for 150 images"):
        scorer(tree).score_lanes(lanes[:1])


def test_missing_and_malformed_files_are_reported(tree, tmp_path):
    entries = tree[1]
    lane = text_of([straight(800, 0.3)])
    for number, entry in enumerate(entries[:4]):
        if number != 1:
            write(tmp_path / "truth", entry, lane)
        if number != 2:
            write(tmp_path / "guess", entry, lane + ("1 2 x\n" if number == 3 else ""))
    for workers in (1, 2):
        result = Scorer(entries[:4], tmp_path / "truth").score_files(
            tmp_path / "guess", workers=workers
        )
        assert result.counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
        assert result.missing_annotations == [str(tmp_path / "truth/clip1/00001.lines.txt")]
        assert result.missing_predictions == [str(tmp_path / "guess/clip2/00002.lines.txt")]
        assert result.malformed == [f"{tmp_path}/guess/clip0/00003.lines.txt, line 2"]
    again = Scorer(entries[:4], tmp_path / "truth")
    first, second = (again.score_files(tmp_path / "guess") for _ in range(2))
    assert first.missing_annotations == second.missing_annotations


def test_a_wrong_folder_is_refused(tree):
    root, entries, _ = tree
    with pytest.raises(DataError, match=r"none of the prediction files exists.*--predictions"):
        scorer(tree).score_files(root / "elsewhere")
    with pytest.raises(DataError, match=r"none of the annotation files exists.*--annotations"):
        Scorer(entries, root / "elsewhere").score_files(root / "guess")
    with pytest.raises(DataError, match="category night: none of its 1 images is in the list"):
        Scorer(entries, root / "truth", categories={"night": ["/other/1.jpg"]})
    with pytest.raises(DataError, match="the list has no image"):
        Scorer([], root / "truth")


def test_rules_reach_the_score(tree):
    root, _, expected = tree
    strict = scorer(tree, rules=Rules(iou_threshold=0.9)).score_files(root / "guess")
    assert strict.total.tp < expected[:, 0].sum()


def test_several_thresholds_in_one_pass(tree):
    root, _, expected = tree
    categories = read_categories(root / "split")
    several = scorer(tree, categories=categories, thresholds=[0.5, 0.75, 0.3])
    result = several.score_files(root / "guess")
    assert np.array_equal(result.counts, expected)  # at the first one
    ten = [round(0.5 + 0.05 * number, 2) for number in range(10)]
    alone = {
        one: scorer(tree, rules=Rules(iou_threshold=one), categories=categories).score_files(
            root / "guess"
        )
        for one in (*ten, 0.3)
    }
    found = result.to_dict()
    for one in (0.5, 0.75, 0.3):
        assert found["thresholds"][f"{one:g}"] == alone[one].total.to_dict()
        crowd = found["categories"]["crowd"]["thresholds"][f"{one:g}"]
        assert crowd == alone[one].categories["crowd"][1].to_dict()
    assert alone[0.3].total.tp > alone[0.5].total.tp > alone[0.75].total.tp > 0
    mean = sum(alone[one].total.f1 if alone[one].total.tp else 0 for one in ten) / 10
    assert found["mean_f1"] == pytest.approx(mean, abs=1e-12) == alone[0.9].to_dict()["mean_f1"]
    for wrong in ([0.5, 0.5], [1.0], [-0.1, 0.5]):
        with pytest.raises(DataError, match="IoU thresholds are"):
            scorer(tree, thresholds=wrong)


def test_thresholds_on_the_command_line(tree, capfd):
    root, _, expected = tree
    arguments = ["score", "culane", "--annotations", f"{root}/truth", "--workers", "1"]
    arguments += ["--predictions", f"{root}/guess", "--list", f"{root}/list.txt"]

    def call(*more):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, *more])
        return stop.value.code, *capfd.readouterr()

    code, out, _ = call("--iou", "0.5", "0.75")
    header, _, total = (line.split() for line in out.splitlines()[:3])
    assert code == 0 and header[-3:] == ["F1", "F1@75", "mF1"] and len(total) == len(header)
    assert total[2:5] == [str(count) for count in expected.sum(0)]
    facts = json.loads(call("--iou", "0.75", "--json")[1])
    assert facts["tp"] < expected[:, 0].sum() and "thresholds" not in facts
    assert total[-1] == f"{100 * facts['mean_f1']:.2f}"
    alone = call("--iou", "0.75")[1].splitlines()
    assert alone[0].split()[-1] == "F1@75" and alone[2].split()[-1] == total[-2]
    assert call()[1].splitlines()[0].split()[-1] == "F1"
    code, _, err = call("--iou", "0.5", "7")
    assert code == 2 and "IoU thresholds are [0.5, 7.0]" in err and "Traceback" not in err


def test_lists(tmp_path):
    file = tmp_path / "train_gt.txt"
    file.write_text(
        "/a b/1.jpg /laneseg_label_w16/a b/1.png 1 1 0 1\n\n/c/2.jpg\r\n/d/3.jpg /x/3.png\n"
    )
    assert read_list(file) == ["/a b/1.jpg", "/c/2.jpg", "/d/3.jpg"]
    assert lines_file("/a.MP4/1.jpg") == "a.MP4/1.lines.txt" and lines_file("b") == "b.lines.txt"
    file.write_text("\n")
    with pytest.raises(DataError, match="has no entry"):
        read_list(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "none.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.txt files"):
        read_categories(tmp_path / "empty")
    for name in ("test0_normal.txt", "test3_normal.txt"):
        (tmp_path / "empty" / name).write_text("/a/1.jpg\n")
    with pytest.raises(DataError, match=r"and test3_normal\.txt are both the category"):
        read_categories(tmp_path / "empty")


def test_the_command(tree, tmp_path):
    root, _, expected = tree
    arguments = ["culane", "--annotations", f"{root}/truth", "--predictions", f"{root}/guess"]
    arguments += ["--list", f"{root}/list.txt", "--categories", f"{root}/split"]
    shown = CliRunner().invoke(score, arguments, catch_exceptions=False)
    total = Counts(*expected.sum(0).tolist())
    assert shown.exit_code == 0 and f"{100 * total.f1:.2f}" in shown.output
    assert "normal" in shown.output and "1 images of the list are in no category" in shown.output
    as_json = CliRunner().invoke(score, [*arguments, "--json", "--workers", "1"])
    data = json.loads(as_json.stdout.splitlines()[-1])
    assert data["f1"] == total.f1 and data["categories"]["crowd"]["images"] == 49
    assert data["missing_annotations"] == 0 == data["missing_predictions"]
    lines = (root / "list.txt").read_text().splitlines()
    (tmp_path / "list.txt").write_text("\n".join([*lines, lines[3]]) + "\n")
    arguments[6] = f"{tmp_path}/list.txt"
    shown = CliRunner().invoke(score, arguments, catch_exceptions=False)
    assert f"1 images are listed twice in {tmp_path}/list.txt" in shown.output
    assert f"first: {lines[3]}" in shown.output


def test_what_is_undefined_is_a_dash_and_null(tmp_path):
    write(tmp_path / "truth", "/cross/1.jpg", "")
    write(tmp_path / "guess", "/cross/1.jpg", text_of([straight(800)]))
    (tmp_path / "list.txt").write_text("/cross/1.jpg\n")
    arguments = ["culane", "--annotations", f"{tmp_path}/truth", "--predictions"]
    arguments += [f"{tmp_path}/guess", "--list", f"{tmp_path}/list.txt"]
    data = CliRunner().invoke(score, [*arguments, "--json"]).stdout.splitlines()[-1]
    data = json.loads(data)
    assert (data["tp"], data["fp"], data["fn"]) == (0, 1, 0)
    assert data["precision"] == 0 and data["recall"] is None and data["f1"] is None
    assert CliRunner().invoke(score, arguments).output.count("-") >= 2


def test_a_wrong_image_size_is_told(tree, tmp_path, capfd):
    root, entries, _ = tree
    cv2.imwrite(str(tmp_path / "image.jpg"), np.zeros((720, 1280, 3), np.uint8))

    def call(annotations, *size):
        arguments = ["score", "culane", "--annotations", str(annotations), "--workers", "1"]
        arguments += ["--predictions", f"{root}/guess", "--list", f"{root}/list.txt"]
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, *(["--image-size", *size] if size else [])])
        return stop.value.code, *capfd.readouterr()

    assert "warning" not in call(root / "truth")[2]
    code, out, err = call(root / "truth", "1640", "590")
    assert code == 2 and not out and "outside of images of height 1640 and width 590" in err
    code, _, err = call(root / "truth", "590", "1200")
    assert code == 0 and "points are far outside of images of height 590 and width 1200" in err
    # images beside the annotations tell their size
    copy = shutil.copytree(root / "truth", tmp_path / "set")
    shutil.copy(tmp_path / "image.jpg", copy / entries[0].lstrip("/"))
    code, _, err = call(copy)
    assert code == 0 and "00000.jpg has height 720 and width 1280" in err
    assert "give --image-size 720 1280" in err
    assert "give --image-size" not in call(copy, "720", "1280")[2]
