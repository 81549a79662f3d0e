"""Writes a trained student as a folder for publication: weights, configuration, model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segkd
from segkd.errors import CheckpointError
from segkd.files import write_text
from segkd.model_card import CardFacts, model_card
from segkd.models.build import network_from_file
from segkd.models.module import OWN
from segkd.models.payload import stored_config
from segkd.models.weights import PUBLISHED, load_student_file, resolve, save_safetensors
from segkd.texts import json_text
from segkd.yaml_tree import dump

_CONFIG, _CARD = "config.json", "README.md"


def save_pretrained(run: str | Path | Mapping[str, Any], folder: str | Path) -> Path:
    """Writes ``model.safetensors``, ``config.json`` and a model card ``README.md``.

    The weights are those of the run's best.pt; ``load_student(folder)`` reads them. Paths of this
    machine are removed. The author has to choose a licence: the card has a TODO.

    Args:
        run: a run folder, its best.pt, or the summary returned by ``segkd.train``.
        folder: is created if necessary.

    Returns:
        The folder.

    Raises:
        CheckpointError: the run has no best.pt, or the folder has such files already.
    """
    source = Path(str(run["name"] if isinstance(run, Mapping) else run)).expanduser()
    path, target = resolve(source), Path(folder).expanduser()
    payload = load_student_file(path)
    there = [name for name in (PUBLISHED, _CONFIG, _CARD) if (target / name).exists()]
    if there:
        raise CheckpointError(
            f"{target} already has {', '.join(there)}, and an edited model card would be lost. "
            "Remove them, or give another folder"
        )
    payload = payload | {"config": _public(payload.get("config") or "")}
    facts = _facts(payload, path)
    write_text(target / _CARD, model_card(facts))
    write_text(target / _CONFIG, _config(payload))
    # The weights are written last: a folder that can be loaded is complete.
    save_safetensors(payload, target / PUBLISHED, half=False)
    return target


def _facts(payload: dict[str, Any], path: Path) -> CardFacts:
    summary = path.parent.parent / "summary.json"
    network = None
    if payload["model"].get("arch") != OWN:
        network = network_from_file(path)[0]
    return CardFacts(
        payload=payload,
        config=stored_config(payload),
        summary=_of_network(json.loads(summary.read_text()), path) if summary.is_file() else {},
        title="a module of the author" if network is None else network.title,
        divisor=1 if network is None else network.divisor,
    )


def _of_network(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """The summary of a run, with the numbers of the peer where ``path`` is of one."""
    _, of_peer, peer = path.stem.partition("best_")
    if not of_peer:
        return summary
    return {key: value for key, value in summary.items() if key != "iou"} | {
        "student": summary.get("peers", {}).get(peer, {})
    }


def _config(payload: Mapping[str, Any]) -> str:
    """Facts about the weights, for people and other programs."""
    kept = ["format", "model", "classes", "palette", "ignore_index", "dataset", "step"]
    kept += ["miou", "score", "score_name", "lanes", "quantization"]
    plain = {key: payload[key] for key in kept if key in payload}
    return json_text({"segkd_version": segkd.__version__, **plain}, indent=2) + "\n"


def _public(text: str) -> str:
    """A stored configuration without the folders of this machine."""
    config = stored_config({"config": text})
    if not config:
        return ""
    config.pop("out", None)
    if isinstance(config.get("data"), dict):
        config["data"].pop("root", None)
    return dump(_named(config))


def _named(value: Any) -> Any:
    """The value with absolute paths reduced to their last part."""
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    absolute = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return Path(value).name if absolute else value
