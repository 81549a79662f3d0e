"""The nine categories of CULane's test set, and their frequencies."""

from collections.abc import Sequence

from segkd.synthetic.scenes.dice import Dice

CATEGORIES = {  # images of CULane's test set, in the order of its list files
    "normal": 9621,
    "crowd": 8113,
    "hlight": 486,
    "shadow": 930,
    "noline": 4067,
    "arrow": 890,
    "curve": 422,
    "cross": 3121,
    "night": 7030,
}


def category_of(key: Sequence[int]) -> str:
    """The category of the scene with this key, known before anything is drawn."""
    return Dice((*key, 0)).weighted(CATEGORIES)
