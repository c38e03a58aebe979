"""A checkpoint keeps training waiting no longer after many evaluations than after few."""

import json
from pathlib import Path

import pytest
from launching import launch


def test_the_work_before_training_goes_on_does_not_grow(tmp_path):
    done = launch(Path(__file__).parent / "waiting.py", 1, tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["500"]["scores"] == 500 == found["500"]["bad_steps"]
    assert found["5"]["work"] == pytest.approx(found["500"]["work"], abs=1000)
