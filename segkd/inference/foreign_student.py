"""A student at work whose weights another program wrote: ``student.…`` names its network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segkd import registry
from segkd.config.load import foreign_evaluation, require_read
from segkd.config.read_keys import limit_given_threads
from segkd.data.base import DataConfig
from segkd.data.lane_base import LaneDataConfig, LaneDataset, lane_classes, lane_palette
from segkd.errors import ConfigError
from segkd.models.build import build_network, network_from_file
from segkd.models.network import Network
from segkd.models.student_info import StudentInfo
from segkd.yaml_tree import dump

_OF_LANES = tuple(
    f"data.{key}" for key in ("name", "num_lanes", "left_lanes", "cut_top", "squeeze", "resize")
)


def network_and_rest(
    source: str | Path, overrides: Sequence[str], read: Sequence[str], reader: str
) -> tuple[Network, dict[str, Any], list[str]]:
    """The network of a file in eval mode on the CPU, its payload, and the remaining overrides.

    Args:
        source: a student's file; or one of another program, if overrides name its network
            (``student.arch=…``) and the dataset whose classes it has (``data.name=…``).
        overrides: ``key=value`` texts.
        read: keys of the configuration that the reader reads, besides those of such a file.
        reader: who reads them, for messages.

    Returns:
        Network and payload as of ``network_from_file``, and the overrides that the payload's
        configuration does not have yet.

    Raises:
        ConfigError: an override that is not read, or not valid.
        SegKDError: no such student, or the weights do not fit the network.
    """
    limit_given_threads(overrides)  # before the network: sessions of exported files keep their own
    config = foreign_evaluation(source, overrides)
    if config is None:
        network, payload = network_from_file(source)
        require_read(overrides, read, reader)
        return network, payload, list(overrides)
    data = config.data
    of_file = ("student", *(_OF_LANES if _is_lanes(data) else ("data",)))
    require_read(overrides, (*of_file, *read), f"{reader} with a file of another program")
    payload = _facts(data)
    network = build_network(config.student, len(payload["classes"]), payload["classes"]).eval()
    if network.match is None:
        raise ConfigError(
            f"student: {source} was written by segkd and contains the configuration of its "
            "network. Remove the keys `student.…`"
        )
    blocks = config.model_dump(mode="json", exclude={"student"})
    payload |= {"config": dump(blocks), "dataset": data.name}
    network.info = StudentInfo.of(payload)
    return network, payload, []


def _is_lanes(data: DataConfig) -> bool:
    return registry.datasets.get(data.name).task == "lanes"


def _facts(data: DataConfig) -> dict[str, Any]:
    """Classes and colours, and of lane sets what a detector needs to know of them."""
    kind = registry.datasets.get(data.name)
    if issubclass(kind, LaneDataset) and isinstance(data, LaneDataConfig):
        # The set itself, which need not be here, is not opened: its configuration says it all.
        size = getattr(data, "size", None)  # of a drawn set; others have their benchmark's
        facts = {"metric": kind.metric, "cut_top": data.cut_top, "squeeze": data.squeeze}
        sides = data.num_lanes, data.left_of_car
        return {
            "classes": list(lane_classes(*sides)),
            "palette": lane_palette(*sides).tolist(),
            "lanes": facts | {"size": size},
        }
    known = kind if hasattr(kind, "classes") else kind(data, data.val_split)
    return {"classes": list(known.classes), "palette": known.palette.tolist()}
