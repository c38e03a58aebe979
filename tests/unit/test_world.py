"""The device that a recipe asks for."""

import pytest
import torch

from vitscale.config import HardwareConfig
from vitscale.errors import LaunchError
from vitscale.world import choose_device


def test_auto_takes_what_is_there() -> None:
    assert choose_device(HardwareConfig(device="auto")) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_said_so() -> None:
    with pytest.raises(LaunchError, match=r"hardware\.device: cuda"):
        choose_device(HardwareConfig(device="cuda"))
