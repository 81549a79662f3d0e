"""Student files: ``best.pt`` of a run, and small safetensors files."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkd import checkpoint
from segkd.archive import refuse_other_kinds
from segkd.errors import CheckpointError, did_you_mean, shortened
from segkd.files import write_atomic
from segkd.models.payload import check_student

FORMAT = "segkd-student-1"
PUBLISHED = "model.safetensors"  # in a folder that save_pretrained wrote
_PRETRAINED = Path(__file__).parent / "pretrained"
_KEY = "segkd"  # of the metadata of a safetensors file
_FACTS = ("model", "classes")
_LONGEST_NAME = 100  # that is compared with those of networks that ship


def load_student_file(source: str | Path) -> dict[str, Any]:
    """Reads a student without executing code in the file.

    Args:
        source: a ``.pt`` or ``.safetensors`` file, a run folder, a folder written by
            ``save_pretrained``, or ``pretrained:NAME``.

    Returns:
        The payload: ``model`` (its config), ``weights`` (fp32 on the CPU), ``classes``,
        ``palette``, ``ignore_index`` and facts about its training.

    Raises:
        CheckpointError: missing, damaged, not a student, or containing pickled code.
    """
    path = resolve(source)
    payload = (
        _read_safetensors(path) if path.suffix.lower() == ".safetensors" else checkpoint.load(path)
    )
    if payload.get("format") != FORMAT:
        best = path.with_name("best.pt")
        got = shortened(payload.get("format"))
        raise CheckpointError(
            f"{path} is not a student but {got}, e.g. the state of a training. "
            f"Give {best if best.exists() else 'the best.pt of a run'}"
        )
    if table := table_of(str(source)):
        raise CheckpointError(
            f"{path} was written by segkd and holds one network, without tables. Remove '#{table}'"
        )
    missing = [fact for fact in (*_FACTS, "weights") if fact not in payload]
    if missing:
        raise CheckpointError(f"{path} has no {', '.join(missing)}: it was not written by segkd")
    check_student(payload, path)
    return payload


def resolve(source: str | Path) -> Path:
    """The file of a student. Raises CheckpointError if it does not exist.

    Args:
        source: see ``load_student_file``.
    """
    text = str(source)
    if text.startswith("pretrained:"):
        return _pretrained(text.removeprefix("pretrained:"))
    if text.startswith("run:"):
        raise CheckpointError(
            f"'{text}' names another run of a recipe, which only works inside of a recipe. Give "
            "the path of that run"
        )
    path = Path(text).expanduser()
    table = table_of(text)
    if table:
        path = Path(text.removesuffix(f"#{table}")).expanduser()
    if path.is_dir():
        published = path / PUBLISHED
        path = published if published.is_file() else path / "checkpoints" / "best.pt"
    if not path.is_file():
        _refuse_folder_of_runs(Path(text).expanduser())
        raise CheckpointError(
            f"there is no checkpoint {path}. Give a file, a run folder that holds "
            f"checkpoints/best.pt, a folder with {PUBLISHED}, or pretrained:NAME{_near(text)}"
        )
    return path


def _refuse_folder_of_runs(folder: Path) -> None:
    """Raises CheckpointError for a folder of runs, as a recipe's: each of them has a student."""
    found = [*folder.glob("*/checkpoints/best.pt"), *folder.glob("*/seed*/checkpoints/best.pt")]
    runs = sorted(str(file.parent.parent) for file in found)
    if runs:
        more = f" (or another of its {len(runs)} runs)" if len(runs) > 1 else ""
        raise CheckpointError(f"{folder} holds runs. Give one: {runs[0]}{more}")


def table_of(source: str) -> str:
    """The name of a table in ``FILE.pth#state_dict_ema``; empty without one."""
    file, mark, table = source.rpartition("#")
    return table if mark and file and not Path(source).expanduser().exists() else ""


def save_safetensors(payload: Mapping[str, Any], path: Path, half: bool = True) -> None:
    """Writes a student atomically as a safetensors file.

    Args:
        payload: as of ``load_student_file``.
        path: the file to write.
        half: store tensors of two and more dimensions as fp16 if no value overflows; biases and
            normalisation statistics are few and keep their dtype.
    """
    from safetensors.torch import save

    weights = {name: _compact(value, half) for name, value in payload["weights"].items()}
    facts = {key: value for key, value in payload.items() if key != "weights"}
    data = save(weights, metadata={_KEY: json.dumps(facts)})
    write_atomic(Path(path), lambda file: file.write(data))


def _compact(value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu()
    if half and value.is_floating_point() and value.ndim >= 2:
        smaller = value.to(torch.float16)
        value = smaller if smaller.isfinite().all() else value
    return value.clone(memory_format=torch.contiguous_format)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    refuse_other_kinds(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = (file.metadata() or {}).get(_KEY)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        payload = json.loads(facts) if facts else {}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    if not isinstance(payload, dict):
        raise CheckpointError(f"{path} is damaged: its '{_KEY}' metadata is not a table")
    if not payload:
        raise checkpoint.ForeignFile(
            f"{path} has no '{_KEY}' metadata: it is not a segkd student. Weights of an encoder "
            "alone go into `weights:`; those of a whole network need `arch`, `encoder` and "
            "`options` besides `checkpoint`"
        )
    return payload | {
        "weights": {
            name: value.float() if value.dtype == torch.float16 else value
            for name, value in weights.items()
        }
    }


def _near(text: str) -> str:
    """A hint if a text is nearly the name of a network that ships; else empty."""
    close = difflib.get_close_matches(text[:_LONGEST_NAME], _names(), n=1)
    return f". Did you mean 'pretrained:{close[0]}'?" if close else ""


def _names() -> list[str]:
    """Of the networks that ship."""
    return [file.stem for file in _PRETRAINED.glob("*.safetensors")]


def _pretrained(name: str) -> Path:
    path = _PRETRAINED / f"{name}.safetensors"
    if not path.is_file():
        hint = did_you_mean(name, _names()) or " This installation has none"
        raise CheckpointError(f"there is no pretrained network '{name}'.{hint}")
    return path
