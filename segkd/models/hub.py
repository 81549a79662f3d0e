"""Where a model of Hugging Face's ``transformers`` is: a folder, the hub, or the hub's cache."""

import os
import re
from pathlib import Path

from segkd.errors import CheckpointError

_CONFIG = "config.json"
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PATIENCE = 5.0  # seconds for the hub to respond; the library's own attempts take half a minute
_SHOWN = 5  # files of a folder


def located(model: str) -> str:
    """The folder of a model, or its id if the hub has it and can be reached.

    The hub is asked once; if it cannot be reached, a model that was downloaded before is taken from
    the cache.

    Args:
        model: a folder, or an id of the hub.

    Raises:
        CheckpointError: there is no such folder, or it holds no model; the hub has no such model,
            or cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        _require_model(folder)
        return str(folder)
    if model[:1] in ("/", ".", "~") or "\\" in model or not _ID.fullmatch(model):
        raise CheckpointError(f"hf: there is no folder {model}. {_how_to_have('ID')}")
    why = _not_on_hub(model)
    if not why:
        return model
    import huggingface_hub as hub

    try:
        return str(hub.snapshot_download(model, local_files_only=True))
    except Exception as error:  # of many kinds, by version of the library
        raise CheckpointError(
            f"hf: there is no folder {model}, and the hub {why}. {_how_to_have(model)}"
        ) from error


def require_reachable() -> None:
    """Asks the hub once, before its library tries for half a minute.

    Raises:
        Exception: what the library's HTTP client raises; nothing with ``HF_HUB_OFFLINE``.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if not constants.HF_HUB_OFFLINE:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


def _not_on_hub(model: str) -> str:
    """Why a model cannot be had from the hub; empty if it can."""
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return "is switched off by HF_HUB_OFFLINE, and the model is not in its cache"
    try:
        hub.HfApi().model_info(model, timeout=_PATIENCE)
    except (RepositoryNotFoundError, HFValidationError):
        return "has no model of this name (a private one needs `hf auth login`)"
    except Exception as error:  # of the network; of many kinds, by version of the library
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"cannot be reached ({reason}), and the model is not in its cache"
    return ""


def _require_model(folder: Path) -> None:
    """Checks that a path is a folder of ``save_pretrained``."""
    if not folder.is_dir():
        raise CheckpointError(f"hf: {folder} is a file. Give the folder that holds {_CONFIG}")
    if (folder / _CONFIG).is_file():
        return
    below = sorted(path.parent for path in folder.glob(f"*/{_CONFIG}"))
    below += sorted(path.parent for path in folder.glob(f"snapshots/*/{_CONFIG}"))  # of the cache
    if below:
        raise CheckpointError(
            f"hf: the folder {folder} has no {_CONFIG}, but one below it has: write hf: {below[0]}"
        )
    names = sorted(os.listdir(folder))
    more = ", …" if len(names) > _SHOWN else ""
    held = f"It holds {', '.join(names[:_SHOWN])}{more}" if names else "It is empty"
    raise CheckpointError(
        f"hf: the folder {folder} has no {_CONFIG}, so it is no model of transformers. {held}. "
        f"{_how_to_have('ID')}"
    )


def _how_to_have(model: str) -> str:
    return (
        "Give a folder that model.save_pretrained and processor.save_pretrained have written, or "
        f"download one where there is a network: hf download {model} --local-dir FOLDER; then "
        "hf: FOLDER"
    )
