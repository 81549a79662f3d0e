"""Kinds of quantisation grids, without torch: configurations name them."""

from typing import Literal

Per = Literal["tensor", "channel", "bucket"]
Grid = Literal["symmetric", "range"]
