"""Random erasing (Zhong et al. 2020): which rectangle; the device fills it (mixing.py)."""

import math

from data_pipeline.draw import Draw

AREA = (0.02, 1 / 3)  # of the image
LOG_RATIO = (math.log(0.3), -math.log(0.3))  # of height / width


def erase_box(height: int, width: int, probability: float, draw: Draw) -> tuple[int, int, int, int]:
    """(y, x, height, width) of a rectangle smaller than the image, with this probability; all 0 = none."""
    if draw.uniform() < probability:
        for _ in range(10):  # as timm and MAE do it
            pixels = height * width * draw.uniform(*AREA)
            ratio = math.exp(draw.uniform(*LOG_RATIO))
            h, w = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if h < height and w < width:
                return draw.integer(height - h + 1), draw.integer(width - w + 1), h, w
    return 0, 0, 0, 0
