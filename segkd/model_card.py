"""Writes the model card of a trained student."""

from dataclasses import dataclass
from typing import Any

from segkd import registry
from segkd.evaluation.table import NONE, TextTable, percent
from segkd.markdown import code, fenced, inline
from segkd.methods.base import MethodConfig
from segkd.models.quantization_facts import QuantizationFacts
from segkd.yaml_tree import dump

_HEAD = """\
---
library_name: segkd
pipeline_tag: image-segmentation
tags: [segkd, semantic-segmentation, knowledge-distillation]
# TODO of the author: license: ...
---
"""
_LICENCE = """\
**TODO: the author of these weights chooses a licence, here and as `license:` in the head of this
file.** The licences of the training data and of the teachers may limit the choice.
"""


@dataclass(frozen=True)
class CardFacts:
    """The content of a model card.

    Attributes:
        payload: of the student's file.
        config: configuration of its run as plain data; empty if unknown.
        summary: the run's summary.json; empty if the run is not finished.
        title: name of the network.
        divisor: height and width of images must be multiples of it.
    """

    payload: dict[str, Any]
    config: dict[str, Any]
    summary: dict[str, Any]
    title: str
    divisor: int


_LIBRARIES = {
    "hf": "Hugging Face's transformers",
    "timm": "timm",
    "torchvision": "torchvision",
}
_COMBINED = {
    "mean": "the mean of",
    "logits": "the mean of the logits of",
    "by_loss": "the mean, weighted at each pixel by their loss, of",
    "random": "in each step one of",
}


def model_card(info: CardFacts) -> str:
    """The model card as Markdown."""
    dataset = info.payload.get("dataset", "its data")
    sections = {
        f"{info.title} on {dataset}": _about(info),
        "Use": _use(info),
        "Results": _results(info),
        "Teachers and methods": _lessons(info),
        "Data": _data(info),
        "Cost of training": _cost(info),
        "Configuration": _configuration(info),
        "Licence": _LICENCE,
    }
    titles = iter(sections.items())
    title, text = next(titles)
    parts = [f"# {inline(title)}\n\n{text}"]
    parts += [f"## {title}\n\n{text}" for title, text in titles if text]
    return _HEAD + "\n" + "\n".join(parts)


def _about(info: CardFacts) -> str:
    names = _teacher_names(info)
    how = f"distilled from {' and '.join(names)}" if names else "trained without a teacher"
    return (
        f"A network for {_task(info)} with {len(info.payload['classes'])} "
        f"classes, {how} with segkd. The file contains the student only.\n"
    )


def _task(info: CardFacts) -> str:
    return "lane detection" if "lanes" in info.payload else "semantic segmentation"


def _use(info: CardFacts) -> str:
    module = ", module=MyNetwork()" if info.payload["model"].get("arch") == "module" else ""
    sides = f" Height and width are multiples of {info.divisor}." if info.divisor > 1 else ""
    return (
        "```python\nimport segkd\n\n"
        f'student = segkd.load_student("FOLDER"{module})\n'
        'labels = student.predict("image.png")  # (H, W) class ids; or an array (H, W, 3)\n'
        "logits = student.network(images).logits  # (B, K, h, w) of (B, 3, H, W) uint8 RGB\n"
        f"```\n\nThe network normalises images itself.{sides}\n"
    )


def _results(info: CardFacts) -> str:
    payload, summary = info.payload, info.summary
    split = (info.config.get("data") or {}).get("val_split", "val")
    header = ["network", f"{payload.get('score_name', 'mIoU')} %", "params M", "GFLOPs"]
    student = summary.get("student", {})
    rows = [["this student", percent(_score(payload)), *_size(student)]]
    for name, teacher in summary.get("teachers", {}).items():
        rows.append([f"teacher {name}", percent(_score(teacher)), *_size(teacher)])
    text = TextTable(header, rows).markdown()
    limit = (info.config.get("eval") or {}).get("limit")
    images = f"the first {limit} images of split" if limit else "split"
    text += (
        f"\nOn {images} {code(split)} of {inline(payload.get('dataset', 'the data'))}, weights of "
        f"step {inline(payload.get('step', NONE))}. GFLOPs: one image of the training size, a "
        "multiply-add counted as two.\n"
    )
    if summary.get("steps") == payload.get("step") and summary.get("iou"):
        classes = [[name, percent(value)] for name, value in summary["iou"].items()]
        text += "\n" + TextTable(["class", "IoU %"], classes).markdown()
    return text


def _score(info: dict[str, Any]) -> float | None:
    """The score of a summary, which in version 0.1 has mIoU only."""
    return info.get("score", info.get("miou"))


_UNUSED = (None, False, "none")


def _defaults(method: str) -> dict[str, Any]:
    """Keys of a method with their defaults; none of one that is not installed here."""
    if method not in registry.methods.names():
        return {}
    return registry.methods.get(method).Config().model_dump(mode="json")


def _built(teacher: dict[str, Any]) -> list[str]:
    """What a teacher's entry says of the network, or of what is asked in its place."""
    box = teacher.get("black_box") or {}
    found = [
        f"a black box, {kind} {code(box[key])}"
        for key, kind in (
            ("onnx", "the ONNX file"),
            ("function", "the function"),
            ("predictions", "the stored predictions"),
        )
        if box.get(key)
    ]
    arch = teacher.get("arch")
    if not arch:
        return found
    own = arch in registry.models and not registry.models.get(arch).chooses_encoder
    # Stored configs of networks without a choice have the key's default.
    return [*found, inline(arch if own else f"{arch} with {teacher.get('encoder')}")]


def _lessons(info: CardFacts) -> str:
    lines: list[str] = []
    usual = MethodConfig().model_dump(mode="json")
    for name, teacher in (info.config.get("teachers") or {}).items():
        if teacher.get("ensemble"):
            how = _COMBINED.get(teacher.get("combine", ""), _COMBINED["mean"])
            what = f"{how} {inline(', '.join(teacher['ensemble']))}"
        else:
            built, file = _built(teacher), teacher.get("checkpoint")
            for key, library in _LIBRARIES.items():
                model = teacher.get(key)
                given = teacher.get("weights")
                built += [f"the model {code(model)} of {library}"] if model else []
                built += [f"weights {code(given)}"] if model and given else []
            licence = info.summary.get("teachers", {}).get(name, {}).get("licence")
            told = [] if licence is None else [f"licence {inline(licence or 'unknown')}"]
            what = ", ".join([*built, *([f"weights {code(file)}"] if file else []), *told])
        lines.append(f"- Teacher {code(name)}: {what}.")
    for name, entry in (info.config.get("methods") or {}).items():
        method = entry.get("method") or name
        keys = [k for k in entry if k == "weight" or entry[k] not in (usual.get(k), "")]
        own = _defaults(method)  # options that are not used say nothing
        keys = [k for k in keys if entry[k] not in _UNUSED or entry[k] != own.get(k)]
        values = ", ".join(f"{key} {entry[key]}" for key in keys if key != "method")
        lines.append(f"- Method {code(method)}: {inline(values)}.")
    lines += _quantization(info)
    task = info.config.get("task") or {}
    if task:
        losses = inline(", ".join(task.get("losses", {})))
        lines.append(f"- Task loss: {losses}, weight {task['weight']}.")
    return "".join(f"{line}\n" for line in lines)


def _quantization(info: CardFacts) -> list[str]:
    """How the weights were quantised in training, and the size that they are worth."""
    if not info.payload.get("quantization"):
        return []
    facts = QuantizationFacts.model_validate(info.payload["quantization"])
    sizes = info.summary.get("quantization", {})
    size = ""
    if sizes:
        small, large = (sizes[key] / 1e6 for key in ("bytes", "float_bytes"))
        size = f": {small:.2f} MB with these bits and their scales, {large:.2f} MB as floats"
    return [
        f"- Quantised in training: {facts}, {len(facts.layers)} layers{size}. The file holds the "
        "quantised values as floats; `segkd export --int8` writes them as integers.\n"
    ]


def _data(info: CardFacts) -> str:
    data = info.config.get("data") or {}
    lines = [f"- Classes, by id: {inline(', '.join(map(str, info.payload['classes'])))}."]
    lines += [f"- Void pixels: {info.payload.get('ignore_index', 255)}."]
    if data:
        crop = data.get("crop") or data.get("resize")
        size = f", crops of {crop[0]}x{crop[1]} (height x width)" if crop else ""
        batch = data.get("batch_size", NONE)
        share = (data.get("unlabeled") or {}).get("share", 0)
        split = f"split {code(data.get('train_split', 'train'))}"
        images = "images without labels alone" if share == 1 else split
        lines.insert(
            0,
            f"- Dataset: {inline(data['name'])}, {images}{size}, {batch} images per step.",
        )
        if data.get("labels", "required") != "required":
            lines.insert(1, f"- Labels of this split: {inline(data['labels'])}.")
        if 0 < share < 1:
            lines.insert(
                1, f"- Images without labels: {100 * share:.0f} % of each step, besides the split."
            )
    return "".join(f"{line}\n" for line in lines)


def _cost(info: CardFacts) -> str:
    summary = info.summary
    if not summary:
        return "Unknown: the run was not finished when this card was written.\n"
    parts = sorted(summary["seconds"].items(), key=lambda item: -item[1])
    split = ", ".join(f"{name} {1e3 * seconds:.0f}" for name, seconds in parts)
    return (
        f"{summary['steps']} steps on {summary['processes']} process(es), "
        f"{summary['seconds_per_step']:.3f} s per step (ms: {split}), "
        f"peak memory {summary['peak_memory'] / 2**30:.2f} GiB.\n"
    )


def _configuration(info: CardFacts) -> str:
    if not info.config:
        return ""
    text = dump(info.config)
    return f"<details><summary>All keys</summary>\n\n{fenced(text, 'yaml')}\n\n</details>\n"


def _teacher_names(info: CardFacts) -> list[str]:
    """Names of the teachers, if there are methods."""
    names = list(info.config.get("teachers") or info.summary.get("teachers", {}))
    methods = (info.config.get("methods") or {}).values()
    return [code(name) for name in names] if methods else []


def _size(network: dict[str, Any]) -> list[str]:
    parameters, flops = network.get("parameters"), network.get("flops")
    return [
        NONE if parameters is None else f"{parameters / 1e6:.2f}",
        NONE if flops is None else f"{flops / 1e9:.1f}",
    ]
