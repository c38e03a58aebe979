"""How long something lasts, in the unit in which a paper states it."""

from typing import Self

from pydantic import Field, model_validator

from data_pipeline.config import Section

UNITS = ("steps", "samples", "epochs")


class Duration(Section):
    """Exactly one of `steps`, `samples`, `epochs`: `{epochs: 300}`, `{steps: 10_000}`."""

    steps: int | None = Field(None, ge=0)
    """global batches"""
    samples: int | None = Field(None, ge=0)
    """images"""
    epochs: float | None = Field(None, ge=0, le=1e9)
    """passes over the training set"""

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"{found} given; a duration has exactly one of {', '.join(UNITS)}, e.g. {{epochs: 300}}")
        return self

    def to_steps(self, global_batch: int, num_samples: int) -> int:
        """Steps of `global_batch` images on a training set of `num_samples`, rounded to the nearest.

        The published step counts are rounded so: 90 epochs of 1,268,355 images at 1,024 are 111,477 steps.
        """
        if self.steps is not None:
            return self.steps
        samples = self.samples if self.samples is not None else (self.epochs or 0.0) * num_samples
        return round(samples / global_batch)
