"""`segkd explain METHOD`: loss, needs, keys and cost of a method, from its class."""

from typing import TYPE_CHECKING, Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from segkd import registry
from segkd.catalog import EXPENSIVE, method_costs
from segkd.method_config import MethodConfig
from segkd.type_words import type_words

if TYPE_CHECKING:
    from segkd.methods.base import Method, Needs

_NEEDS = {
    "labels": "labels",
    "teacher_gradient": "gradients through the teacher",
    "rewrites_batch": "to rewrite the batch (one such method per run)",
}
_STAGES = (
    "default stages count from the deepest that a network has (stage5 is the deepest, stage4 the "
    "one before it); student and teacher are paired from there"
)


def facts(name: str) -> dict[str, Any]:
    """Everything about a method as plain data. Raises ConfigError for an unknown name."""
    method = registry.methods.get(name)
    needs = method().needs
    return {
        "name": method.name,
        "kind": method.kind,
        "paper": method.paper,
        "year": method.year,
        "equation": method.equation,
        "student_taps": list(needs.student),
        "teacher_taps": list(needs.teacher),
        "counted_stages": _counted(method, needs),
        "needs": [text for key, text in _NEEDS.items() if getattr(needs, key)],
        "min_classes": needs.min_classes,
        "accepts_ensembles": needs.accepts_log_prob and set(needs.teacher) <= {"logits"},
        "not_cached": needs.why_not_cached(),
        "own_keys": _keys(method.Config, MethodConfig),
        "common_keys": _keys(MethodConfig, None),
        "term_weights": dict(method.default_weights),
        "cost": method.cost,
        "measured_cost": method_costs().get(name),
        "published": method.published,
        "conversions": {peer: str(factor) for peer, factor in method.conversions.items()},
    }


def explain(name: str) -> str:
    """The facts about a method as text. Raises ConfigError for an unknown name."""
    known = facts(name)
    own = {key["name"] for key in known["own_keys"]}
    common = [key for key in known["common_keys"] if key["name"] not in own]
    needs = [
        f"student {', '.join(known['student_taps']) or 'nothing'}",
        f"teacher {', '.join(known['teacher_taps'])}" if known["teacher_taps"] else "no teacher",
        *known["needs"],
        f"{known['min_classes']} classes or more",
    ]
    ensembles = (
        "also ensembles and black boxes" if known["accepts_ensembles"] else "single networks"
    )
    sections = [
        ("", [f"{known['name']} ({known['kind']})", known["paper"]]),
        ("Loss", [known["equation"]]),
        (
            "Needs",
            [
                ", ".join(needs),
                *([f"teachers: {ensembles}", _cached(known)] if known["teacher_taps"] else []),
                *([_STAGES] if known["counted_stages"] else []),
            ],
        ),
        ("Keys", _aligned(known["own_keys"])),
        ("Keys of every method", _aligned(common)),
        ("Weights of its terms", [f"{k}: {v:g}" for k, v in known["term_weights"].items()]),
        ("Cost", [known["cost"], _measured(known["measured_cost"])]),
        ("Published gain in segmentation", [known["published"]]),
        ("Published weights in our unit", _pairs(known["conversions"])),
        ("In a config", [f"methods: {{{known['name']}: {{}}}}"]),
    ]
    return "\n\n".join(
        _section(title, [line for line in lines if line]) for title, lines in sections if any(lines)
    )


def _cached(known: dict[str, Any]) -> str:
    reason = known["not_cached"]
    return f"teacher's cache: {'no: ' + reason if reason else 'yes'}"


def _counted(method: "type[Method]", needs: "Needs") -> bool:
    """Whether default taps are stages, which depend on the networks."""
    from segkd.methods.base import Method

    binds = method.bind_taps is not Method.bind_taps
    return binds and any(tap.startswith("stage") for tap in (*needs.student, *needs.teacher))


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)] if title else lines)


def _measured(cost: dict[str, float] | None) -> str:
    if cost is None:
        return "not measured"
    mark = ": EXPENSIVE" if cost["ratio"] > EXPENSIVE else ""
    return (
        f"{cost['ratio']:.3f} of a small student's forward and backward, {cost['peak_mib']:.0f} "
        f"MiB{mark} (512 channels, 64x128 positions; benchmarks/methods.py)"
    )


def _keys(config: type[MethodConfig], base: type[MethodConfig] | None) -> list[dict[str, str]]:
    """The keys of a config that its base does not have, or has with another default."""
    inherited = base.model_fields if base else {}
    return [
        {
            "name": name,
            "type": type_words(field.annotation, field.metadata),
            "default": _default(field),
            "about": field.description or "",
        }
        for name, field in config.model_fields.items()
        if name not in inherited or field.default != inherited[name].default
    ]


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return str(field.get_default(call_default_factory=True))
    if field.default is PydanticUndefined:
        return "required"
    return {"": '""', "None": "null", "True": "true", "False": "false"}.get(
        str(field.default), str(field.default)
    )


def _aligned(keys: list[dict[str, str]]) -> list[str]:
    width = max((len(f"{key['name']}: {key['default']}") for key in keys), default=0)
    return [
        f"{key['name']}: {key['default']}".ljust(width) + f"   {key['about']}".rstrip()
        for key in keys
    ]


def _pairs(entries: dict[str, str]) -> list[str]:
    width = max(map(len, entries), default=0)
    return [f"{name.ljust(width)}   {text}" for name, text in entries.items()]
