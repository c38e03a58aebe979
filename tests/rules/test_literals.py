"""What a recipe may choose from is what the code knows."""

from typing import get_args

import numpy as np
import pytest
import torch
from config_reference import helps

from data_pipeline.config import AugmentConfig, DataConfig, Section
from data_pipeline.crop import resize
from data_pipeline.randaugment import RANDAUGMENTS
from vitscale.config import HardwareConfig, OptimConfig, RunConfig, ScheduleConfig, TrainConfig
from vitscale.engine import DTYPES
from vitscale.loss import LOSSES
from vitscale.modelinfo import ModelInfo
from vitscale.optim import STATE, build_optimizer
from vitscale.schedule import SCHEDULES


def choices(section, field):
    found = get_args(section.model_fields[field].annotation)
    assert found, f"{section.__name__}.{field} is no Literal"
    return sorted(found)


@pytest.mark.parametrize(
    ("section", "field", "known"),
    [
        (TrainConfig, "loss", LOSSES),
        (ScheduleConfig, "name", SCHEDULES),
        (OptimConfig, "name", STATE),
        (OptimConfig, "moment_dtype", DTYPES),
        (HardwareConfig, "precision", DTYPES),
        (AugmentConfig, "randaugment", RANDAUGMENTS),
    ],
)
def test_every_choice_has_code_and_all_code_can_be_chosen(section, field, known):
    assert choices(section, field) == sorted(known)


@pytest.mark.parametrize("name", choices(OptimConfig, "name"))
def test_every_optimiser_can_be_built(name):
    optimizer = build_optimizer(torch.nn.Linear(2, 2), OptimConfig(name=name, lr=1.0))
    assert name in (type(optimizer).__name__.lower(), getattr(getattr(optimizer, "rule", None), "__name__", None))


@pytest.mark.parametrize("interpolation", choices(DataConfig, "interpolation"))
def test_every_interpolation_works_and_a_published_model_may_use_it(interpolation):
    assert resize(np.zeros((5, 4, 3), np.uint8), 2, 2, interpolation).shape == (2, 2, 3)
    assert interpolation in choices(ModelInfo, "interpolation")


def sections(section):
    """A section and all inside it."""
    kinds = [kind for field in section.model_fields.values() for kind in (field.annotation, *get_args(field.annotation))]
    inner = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)}
    return {section}.union(*map(sections, inner))


def test_every_field_of_a_recipe_has_its_help():
    found = sections(RunConfig)
    assert {"RunConfig", "AugmentConfig", "SourceConfig", "Duration", "PublishConfig"} <= {s.__name__ for s in found}
    assert [f"{s.__name__}.{name}" for s in found for name, text in helps(s).items() if not text] == []
