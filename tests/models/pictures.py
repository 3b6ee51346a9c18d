"""Photographs that scikit-learn and scikit-image bring along: nobody trained on them, and a registry has both packages.

Files are read where the packages lie, without importing them: scikit-image is installed without its dependencies.
"""

from training.network.pretrained import installed

__all__ = ["KNOWN", "UNKNOWN", "installed"]

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
