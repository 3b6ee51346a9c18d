"""Photographs that scikit-learn and scikit-image bring along: nobody trained on them, and a registry has both packages.

Files are read where the packages lie, without importing them: scikit-image is installed without its dependencies.
"""

import importlib.util
from pathlib import Path

KNOWN = {"skimage/data/chelsea.png": "cat"}
UNKNOWN = {
    "a pagoda": "sklearn/datasets/images/china.jpg",
    "a dahlia": "sklearn/datasets/images/flower.jpg",
    "an astronaut": "skimage/data/astronaut.png",
    "a cup of coffee": "skimage/data/coffee.png",
    "the moon": "skimage/data/moon.png",
    "a rocket": "skimage/data/rocket.jpg",
    "galaxies": "skimage/data/hubble_deep_field.jpg",
    "a retina": "skimage/data/retina.jpg",
    "coins": "skimage/data/coins.png",
    "a page of text": "skimage/data/page.png",
    "bricks": "skimage/data/brick.png",
    "a tissue slice": "skimage/data/ihc.png",
    "a man with a camera": "skimage/data/camera.png",
    "gravel": "skimage/data/gravel.png",
}


def find(name: str) -> Path | None:
    """The file, or None where its package is not installed."""
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / rest
    return path if path.is_file() else None
