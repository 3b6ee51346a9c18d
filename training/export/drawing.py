"""A canvas addressed in percent of its side, on which the example images are drawn."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 96
ZOOM = 4  # drawn larger, then reduced: smooth edges
Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A picture addressed in percent of its side, x to the right and y downward."""

    def __init__(self, top: Colour, bottom: Colour, seed: int) -> None:
        self.unit = SIDE_PX * ZOOM / 100
        self.random = np.random.default_rng(seed)
        self.image = Image.fromarray(gradient(top, bottom, SIDE_PX * ZOOM))
        self.pen = ImageDraw.Draw(self.image)

    def ground(self, y: float, near: Colour, far: Colour, grain: int = 14) -> None:
        """Fill from `y` to the lower edge, `far` at the horizon, with streaks as of grass, waves or asphalt."""
        band = Image.fromarray(gradient(far, near, SIDE_PX * ZOOM))
        self.image.paste(band.crop((0, 0, band.width, round((100 - y) * self.unit))), (0, round(y * self.unit)))
        for _ in range(70):
            x, depth = self.random.uniform(-10, 100), self.random.uniform(0, 1) ** 0.7
            by = int(self.random.integers(-grain, grain + 1))
            colour = shade(mix(far, near, depth), by)
            at = y + depth * (100 - y)
            self.line([(x, at), (x + 4 + 14 * depth, at)], colour, 0.6 + depth)

    def blob(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """A filled ellipse round (x, y)."""
        u = self.unit
        self.pen.ellipse(((x - rx) * u, (y - ry) * u, (x + rx) * u, (y + ry) * u), fill=colour)

    def shape(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self.pen.polygon([(x * self.unit, y * self.unit) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        """A line with rounded joints and ends."""
        self.pen.line([(x * self.unit, y * self.unit) for x, y in points], colour, round(width * self.unit), "curve")
        for x, y in points:
            self.blob(x, y, width / 2, width / 2, colour)

    def ball(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """An ellipse lit from above: darker below, lighter above."""
        for step in range(8):
            shrink = 1 - 0.09 * step
            self.blob(x, y - ry * (1 - shrink) * 0.55, rx * shrink, ry * shrink, shade(colour, 8 * step - 28))

    def wheel(self, x: float, y: float, radius: float) -> None:
        """A tyre with its rim."""
        self.blob(x, y, radius, radius, (26, 26, 28))
        self.blob(x, y, radius * 0.52, radius * 0.52, (168, 170, 174))
        self.blob(x, y, radius * 0.2, radius * 0.2, (70, 70, 74))


def gradient(top: Colour, bottom: Colour, side: int) -> np.ndarray:
    share = np.linspace(0, 1, side)[:, None]
    column = (1 - share) * np.array(top) + share * np.array(bottom)  # (side, 3)
    return np.repeat(column[:, None].round().astype(np.uint8), side, axis=1)


def mix(one: Colour, two: Colour, share: float) -> Colour:
    r, g, b = (round(a + (z - a) * share) for a, z in zip(one, two, strict=True))
    return r, g, b


def shade(colour: Colour, by: int) -> Colour:
    r, g, b = (min(255, max(0, c + by)) for c in colour)
    return r, g, b


def png(image: Image.Image) -> bytes:
    small = image.filter(ImageFilter.GaussianBlur(1.5)).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
