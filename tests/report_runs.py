"""What tests of reports share beside fixtures."""

import contextlib
import json

from toy_run import ToyData

SECTIONS = ["result", "classes", "images", "boundary", "confusion", "training"]
SECTIONS += ["learning-rate", "cost", "speed", "setup"]


class ToyLanes(ToyData):
    """Toy images that say they are about lanes."""

    name = "toylanes"
    task = "lanes"


@contextlib.contextmanager
def silent(title):
    yield lambda done, total: None


def change_summary(folder, **changes):
    """Changes what a run has written at its end; None takes a key away."""
    path = folder / "summary.json"
    facts = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: v for key, v in facts.items() if v is not None}))
