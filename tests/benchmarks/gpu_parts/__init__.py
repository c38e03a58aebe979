"""The parts of gpu.py: each is a function `run(setting)` that yields rows of its table as soon as they are measured."""
