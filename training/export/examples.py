"""Ten small pictures drawn by script, shipped with every bundle as examples and golden inputs.

Six stand for classes of CIFAR-10, two from each group, and four for images that belong to no class. No data set's
images are involved, so they may be published. A model may misclassify them: they are no measure of quality.

    python -c "from training.export import examples; print({k: len(v) for k, v in examples.draw().items()})"
"""

from collections.abc import Callable, Collection

import numpy as np
from PIL import Image, ImageFont

from service.contract.bundle import Input
from service.contract.images import load as load_image
from training.data.decode import MAX_PIXELS
from training.export.drawing import SIDE_PX, ZOOM, Canvas, png, shade
from training.export.graph import onnx_predict
from training.runs.files import Json

CLASSES = ("airplane", "automobile", "cat", "frog", "ship", "truck")


def draw(classes: Collection[str] = CLASSES) -> dict[str, bytes]:
    """File name → PNG bytes of an RGB image of SIDE_PX x SIDE_PX, the same pixels each time.

    Pictures of the classes of CIFAR-10 are drawn where all of them are among `classes`, for other data sets only
    those that belong to no class.
    """
    shown = [name for name in PAINTERS if name not in CLASSES or set(CLASSES) <= set(classes)]
    return {f"{name}.png": png(PAINTERS[name]()) for name in shown}


def golden(
    graph: bytes, shape: Input, classes: tuple[str, ...], images: dict[str, bytes]
) -> tuple[dict[str, bytes], list[Json]]:
    """(files, golden records) of example images by name, through the very functions of the service."""
    files, answers = {}, []
    predict = onnx_predict(graph)
    for name, content in images.items():
        pixels = load_image(content, shape, max_pixels=MAX_PIXELS).pixels
        out = predict(pixels[None])
        files[f"examples/{name}"] = content
        answers.append(
            {
                "file": f"examples/{name}",
                "label": classes[int(out.predictions[0])],
                "probabilities": [float(p) for p in out.probabilities[0]],
                "scores": {key: float(value[0]) for key, value in out.scores.items()},
            }
        )
    return files, answers


# ---- In-distribution: six classes of CIFAR-10 -----------------------------------------------------------------------


def _airplane() -> Image.Image:
    c = Canvas((72, 132, 205), (176, 211, 240), seed=1)
    for x, y, r in ((14, 80, 9), (25, 84, 12), (38, 82, 8), (80, 20, 7), (89, 22, 9)):
        c.blob(x, y, r * 1.5, r * 0.55, (222, 234, 245))
    c.shape([(46, 50), (60, 47), (44, 18), (37, 18)], (150, 160, 172))  # far wing
    c.shape([(8, 50), (17, 51), (13, 32), (6, 30)], (196, 62, 52))  # fin
    c.line([(11, 54), (84, 47)], (206, 212, 220), 12)
    c.line([(12, 52), (83, 45)], (240, 243, 247), 8)
    c.shape([(80, 42), (93, 47), (80, 54)], (240, 243, 247))
    c.shape([(82, 42), (88, 44), (82, 46)], (48, 62, 84))  # cockpit
    for x in range(24, 78, 6):
        c.blob(x, 51.5 - x * 0.08, 1.2, 1.2, (70, 88, 112))
    c.shape([(40, 54), (60, 52), (40, 84), (31, 86)], (182, 190, 200))  # near wing
    return c.image


def _automobile() -> Image.Image:
    c = Canvas((150, 190, 226), (214, 226, 232), seed=2)
    c.ground(46, (104, 138, 78), (122, 152, 96))
    c.ground(62, (88, 88, 92), (112, 112, 116))
    c.blob(50, 80, 44, 5, (58, 58, 62))
    red = (196, 34, 36)
    c.shape([(24, 54), (36, 36), (66, 36), (80, 54)], shade(red, -18))
    c.shape([(29, 54), (38, 40), (50, 40), (50, 54)], (150, 188, 208))
    c.shape([(53, 54), (53, 40), (64, 40), (74, 54)], (132, 172, 196))
    c.shape([(6, 74), (7, 58), (20, 53), (82, 53), (94, 60), (95, 74)], red)
    c.shape([(7, 59), (20, 54), (82, 54), (93, 60)], shade(red, 34))
    c.shape([(6, 70), (95, 70), (94, 76), (7, 76)], shade(red, -52))
    c.blob(91, 63, 3, 2.4, (252, 240, 190))
    c.blob(8.5, 62, 2, 2.4, (255, 120, 90))
    c.wheel(25, 75, 9.5)
    c.wheel(76, 75, 9.5)
    return c.image


def _cat() -> Image.Image:
    c = Canvas((158, 124, 102), (188, 152, 122), seed=4)
    c.ground(80, (128, 74, 58), (146, 92, 72))
    grey = (128, 124, 122)
    c.ball(50, 96, 34, 30, grey)
    for side in (-1, 1):
        c.shape([(50 + side * 30, 12), (50 + side * 30, 46), (50 + side * 6, 30)], shade(grey, -12))
        c.shape([(50 + side * 27, 19), (50 + side * 27, 40), (50 + side * 12, 31)], (214, 160, 154))
    c.ball(50, 50, 31, 27, grey)
    for x in (42, 50, 58):
        c.line([(x, 26), (50 + (x - 50) * 0.7, 38)], shade(grey, -58), 2)
    for side in (-1, 1):
        c.blob(50 + side * 13, 47, 7, 6, (196, 200, 76))
        c.blob(50 + side * 13, 47, 2.2, 5.6, (12, 12, 12))
        c.blob(50 + side * 7, 63, 9, 7, (226, 222, 218))
        for y in (60, 64, 68):
            c.line([(50 + side * 12, 63), (50 + side * 36, y - 1)], (242, 240, 238), 0.7)
    c.shape([(46, 55), (54, 55), (50, 60)], (214, 128, 128))
    return c.image


def _frog() -> Image.Image:
    c = Canvas((74, 92, 50), (104, 118, 62), seed=5)
    c.ground(50, (112, 92, 58), (92, 96, 54), grain=20)
    green = (98, 150, 46)
    c.blob(50, 84, 44, 7, (62, 58, 36))
    for side in (-1, 1):
        c.ball(50 + side * 32, 68, 13, 16, shade(green, -26))
        c.line([(50 + side * 36, 80), (50 + side * 22, 84), (50 + side * 44, 85)], shade(green, -40), 5)
    c.ball(50, 62, 30, 23, green)
    c.blob(50, 74, 20, 9, (206, 206, 136))
    for side in (-1, 1):
        c.ball(50 + side * 17, 38, 10, 10, green)
        c.blob(50 + side * 17, 37, 6.4, 6.4, (226, 180, 52))
        c.blob(50 + side * 17, 37, 4.4, 3, (14, 14, 10))
        c.line([(50 + side * 14, 70), (50 + side * 16, 83), (50 + side * 24, 86)], shade(green, -14), 5.5)
    c.line([(25, 58), (38, 64), (50, 65.5), (62, 64), (75, 58)], (46, 74, 24), 1.6)
    for _ in range(14):
        x, y = c.random.uniform(30, 70), c.random.uniform(45, 56)
        c.blob(x, y, 1.6, 1.2, shade(green, -36))
    return c.image


def _ship() -> Image.Image:
    c = Canvas((126, 172, 216), (222, 230, 234), seed=7)
    c.ground(64, (22, 66, 104), (74, 126, 160), grain=26)
    c.shape([(34, 60), (34, 44), (74, 44), (78, 60)], (244, 244, 242))
    c.shape([(42, 44), (42, 34), (66, 34), (69, 44)], (228, 230, 232))
    c.shape([(50, 34), (51, 18), (60, 18), (61, 34)], (206, 66, 46))
    c.shape([(50.6, 24), (60.4, 24), (60.2, 19), (50.8, 19)], (34, 34, 40))
    for x, y, r in ((52, 12, 4), (44, 9, 5), (34, 6, 6)):
        c.blob(x, y, r * 1.5, r * 0.8, (176, 186, 194))
    for y in (49, 55):
        for x in range(39, 74, 6):
            c.blob(x, y, 1.4, 1.4, (60, 84, 110))
    c.shape([(4, 58), (96, 56), (86, 78), (16, 78)], (36, 48, 72))
    c.shape([(14, 73), (89, 72), (86, 78), (16, 78)], (158, 40, 34))
    return c.image


def _truck() -> Image.Image:
    c = Canvas((164, 192, 218), (222, 226, 226), seed=8)
    c.ground(60, (118, 132, 96), (140, 150, 112))
    c.ground(70, (84, 84, 88), (104, 104, 108))
    c.blob(50, 86, 46, 4, (54, 54, 58))
    c.shape([(4, 74), (4, 24), (64, 24), (64, 74)], (236, 236, 232))
    c.shape([(5, 50), (63, 50), (63, 58), (5, 58)], (226, 140, 40))
    blue = (40, 86, 168)
    c.shape([(66, 78), (66, 34), (82, 34), (90, 54), (96, 58), (96, 78)], blue)
    c.shape([(70, 54), (70, 39), (80, 39), (86, 54)], (172, 204, 220))
    c.blob(94, 66, 2.2, 2.6, (252, 242, 200))
    c.shape([(4, 80), (4, 74), (97, 75), (97, 80)], (48, 48, 54))
    for x in (15, 31, 80):
        c.wheel(x, 81, 8)
    return c.image


# ---- Out-of-distribution --------------------------------------------------------------------------------------------


def _letters() -> Image.Image:
    c = Canvas((250, 248, 240), (240, 236, 224), seed=9)
    for row, text in enumerate(("TAIL", "guard", "0 1 2 3")):
        font = ImageFont.load_default(size=27 * c.unit)
        c.pen.text((50 * c.unit, (19 + 31 * row) * c.unit), text, (24, 26, 34), font, anchor="mm")
    return c.image


def _checkerboard() -> Image.Image:
    rows, columns = np.indices((SIDE_PX * ZOOM, SIDE_PX * ZOOM)) // (8 * ZOOM)
    return Image.fromarray(np.array([[236, 232, 90], [20, 20, 24]], np.uint8)[(rows + columns) % 2])


def _noise() -> Image.Image:
    grain = np.random.default_rng(11).integers(0, 16, (SIDE_PX // 3, SIDE_PX // 3, 3), dtype=np.uint8) * 17
    return Image.fromarray(grain).resize((SIDE_PX * ZOOM, SIDE_PX * ZOOM), Image.Resampling.NEAREST)


def _colours() -> Image.Image:
    y, x = np.indices((SIDE_PX * ZOOM, SIDE_PX * ZOOM)) / (SIDE_PX * ZOOM - 1)
    return Image.fromarray((255 * np.stack([x, 1 - (x + y) / 2, y], axis=-1)).round().astype(np.uint8))


PAINTERS: dict[str, Callable[[], Image.Image]] = {
    "airplane": _airplane,
    "automobile": _automobile,
    "cat": _cat,
    "frog": _frog,
    "ship": _ship,
    "truck": _truck,
    "ood-letters": _letters,
    "ood-checkerboard": _checkerboard,
    "ood-noise": _noise,
    "ood-colours": _colours,
}
