"""A rectangle of pixels."""

from typing import NamedTuple


class Box(NamedTuple):
    """x to the right and y down from the upper left corner, in pixels."""

    x: int
    y: int
    width: int
    height: int
