"""Drawn shapes: names, and soft masks of any size at any angle.

A shape is a list of outlines in -1..1, drawn four times as large as it is needed and shrunk. Every
mask touches all four sides of its array, so its box is the array's.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Outline = list[tuple[float, float]]
CANVAS = 256  # px per side on which a shape is drawn before it is cut out
REACH = 88  # px that 1 is long there


def polar(radii: np.ndarray, start: float = -math.pi / 2) -> Outline:
    """Returns the outline that has these distances from its centre, at even angles."""
    angles = start + np.arange(len(radii)) * 2 * math.pi / len(radii)
    return list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))


def regular(sides: int) -> Callable[[np.random.Generator], list[Outline]]:
    def make(rng: np.random.Generator) -> list[Outline]:
        del rng
        return [polar(np.ones(sides))]

    return make


def ellipse(rng):
    y = rng.uniform(0.4, 0.75)
    return [[(x, y * z) for x, z in polar(np.ones(48))]]


def rectangle(rng):
    y = rng.uniform(0.35, 0.7)
    return [[(-1, -y), (1, -y), (1, y), (-1, y)]]


def bar(rng):
    y = rng.uniform(0.08, 0.2)
    return [[(-1.2, -y), (1.2, -y), (1.2, y), (-1.2, y)]]


def square(rng):
    del rng
    return [[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]]


def triangle(rng):
    return [[(-1, 0.8), (1, 0.8), (rng.uniform(-0.4, 0.4), -0.9)]]


def diamond(rng):
    return [[(0, -1), (rng.uniform(0.5, 0.75), 0), (0, 1), (-rng.uniform(0.5, 0.75), 0)]]


def trapezoid(rng):
    x = rng.uniform(0.35, 0.6)
    return [[(-x, -0.6), (x, -0.6), (1, 0.6), (-1, 0.6)]]


def star(rng):
    points, depth = int(rng.integers(4, 8)), rng.uniform(0.35, 0.5)
    return [polar(np.tile([1.0, depth], points))]


def gear(rng):
    teeth = int(rng.integers(7, 11))
    return [polar(np.repeat(np.tile([1.0, 0.75], teeth), 2)), polar(np.full(32, 0.3))]


def cross(rng):
    w = rng.uniform(0.2, 0.35)
    corners = [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w)]
    return [corners + [(-x, -y) for x, y in corners]]


def ring(rng):
    return [polar(np.ones(48)), polar(np.full(48, rng.uniform(0.45, 0.75)))]


def crescent(rng):
    shift = rng.uniform(0.35, 0.6)
    return [polar(np.ones(48)), [(x * 0.85 + shift, y * 0.85) for x, y in polar(np.ones(48))]]


def heart(rng):
    del rng
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3 / 17
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 17
    return [list(zip(x, y, strict=True))]


def arrow(rng):
    w, h = rng.uniform(0.12, 0.25), rng.uniform(0.5, 0.75)
    return [[(-1, -w), (0.2, -w), (0.2, -h), (1, 0), (0.2, h), (0.2, w), (-1, w)]]


def drop(rng):
    del rng
    t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    return [list(zip(0.75 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t), strict=True))]


def dome(rng):
    del rng
    return [[(x, y + 0.4) for x, y in polar(np.ones(48)) if y < 0.01]]


def sector(rng):
    return [[(0.0, 0.0), *polar(np.ones(48))[: int(rng.integers(30, 42))]]]


def blob(rng):
    angles = np.arange(64) * 2 * math.pi / 64
    waves = [
        rng.uniform(0, 0.4 / k) * np.cos(k * angles + rng.uniform(0, 6.3)) for k in range(2, 6)
    ]
    return [polar(0.75 + sum(waves))]


def stroke(points: np.ndarray, width: float) -> list[Outline]:
    """Returns the outline of a line through float[n, 2] points."""
    along = np.gradient(points, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1)
    normal *= width / np.linalg.norm(normal, axis=1, keepdims=True)
    return [[*map(tuple, points + normal), *map(tuple, (points - normal)[::-1])]]


def wave(rng):
    x = np.linspace(-1.2, 1.2, 48)
    return stroke(np.stack([x, 0.35 * np.sin(x * rng.uniform(4, 7))], 1), rng.uniform(0.07, 0.14))


def zigzag(rng):
    x = np.linspace(-1.2, 1.2, 6)
    y = np.tile([0.35, -0.35], 3)
    return stroke(np.stack([x, y], 1), rng.uniform(0.1, 0.16))


def spiral(rng):
    del rng
    t = np.linspace(1.5, 4.5 * math.pi, 64)
    points = np.stack([np.cos(t), np.sin(t)], 1) * (t / t[-1])[:, None]
    return stroke(points, 0.08)


SHAPES: dict[str, Callable[[np.random.Generator], list[Outline]]] = {
    "circle": regular(48),
    "pentagon": regular(5),
    "hexagon": regular(6),
    "ellipse": ellipse,
    "square": square,
    "rectangle": rectangle,
    "bar": bar,
    "triangle": triangle,
    "diamond": diamond,
    "trapezoid": trapezoid,
    "star": star,
    "gear": gear,
    "cross": cross,
    "ring": ring,
    "crescent": crescent,
    "heart": heart,
    "arrow": arrow,
    "drop": drop,
    "dome": dome,
    "sector": sector,
    "blob": blob,
    "wave": wave,
    "zigzag": zigzag,
    "spiral": spiral,
}
UPRIGHT = {"square", "rectangle", "trapezoid", "heart", "drop", "dome"}  # mostly


def make_mask(rng: np.random.Generator, name: str, side: int) -> Image.Image:
    """Returns a soft mask, mode L, whose longer side is `side` px."""
    angle = rng.uniform(0, 2 * math.pi)
    if name in UPRIGHT and rng.random() < 0.6:
        angle = 0.0
    sin, cos = math.sin(angle) * REACH, math.cos(angle) * REACH
    stretch = rng.uniform(0.75, 1.0) if name not in ("circle", "square", "star", "ring") else 1.0
    drawn = None
    for outline in SHAPES[name](rng):
        turned = [
            (CANVAS / 2 + x * cos - y * stretch * sin, CANVAS / 2 + x * sin + y * stretch * cos)
            for x, y in outline
        ]
        layer = Image.new("L", (CANVAS, CANVAS))
        ImageDraw.Draw(layer).polygon(turned, fill=255)
        # What lies inside a second outline is cut out of the first.
        drawn = layer if drawn is None else ImageChops.subtract(drawn, layer)
    cut = drawn.crop(drawn.getbbox())
    scale = side / max(cut.size)
    size = [max(4, round(length * scale)) for length in cut.size]
    return cut.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
