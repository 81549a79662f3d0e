"""A recipe of toys: a teacher, a baseline, and a student that learns from the teacher."""

from segkd.config.load import load_config

TOYS = {  # keys of all runs
    "steps": 4,
    "data": {"name": "toy", "batch_size": 4, "workers": 0, "crop": [32, 48]},
    "student": {"arch": "toy"},
    "eval": {"every": 0},
    "log": {"every": 2, "tensorboard": False},
    "runtime": {"device": "cpu", "threads": 1},
}


def toy_recipe(tmp_path, **changes):
    """A recipe with the keys of ``toy_keys``."""
    return load_config(toy_keys(tmp_path, **changes)).recipe


def toy_keys(tmp_path, *, common=None, trained=None, distilled=None, **changes):
    """Other keys of all runs, of the teacher's run, of the run that it teaches, of the recipe."""
    runs = {
        "teacher": {"once": True, "student": {"options": {"width": 8}}},
        "alone": {},
        "distilled": {
            "teachers": {"main": {"arch": "toy", "encoder": "resnet18", "options": {"width": 8}}},
            "methods": {"kd": {}},
        },
    }
    runs["distilled"]["teachers"]["main"]["checkpoint"] = "run:teacher"
    runs["teacher"] |= trained or {}
    runs["distilled"] |= distilled or {}
    plain = {
        "title": "Toys",
        "out": str(tmp_path / "toys"),
        "seeds": [0, 1],
        "baseline": "alone",
        "teacher": "teacher",
        "common": TOYS | (common or {}),
        "runs": runs,
    }
    return plain | changes
