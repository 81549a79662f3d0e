import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from report_runs import SECTIONS, change_summary, silent
from toy_run import ToyData

from segkd import api, cli
from segkd.errors import ConfigError, DataError
from segkd.metrics.confusion import iou
from segkd.report import evidence as evidence_module
from segkd.report.collect import collect
from segkd.report.evidence import gather
from segkd.report.insight import class_scores
from segkd.report.latency import latencies
from segkd.report.look import Look
from segkd.report.pictures import choose, disagreement
from segkd.runtime import Runtime


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def sections_of(html):
    return dict(re.findall(r'<section id="([^"]+)">(.*?)</section>', html, re.DOTALL))


def rows_of(html, section="result"):
    """The first table of a section: first cell to the others."""
    table = re.search(r"<tbody>(.*?)</tbody>", sections_of(html)[section], re.DOTALL)[1]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("</tr>") if "<td>" in row]
    return {row[0]: row[1:] for row in rows}


def test_a_recipe_with_its_roles_numbers_and_gap(runs, report):
    html = report(runs).html.read_text()
    assert (runs / "report" / "report.html").exists()
    rows = rows_of(html)
    assert list(rows) == ["big", "alone", "distilled"]
    teacher = summary(runs / "big")["miou"]
    alone = [summary(runs / "alone" / f"seed{seed}")["miou"] for seed in (0, 1)]
    student = summary(runs / "distilled" / "seed0")
    mean = sum(alone) / 2
    assert rows["big"][0].split()[0] == f"{100 * teacher:.2f}"
    assert rows["alone"][0].startswith(f"{100 * mean:.2f} ±")
    assert rows["distilled"][1] == f"{100 * (student['miou'] - alone[0]):+.2f}"  # of its seed
    if teacher > alone[0]:
        share = (student["miou"] - alone[0]) / (teacher - alone[0])
        assert rows["distilled"][2] == f"{100 * share:.0f} %"
    assert rows["distilled"][5] == f"{student['seconds_per_step']:.3f}"
    for word in ("task/cross_entropy", "kd/kd", "cwd/cwd", "val/miou", "method/cwd", "backward"):
        assert word in html


def test_class_scores_are_those_of_the_runs_and_of_an_evaluation(runs, report, tmp_path):
    collection = collect([runs])
    found = gather(collection, tmp_path, latency=False, bar=silent)
    scores = class_scores(collection, found)
    assert list(scores) == ["big", "alone", "distilled"]
    stored = [summary(runs / "alone" / f"seed{seed}")["iou"] for seed in (0, 1)]
    assert scores["alone"]["road"] == pytest.approx(sum(s["road"] for s in stored) / 2)
    result = api.evaluate(runs / "distilled" / "seed0")
    seen = found.look_of("distilled")
    assert torch.equal(seen.matrix, result.matrix)
    assert np.array_equal(seen.counts.sum(0)[1], result.matrix.sum(1))
    edges = api.evaluate(runs / "distilled" / "seed0", overrides=["eval.boundary=true"])
    assert torch.equal(seen.boundary, edges.boundary)
    first = gather(
        collection, tmp_path, latency=False, bar=silent, overrides=["eval.limit=3"]
    )  # as a run scores them
    assert first.look_of("big").indices.tolist() == [0, 1, 2]
    other = gather(collection, tmp_path, latency=False, bar=silent, overrides=["eval.flip=true"])
    values = iou(other.look_of("alone").matrix).tolist()
    assert list(class_scores(collection, other)["alone"].values()) == pytest.approx(values)
    assert any("an evaluation with eval.flip=true" in note for note in other.notes)
    with pytest.raises(ConfigError, match=r"data\.train_split would change nothing: this report"):
        gather(collection, tmp_path, bar=silent, overrides=["data.train_split=x"])
    limited = gather(collection, tmp_path, limit=3, latency=False, bar=silent)
    assert limited.look_of("big").indices.tolist() == [0, 3, 6] and not limited.complete
    values = iou(limited.look_of("alone").matrix).tolist()
    assert list(class_scores(collection, limited)["alone"].values()) == pytest.approx(values)


def test_a_better_run_without_methods_is_not_the_distilled_student(runs, report):
    shutil.copytree(runs / "alone" / "seed0", runs / "lucky" / "seed0")
    lucky = {"miou": 0.99, "score": 0.99}
    change_summary(runs / "lucky" / "seed0", **lucky)
    collection = collect([runs])
    assert collection.student.name == "distilled"
    assert [g.name for g in collection.groups] == ["big", "alone", "distilled", "lucky"]
    html = report(runs).html.read_text()
    assert list(rows_of(html)) == ["big", "alone", "distilled", "lucky"]
    titles = re.findall(r"<th [^>]*>(.*?)</th>", sections_of(html)["classes"])
    assert titles == ["class", "big", "alone", "distilled", "lucky", "gain"]


def test_a_teacher_from_outside_is_evaluated(runs, report):
    alone = runs / "distilled" / "seed0"
    html = report(alone).html.read_text()
    rows = rows_of(html)
    assert list(rows) == ["big", "distilled"]
    assert rows["big"][0] == f"{100 * summary(runs / 'big')['miou']:.2f}"
    assert rows_of(html, "boundary").keys() == {"big", "distilled"}
    assert "distilled gains most over big" in html or "distilled loses most against big" in html
    assert (alone / "report" / "report.md").exists()


def test_a_second_report_looks_at_nothing_again(runs, report, monkeypatch):
    first = report(runs).html.read_text()

    def refuse(*arguments):
        raise AssertionError("looked again")

    monkeypatch.setattr(evidence_module, "look", refuse)
    again = report(runs).html.read_text()
    assert rows_of(first, "boundary") == rows_of(again, "boundary")
    with pytest.raises(AssertionError, match="looked again"):
        report(runs, overrides=["eval.flip=true"])
    kept = next((runs / "report" / "cache").glob("*.npz"))
    kept.write_bytes(b"torn")
    with pytest.raises(AssertionError, match="looked again"):
        report(runs)


def test_corrected_files_are_looked_at_again(runs, tmp_path, monkeypatch):
    from toy_run import ToyData

    mask = tmp_path / "mask.png"
    mask.write_bytes(b"first")
    monkeypatch.setattr(ToyData, "files", lambda self, index: (mask, None))
    collection, looked = collect([runs]), []
    look = evidence_module.look

    def counted(*arguments):
        looked.append(arguments)
        return look(*arguments)

    monkeypatch.setattr(evidence_module, "look", counted)
    numbers = []
    for content in (b"first", b"corrected"):
        mask.write_bytes(content) if content != mask.read_bytes() else None
        for _ in range(2):
            gather(collection, tmp_path, latency=False, limit=1, bar=silent)
        numbers.append(len(looked))
    assert numbers == [3, 6]


def test_a_run_of_other_classes_is_no_baseline(runs, report):
    from toy_run import ToyData, toy_config

    from segkd import registry
    from segkd.engine.run import train_run

    class Ground(ToyData):
        """Two classes, of which the second is all that is not sky."""

        name = "ground"
        classes = ToyData.classes[:2]

        def read(self, index):
            whole = ToyData(self.config, self.split).read(index)
            label = whole.label.copy()
            label[(label > 1) & (label < 255)] = 1
            return replace(whole, label=label)

        @property
        def palette(self):
            return ToyData.palette[:2]

    registry.datasets.add(Ground)
    data = {"name": "ground", "batch_size": 4, "workers": 0, "crop": [32, 48]}
    train_run(toy_config(runs / "ground", data=data))
    written = report(runs / "distilled", runs / "ground", out=runs / "first")
    html = written.html.read_text()
    assert rows_of(html)["distilled"][1] == "–"  # no gain over it
    assert rows_of(html, "boundary").keys() == {"big", "distilled"}
    folders = runs / "distilled", runs / "ground"
    written = report(*folders, out=runs / "second", baseline="ground")
    told = "'ground' has other classes than 'distilled': it was not evaluated."
    assert told in written.notes
    header = sections_of(written.html.read_text())["confusion"].split("</thead>")[0]
    assert "ground" not in header[header.index("<thead>") :]


def test_a_latency_that_cannot_be_measured_leaves_the_rest(runs, report, monkeypatch):
    def refuse(*arguments):
        raise ConfigError("this network takes 512x512 only")

    monkeypatch.setattr(evidence_module, "latencies", refuse)
    written = report(runs, latency=True, limit=1)
    assert any("Latencies could not be measured: this net" in note for note in written.notes)
    assert "Latency was not measured" in written.html.read_text()


def test_a_run_without_teacher_and_baseline_has_best_and_worst_images(runs, report):
    html = report(runs / "alone" / "seed1").html.read_text()
    sections = sections_of(html)
    assert list(sections) == SECTIONS
    assert ">Best<" in html and ">Worst<" in html and "disagreement" not in html
    assert list(rows_of(html)) == ["alone"]


def test_runs_of_several_folders_are_told_apart(runs, report, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(runs / "alone", tmp_path / "second" / "alone")
    html = report(runs / "alone", other, baseline="second/alone").html
    assert html == Path("report/report.html")
    assert list(rows_of(html.read_text())) == ["second/alone", "streets/alone"]
    with pytest.raises(ConfigError, match="Did you mean 'second/alone'"):
        report(runs / "alone", other, baseline="second/alon")


def test_an_unfinished_run_is_shown_as_unfinished(runs, report):
    folder = runs / "distilled" / "seed0"
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "best.pt").unlink()
    lines = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text("\n".join(lines[:3]) + "\n")
    written = report(runs)
    html = written.html.read_text()
    assert list(sections_of(html)) == SECTIONS
    assert "Unfinished: &#39;distilled&#39; is at step 4 of 6." in html
    assert rows_of(html)["distilled"][0].strip() == "–"
    assert any("'distilled' has no checkpoints/best.pt yet" in note for note in written.notes)
    assert "no checkpoints/best.pt yet" in html
    assert "kd/kd" in sections_of(html)["training"]


def test_nothing_but_a_config_is_a_report_too(runs, report):
    folder = runs / "alone" / "seed0"
    for path in folder.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = report(folder).html.read_text()
    assert list(sections_of(html)) == SECTIONS
    assert "is at step 0 of 6" in html and "Nothing has been logged yet." in html


def test_data_that_is_not_there_leaves_what_was_stored(runs, report, monkeypatch):
    from toy_run import ToyData

    from segkd.errors import DataError

    def missing(self, index):
        raise DataError("the disk with the images is not here")

    monkeypatch.setattr(ToyData, "read", missing)
    written = report(runs)
    sections = sections_of(written.html.read_text())
    assert "the disk with the images is not here" in sections["result"]
    assert "<svg" in sections["classes"] and "<svg" in sections["confusion"]
    assert "no evaluation to show" in sections["images"]


def test_moved_runs_find_their_teacher(trained, tmp_path, report):
    moved = shutil.copytree(trained, tmp_path / "elsewhere")
    text = (moved / "distilled" / "seed0" / "config.yaml").read_text()
    relative = text.replace(str(trained), "runs/streets")
    (moved / "distilled" / "seed0" / "config.yaml").write_text(relative)
    collection = collect([moved / "distilled" / "seed0"])
    run = collection.groups[0].runs[0]
    assert run.located("runs/streets/big") == str(moved / "big")
    assert run.located("runs/streets/none") == "runs/streets/none"
    assert run.located("pretrained:x") == "pretrained:x"
    assert "big" in rows_of(report(moved / "distilled").html.read_text(), "boundary")


def test_lanes_have_their_score_and_no_sections_of_segmentation(runs, report):
    for folder, f1 in (("alone/seed0", 0.5), ("alone/seed1", 0.6), ("distilled/seed0", 0.7)):
        lanes = {"score": f1, "score_name": "F1", "miou": None, "matrix": None, "iou": None}
        change_summary(runs / folder, **lanes)
        config = runs / folder / "config.yaml"
        config.write_text(config.read_text().replace("name: toy\n", "name: toylanes\n"))
    html = report(runs / "alone", runs / "distilled", out=runs / "report").html.read_text()
    left_out = {"classes", "images", "boundary", "confusion"}
    assert list(sections_of(html)) == [name for name in SECTIONS if name not in left_out]
    assert "These runs detect lanes" in html and "F1 %" in html
    assert rows_of(html)["distilled"][0].strip() == "70.00"
    assert rows_of(html)["alone"][0] == "55.00 ± 7.07"


def fake_look(ious):
    """One class; the IoU of each image in %."""
    counts = np.array([[[value], [100], [value]] for value in ious])
    empty = torch.zeros(1, 1)
    names = tuple(map(str, range(len(ious))))
    return Look(np.arange(len(ious)), names, counts, empty, empty)


def test_images_of_gain_and_loss():
    student, other = fake_look([50, 90, 20, 60, 70]), fake_look([50, 30, 80, 50, 75])
    chosen = choose(student, other, most=2)
    assert chosen.gains == [1, 3] and chosen.losses == [2, 4]
    assert choose(student, student).gains == []
    alone = choose(student, None, most=2)
    assert alone.gains == [1, 4] and alone.losses == [2, 0]
    one = choose(fake_look([5]), None)
    assert one.gains == [0] and one.losses == []
    void = Look(*vars(fake_look([50])).values())
    void.counts[:] = 0
    assert math.isnan(void.image_miou[0]) and choose(void, None).gains == []


def test_disagreement_is_coloured_by_who_is_right():
    image = np.full((1, 5, 3), 100, np.uint8)
    label = np.array([[0, 0, 0, 0, 255]])
    student, other = np.array([[0, 0, 1, 1, 0]]), np.array([[0, 1, 0, 2, 1]])
    drawn = disagreement(image, label, student, other, 255).astype(int)[0]
    assert np.array_equal(drawn[0], drawn[4])  # both right; void
    assert drawn[1].argmax() == 1 and drawn[2].argmax() == 0
    assert np.ptp(drawn[3]) == 0 and drawn[3][0] > drawn[0][0]


def test_latencies_take_turns():
    calls = []

    class Net(torch.nn.Module):
        divisor = 8

        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, images):
            assert not self.training and images.shape == (1, 3, 16, 24)
            calls.append(self.name)

    found = latencies({"a": Net("a"), "b": Net("b")}, (11, 24), Runtime.single())
    assert set(found) == {"a", "b"} and all(value > 0 for value in found.values())
    assert calls[:4] == ["a", "b", "a", "b"]


def test_the_command(runs, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["report", *arguments])
        return stop.value.code or 0, *capfd.readouterr()

    code, out, err = call(
        str(runs), "--out", "here", "--limit", "2", "--no-latency", "eval.flip=true"
    )
    assert code == 0 and "Report: here/report.html and here/report.md" in out
    assert "report: distilled: 2/2" in err
    html = Path("here/report.html").read_text()
    assert "On 2 of 7 images of split &#39;val&#39;." in html and "not measured" in html
    for arguments, message in (
        (["nowhere"], "there is no folder nowhere"),
        (["here"], "here has no run"),
        (["data.root=x"], "give at least one folder"),
        ([str(runs), "--baseline", "alon"], "Did you mean 'alone'"),
        ([str(runs), "eval.flop=true"], "Did you mean 'flip'"),
    ):
        code, _, err = call(*arguments)
        assert code == 2 and message in err and "Traceback" not in err
    shutil.copytree(runs / "alone" / "seed0", "lr=0.1")
    code, out, err = call("lr=0.1", "--no-latency", "--limit", "1")
    assert code == 0 and "Report: lr=0.1/report/report.html" in out, err


def test_damaged_results_are_computed_anew(runs, tmp_path):
    collection = collect([runs])
    found = gather(collection, tmp_path, latency=False, bar=silent)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    again = gather(collection, tmp_path, latency=False, bar=silent)
    assert torch.equal(again.look_of("alone").matrix, found.look_of("alone").matrix)


@pytest.mark.parametrize("content", ["{}", "[1]", '{"steps": ', "\\"])
def test_a_damaged_summary_is_one_message(runs, content):
    (runs / "big" / "summary.json").write_text(content)
    with pytest.raises(ConfigError, match=r"big/summary\.json: .*Delete it: .*writes it again"):
        collect([runs])


@pytest.mark.parametrize("content", ["[]", '{"rows": [{}, 1]}', '{"rows": null}', "{"])
def test_a_damaged_table_of_a_recipe_is_not_needed(runs, content):
    (runs / "report").mkdir()
    (runs / "report" / "table.json").write_text(content)
    assert collect([runs]).role("teacher").name == "big"


@pytest.mark.parametrize("count", [1, 7])
def test_images_that_cannot_be_read_are_skipped_as_in_the_runs(runs, tmp_path, monkeypatch, count):
    whole = ToyData.read

    def read(self, index):
        if self.split == "val" and index < count:
            raise DataError(f"image {index} is broken")
        return whole(self, index)

    monkeypatch.setattr(ToyData, "read", read)
    for file in runs.rglob("config.yaml"):
        file.write_text(file.read_text().replace("on_error: raise", "on_error: skip"))
    found = gather(collect([runs]), tmp_path, latency=False, bar=silent)
    if count == 1:
        assert found.size == (32, 48)
        assert found.look_of("alone").indices.tolist() == [1, 2, 3, 4, 5, 6]
    else:
        assert not found.looks and "none of split 'val' can be read" in found.notes[-1]
