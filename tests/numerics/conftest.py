"""The fixtures of the numerics tests."""

from threads import one_thread as one_thread
