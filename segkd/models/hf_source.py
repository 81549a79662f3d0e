"""Models of ``transformers`` on the hub or in a folder: all facts about them but their weights."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segkd.errors import CheckpointError, ConfigError, shortened
from segkd.extras import require
from segkd.models.hub import located
from segkd.models.normalization import Statistics

PROCESSOR = "preprocessor_config.json"
_OTHER_OUTPUTS = {"detr", "videomt"}  # of panoptic and of video models
_TOWERS = ("siglip", "clip")  # an image model beside a text model
# Classifiers that have neither maps nor tokens of patches, or take something else than images.
_NO_MAPS = {"imagegpt", "levit", "perceiver", "shieldgemma2", "siglip2", "timm_wrapper"}


@dataclass(frozen=True)
class Source:
    """Facts about a model that is stored in a folder or on the hub.

    Attributes:
        model: the folder, or the id.
        config: the library's configuration object; of a model of images and texts, that of images.
        processor: contents of the processor's file.
        classes: names by class id; none of a backbone.
        licence: as its model card says; empty if unknown.
        segments: whether it returns classes of pixels; else it is a backbone.
        place: where its files are: a folder, or the id.
        trusted: whether it is Python code of the model's authors, which the user allowed to run.
    """

    model: str
    config: Any
    processor: Mapping[str, Any]
    classes: tuple[str, ...]
    licence: str = ""
    place: str = ""
    segments: bool = True
    trusted: bool = False


def read_source(model: str, trust: bool = False) -> Source:
    """Reads everything about a model but its weights.

    Args:
        model: a folder that ``save_pretrained`` wrote, or an id of the hub.
        trust: whether Python code in the folder may be executed.

    Raises:
        ConfigError: it contains Python code, and ``trust`` is False; or it is a model of timm.
        CheckpointError: there is no such model, or the hub cannot be reached; the model is
            neither one for semantic segmentation nor a backbone, or has no processor file.
        SegKDError: transformers is not installed.
    """
    require("transformers", extra="hf")
    from transformers import AutoConfig

    place = located(model)
    with told(place):  # without an answer the library asks on the terminal
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust)
    # A class of the library itself goes first, as in its own `from_pretrained`.
    own_code = type(config).__module__.startswith("transformers_modules.")
    if not own_code and config.model_type in _TOWERS:
        config = config.vision_config
    segments = not own_code and _segments(config)
    if not (segments or own_code):
        _check_backbone(config, model)
    labels = (config.id2label or {}) if segments else {}
    classes = tuple(str(labels[number]) for number in sorted(labels))
    found, licence = _processor(place), _licence(place)
    return Source(model, config, found, classes, licence, place, segments, own_code)


def kinds() -> tuple[set[str], set[str]]:
    """Types of the library's per-pixel models, and of its mask models."""
    from transformers.models.auto import modeling_auto as auto

    per_pixel = set(auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES)
    return per_pixel, set(auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES) - _OTHER_OUTPUTS


def backbone_classes() -> dict[str, str]:
    """Names of the library's classes that return feature maps, by type."""
    from transformers.models.auto import modeling_auto as auto

    return dict(auto.MODEL_FOR_BACKBONE_MAPPING_NAMES)


def statistics(processor: Mapping[str, Any], model: str = "the model") -> Statistics:
    """(mean, std) on the scale 0..1 that a processor's file amounts to.

    Raises:
        CheckpointError: the file has no mean or std, or not three numbers each.
    """
    scale = 255.0 * (processor.get("rescale_factor", 1 / 255) if _on("rescale", processor) else 1)
    mean, std = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    if _on("normalize", processor):
        mean, std = (_three(processor.get(key), key, model) for key in ("image_mean", "image_std"))
    return [round(v / scale, 9) for v in mean], [round(v / scale, 9) for v in std]


@contextmanager
def told(model: str) -> Iterator[None]:
    """Turns the library's errors about a model into one message.

    Raises:
        ConfigError: the model contains Python code that the user has not allowed to run.
        CheckpointError: any other error.
    """
    try:
        yield
    except Exception as error:  # foreign code and files may raise anything
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"hf: {model} contains Python code of its authors, which would be executed. Look "
                "at the code, then allow it with `trust_remote_code: true` of this teacher. RADIO "
                "is also in timm, e.g. {timm: vit_base_patch16_radio_v3.c_radio}"
            ) from error
        reason = shortened(str(error).strip().partition("\n")[0] or type(error).__name__)
        if Path(model).is_dir():
            raise CheckpointError(f"hf: the model in {model} cannot be read: {reason}") from error
        raise CheckpointError(
            f"hf: {model} cannot be had from the hub: {reason}. Or download it, where there is a "
            f"network: hf download {model} --local-dir FOLDER; then hf: FOLDER"
        ) from error


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps the library's own bars and lists of tensors out of logs of a few lines."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _on(step: str, processor: Mapping[str, Any]) -> bool:
    """Whether a processor does a step; files of early versions say nothing about rescaling."""
    return bool(processor.get(f"do_{step}", step == "rescale"))


def _three(values: Any, key: str, model: str) -> list[float]:
    found = list(values) if isinstance(values, list | tuple) else 3 * [values]
    if len(found) != 3 or not all(isinstance(value, int | float) for value in found):
        raise CheckpointError(
            f"hf: {key} in the {PROCESSOR} of {model} is {values!r}, expected three "
            "numbers. Save its image processor into the folder with save_pretrained"
        )
    return [float(value) for value in found]


def _segments(config: Any) -> bool:
    """Whether the stored model has classes of pixels: its encoder alone may be stored as well."""
    stored = config.architectures or ["Segmentation"]
    of_kind = config.model_type in set.union(*kinds())
    return of_kind and any("Segmentation" in name for name in stored)


def _check_backbone(config: Any, model: str) -> None:
    from transformers.models.auto import modeling_auto as auto

    if config.model_type == "timm_wrapper":
        raise ConfigError(f"hf: {model} is a model of timm. Write `timm: hf-hub:{model}` instead")
    known = {f"{name}_vision_model" for name in _TOWERS}
    known |= {*auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *backbone_classes()} - _NO_MAPS
    if config.model_type not in known:
        listed = ", ".join(sorted(set.union(*kinds())))
        raise CheckpointError(
            f"hf: {model} is a model of type '{config.model_type}', which neither segments images "
            f"nor is a backbone for them. Types that segment: {listed}; backbones, whose features "
            "can teach: dinov2, dinov3_vit, siglip, vit, swin, convnext, resnet and the like"
        )


def _processor(model: str) -> Mapping[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        with told(model):
            found, _ = ImageProcessingMixin.get_image_processor_dict(model)
    except CheckpointError as error:
        if not Path(model).is_dir():
            raise CheckpointError(
                f"{error}. Needed is {PROCESSOR}, which says how images are normalised"
            ) from error
        damaged = Path(model, PROCESSOR).is_file()
        what = (
            f"{PROCESSOR} of {model} cannot be read" if damaged else f"{model} has no {PROCESSOR}"
        )
        raise CheckpointError(
            f"hf: {what}, so how images are normalised is not known. Save the image processor of "
            "the model that it was trained from into this folder, in Python: transformers."
            f"AutoImageProcessor.from_pretrained(ID_OR_FOLDER).save_pretrained({model!r})"
        ) from error
    return found


def _licence(model: str) -> str:
    """The licence in the model card, else the name of its file; empty if there is none."""
    from transformers.utils import cached_file

    with contextlib.suppress(Exception):  # a card may be missing, or hold anything
        import huggingface_hub as hub

        data = hub.ModelCard.load(str(cached_file(model, "README.md"))).data
        stated = data.get("license_name") or data.get("license")
        if stated:
            return str(stated)
    texts = sorted(Path(model).glob("LICENSE*")) if Path(model).is_dir() else []
    return f"see its {texts[0].name}" if texts else ""
