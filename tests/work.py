"""How much Python an action runs: a measure of cost that is the same on every machine."""

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def bytecodes(action: Callable[[], object]) -> int:
    """How many instructions of Python it executes in this thread, those of libraries in Python among them."""
    executed, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Callable:
        nonlocal executed
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        executed += event == "opcode"
        return trace

    gc.collect()
    gc.disable()  # which calls back Python, of Hypothesis say, when it happens to run
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
        gc.enable()
    return executed


def calls(function: Callable, action: Callable[[], object]) -> int:
    """How often it calls a function of Python in this thread."""
    made, before = 0, sys.getprofile()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal made
        made += event == "call" and frame.f_code is function.__code__

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(before)
    return made
