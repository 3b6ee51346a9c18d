"""The example pictures: the set, their format and size, and that drawing repeats itself."""

import io

import numpy as np
import pytest
from PIL import Image

from training.export import examples

CLASSES = ["airplane", "automobile", "cat", "frog", "ship", "truck"]
OUTLIERS = ["ood-letters", "ood-checkerboard", "ood-noise", "ood-colours"]


@pytest.fixture(scope="module")
def drawn():
    return examples.draw()


def _pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_the_set(drawn):
    assert list(drawn) == [f"{name}.png" for name in CLASSES + OUTLIERS]


def test_each_is_a_small_rgb_png(drawn):
    for content in drawn.values():
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (examples.SIDE_PX, examples.SIDE_PX))
    assert sum(map(len, drawn.values())) < 150_000


def test_no_picture_is_blank_or_repeated(drawn):
    assert len(set(drawn.values())) == len(drawn)
    assert all(_pixels(content).std() > 10 for content in drawn.values())


def test_other_data_sets_get_no_picture_of_cifars_classes():
    for classes in (("daisy", "rose"), ("cat", "dog"), ()):
        assert list(examples.draw(classes)) == [f"{name}.png" for name in OUTLIERS]


def test_drawing_repeats_itself(drawn):
    assert examples.draw() == drawn
