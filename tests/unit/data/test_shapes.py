"""Made pictures are the same everywhere, and each is of its class."""

from pathlib import Path

import numpy as np

from data_pipeline.shapes import CLASSES, picture, shapes
from data_pipeline.sources import Reading, Source, collect


def test_a_picture_depends_on_seed_and_number_only():
    few, many = shapes(20).images, shapes(40).images
    assert many[:20] == few
    assert len({image.source for image in many}) == 40
    assert shapes(20, seed=1).images[7].source != few[7].source
    assert (picture(5, 3) == picture(5, 3)).all()


def test_classes_are_equally_many(tmp_path):
    collection = collect(Source(Path("shapes:64"), "shapes:64"), Reading(str(tmp_path)))
    assert collection.classes == CLASSES and len(set(CLASSES)) == 16
    assert np.bincount([image.label for image in collection.images]).tolist() == [4] * 16
    assert [image.key for image in collection.images[:2]] == ["shape000000", "shape000001"]
