"""The arguments of timm encoders that a configuration or a student file may set.

``timm.create_model`` also takes arguments that read files or fetch them (``checkpoint_path``,
``pretrained_cfg``, ``pretrained_cfg_overlay``, ``cache_dir``, …), and versions before 1.0.21
execute what is pickled there. Options may come from files of other people, so only arguments
that define the network are allowed, and only plain values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from segkd.errors import ConfigError, did_you_mean

ALLOWED = frozenset(
    {
        # sizes of transformers
        *("img_size", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "patch_size"),
        *("window_size", "window_ratio", "always_partition", "class_token", "reg_tokens"),
        *("no_embed_class", "pos_embed", "use_rel_pos", "rel_pos", "global_pool"),
        # regularisation
        *("drop_rate", "drop_path_rate", "drop_block_rate", "proj_drop_rate", "attn_drop_rate"),
        *(
            "pos_drop_rate",
            "patch_drop_rate",
            "layer_scale_init_value",
            "init_values",
            "ls_init_value",
        ),
        # layers, by timm's names for them
        *("act_layer", "norm_layer", "aa_layer", "norm_eps", "bn_eps", "bn_momentum", "pad_type"),
        *("qkv_bias", "qk_norm", "mlp_ratio", "conv_mlp", "use_grn", "zero_init_last"),
        # widths and depths
        *("stem_width", "stem_type", "stem_size", "stem_kernel_size", "cardinality", "base_width"),
        *("channels", "layers", "depths", "dims", "embed_dim", "embed_dims", "num_heads"),
        *("avg_down", "replace_stem_pool", "down_kernel_size", "block_reduce_first", "fix_stem"),
    }
)


def checked(options: object) -> dict[str, Any]:
    """``options.encoder_options`` as arguments of a timm encoder.

    Raises:
        ConfigError: not a mapping, a key that is not allowed, or a value that is not a number, a
            string, null (the default), or a list of them.
    """
    where = "options.encoder_options"
    if not isinstance(options, Mapping):
        raise ConfigError(f"{where}: got {options!r}, expected a mapping")
    for key, value in options.items():
        if key not in ALLOWED:
            hint = did_you_mean(str(key), ALLOWED)
            raise ConfigError(
                f"{where}.{key}: not allowed. Only options that define the network may be set, "
                f"none that read or download files: use `weights` or `checkpoint` for weights."
                f"{hint if hint.startswith(' Did') else f' Known: {_listed()}.'}"
            )
        if not _plain(value):
            raise ConfigError(
                f"{where}.{key}: got {value!r}, expected a number, a word, or a list of them"
            )
    if options.get("img_size") is not None:
        image_size(options["img_size"])
    return {key: value for key, value in options.items() if value is not None}


def image_size(value: object) -> tuple[int, int]:
    """The (H, W) of ``img_size``: a number, or two. Raises ConfigError for others."""
    both: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value, value]
    if len(both) != 2 or any(type(side) is not int or side < 1 for side in both):
        raise ConfigError(
            f"options.encoder_options.img_size: got {value!r}, expected a number of pixels, or two "
            "(height, width)"
        )
    return both[0], both[1]


def _plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _listed() -> str:
    return ", ".join(sorted(ALLOWED))
