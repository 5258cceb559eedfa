"""Random shapes as the codec sees them: cropped to their box, stretched to 64 x 64.

Ellipses, polygons, stars, blobs, crescents and rings at any angle, whole or in two parts. A shape
depends on (seed, index) alone.
"""

from typing import NamedTuple

import numpy as np

SIDE = 64
CANVAS = 128  # px on which a shape is drawn before it is cropped
YY, XX = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) + 0.5) / CANVAS * 2 - 1  # in -1..1


class Plane(NamedTuple):
    """float32[CANVAS, CANVAS] of a shape's own coordinates: along its axis, and polar."""

    along: np.ndarray
    distance: np.ndarray
    direction: np.ndarray


def draw_many(count: int, *, seed: int) -> np.ndarray:
    """Returns uint8[count, 64, 64] in 0..255, soft at the edges."""
    return np.stack([draw(seed, index) for index in range(count)])


def draw(seed: int, index: int) -> np.ndarray:
    """Returns one shape, uint8[64, 64] in 0..255, that touches all four sides."""
    rng = np.random.default_rng((seed, index))
    mask = random_shape(rng)
    if rng.random() < 0.15:
        mask |= random_shape(rng)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    small = resize_matrix(cropped.shape[0]) @ cropped @ resize_matrix(cropped.shape[1]).T
    return np.rint(small * 255).astype(np.uint8)


def random_shape(rng: np.random.Generator) -> np.ndarray:
    """Returns bool[CANVAS, CANVAS]: a shape at some place, angle and stretch inside the canvas."""
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1)
    cy, cx = rng.uniform(-0.35, 0.35, size=2)
    y, x = (YY - cy) / 0.6, (XX - cx) / 0.6
    along = x * np.cos(angle) + y * np.sin(angle)
    across = (y * np.cos(angle) - x * np.sin(angle)) / stretch
    plane = Plane(along, np.hypot(along, across), np.arctan2(across, along))
    kind = rng.choice(list(KINDS), p=[0.2, 0.25, 0.1, 0.25, 0.1, 0.1])
    return KINDS[kind](plane, rng)


def ellipse(plane, rng):
    del rng
    return plane.distance < 1


def polygon(plane, rng):
    """A regular polygon of 3 to 7 sides: inside where the foot on its side is near enough."""
    sides = rng.integers(3, 8)
    sector = 2 * np.pi / sides
    return plane.distance * np.cos(np.mod(plane.direction, sector) - sector / 2) < np.cos(
        sector / 2
    )


def star(plane, rng):
    points, depth = rng.integers(4, 7), rng.uniform(0.35, 0.65)
    phase = np.abs(np.mod(plane.direction * points / (2 * np.pi), 1) * 2 - 1)
    return plane.distance < depth + (1 - depth) * phase


def blob(plane, rng):
    radius = np.full_like(plane.distance, 0.7)
    for wave in range(2, 6):
        radius += rng.uniform(0, 0.35 / wave) * np.cos(
            wave * plane.direction + rng.uniform(0, 2 * np.pi)
        )
    return plane.distance < radius


def crescent(plane, rng):
    shift, radius = rng.uniform(0.3, 0.8), rng.uniform(0.6, 0.9)
    other = (
        plane.distance**2 - 2 * shift * plane.along + shift**2
    )  # squared distance from (shift, 0)
    return (plane.distance < 1) & (other > radius**2)


def ring(plane, rng):
    return (plane.distance < 1) & (plane.distance > rng.uniform(0.3, 0.7))


KINDS = {
    "ellipse": ellipse,
    "polygon": polygon,
    "star": star,
    "blob": blob,
    "crescent": crescent,
    "ring": ring,
}


def resize_matrix(size: int) -> np.ndarray:
    """Returns float32[64, size], the antialiased linear resize of one axis."""
    scale = max(size / SIDE, 1.0)
    centers = (np.arange(SIDE) + 0.5) * size / SIDE
    distance = np.abs(np.arange(size)[None] + 0.5 - centers[:, None]) / scale
    weights = np.clip(1 - distance, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
