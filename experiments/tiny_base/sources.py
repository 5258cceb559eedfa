"""Real pixels that packages ship: photographs, surfaces, handwriting, faces, coins, letters.

scikit-image and scikit-learn bring the pictures, matplotlib a portrait and the fonts. Of digits and
faces, train and held-out pictures are made of different ones.
"""

import dataclasses
import functools
import pathlib

import matplotlib
import numpy as np
import skimage
import sklearn
from PIL import Image, ImageFont
from sklearn import datasets

SKIMAGE = pathlib.Path(skimage.__file__).parent / "data"
SKLEARN = pathlib.Path(sklearn.__file__).parent / "datasets"
MATPLOTLIB = pathlib.Path(matplotlib.get_data_path())
# What a piece of each picture is called.
PHOTOGRAPHS = {
    "cat": SKIMAGE / "chelsea.png",
    "coffee": SKIMAGE / "coffee.png",
    "astronaut": SKIMAGE / "astronaut.png",
    "rocket": SKIMAGE / "rocket.jpg",
    "motorcycle": SKIMAGE / "motorcycle_left.png",
    "flower": SKLEARN / "images/flower.jpg",
    "temple": SKLEARN / "images/china.jpg",
    "galaxies": SKIMAGE / "hubble_deep_field.jpg",
    "moon": SKIMAGE / "moon.png",
    "retina": SKIMAGE / "retina.jpg",
    "cells": SKIMAGE / "ihc.png",
    "photographer": SKIMAGE / "camera.png",
    "officer": MATPLOTLIB / "sample_data/grace_hopper.jpg",
    "coins": SKIMAGE / "coins.png",
}
SURFACES = {
    "brick": SKIMAGE / "brick.png",
    "grass": SKIMAGE / "grass.png",
    "gravel": SKIMAGE / "gravel.png",
    "print": SKIMAGE / "page.png",
}
# Pictures that are told by all of what they show, and not by any piece of them.
PORTRAITS = ("cat", "coffee", "astronaut", "rocket", "motorcycle", "flower", "officer", "retina")
LARGEST = 400  # px of a picture's longer side: it is shrunk to that
FONTS = [
    *(
        f"DejaVu{name}"
        for name in ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold")
    ),
    *(f"DejaVu{name}" for name in ("Serif", "Serif-Bold", "Serif-Italic")),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmss10", "cmtt10", "cmb10"),
]


@dataclasses.dataclass(frozen=True)
class Part:
    """Which of the digits and faces there are pictures are made of."""

    digits: slice
    faces: slice


PARTS = {
    "train": Part(slice(0, 1300), slice(0, 80)),
    "valid": Part(slice(1300, 1450), slice(80, 100)),
    "test": Part(slice(1450, 1797), slice(80, 100)),
}


@functools.cache
def picture(name: str) -> Image.Image:
    """Returns a photograph or a surface in colour, at most LARGEST px long."""
    with Image.open({**PHOTOGRAPHS, **SURFACES}[name]) as image:
        whole = image.convert("RGB")
    whole.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    return whole


def random_crop(rng: np.random.Generator, name: str, size: tuple[int, int]) -> Image.Image:
    """Returns a piece of a picture of the given size, at some magnification, perhaps mirrored."""
    whole = picture(name)
    ratio = size[0] / size[1]
    height = min(whole.height, whole.width / ratio) * rng.uniform(0.35, 1.0)
    width = height * ratio
    x, y = rng.uniform(0, whole.width - width), rng.uniform(0, whole.height - height)
    piece = whole.resize(size, Image.Resampling.BILINEAR, box=(x, y, x + width, y + height))
    return piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else piece


def portrait(rng: np.random.Generator, name: str) -> Image.Image:
    """Returns nearly all of a photograph."""
    whole = picture(name)
    left, top, right, bottom = rng.uniform(0, 0.12, size=4)
    w, h = whole.size
    return whole.crop((int(left * w), int(top * h), int((1 - right) * w), int((1 - bottom) * h)))


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    loaded = datasets.load_digits()
    return (loaded.images * 255 / 16).astype(np.uint8), loaded.target


def digit(rng: np.random.Generator, part: Part, side: int) -> tuple[str, Image.Image]:
    """Returns ("7", the mask of a handwritten one that touches its sides), `side` px high."""
    images, labels = _digits()
    number = int(rng.choice(np.arange(len(labels))[part.digits]))
    small = Image.fromarray(images[number]).resize((64, 64), Image.Resampling.BICUBIC)
    box = small.point(lambda level: 255 * (level > 80)).getbbox()
    return str(labels[number]), _fit(small.crop(box), side)


@functools.cache
def _faces() -> np.ndarray:
    return (np.load(SKIMAGE / "lfw_subset.npy")[:100] * 255).astype(np.uint8)


def face(rng: np.random.Generator, part: Part) -> Image.Image:
    faces = _faces()[part.faces]
    return Image.fromarray(faces[rng.integers(len(faces))]).convert("RGB")


@functools.cache
def _coins() -> list[Image.Image]:
    """Returns the coins of the picture, found where it is bright."""
    from scipy import ndimage

    with Image.open(SKIMAGE / "coins.png") as image:
        whole = image.convert("L")
    grey = ndimage.gaussian_filter(np.asarray(whole, np.float32), 1)
    tilt = ndimage.minimum_filter(ndimage.gaussian_filter(grey, 12), 61)
    marked, _ = ndimage.label(ndimage.binary_fill_holes(grey > tilt + 45))
    found = []
    for rows, columns in ndimage.find_objects(marked):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if 30 < height < 75 and 0.85 < height / width < 1.18:
            found.append(whole.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return [coin.convert("RGB") for coin in found]


def coin(rng: np.random.Generator) -> Image.Image:
    coins = _coins()
    return coins[rng.integers(len(coins))].rotate(int(rng.integers(4)) * 90)


@functools.cache
def _horse() -> Image.Image:
    with Image.open(SKIMAGE / "horse.png") as image:
        mask = image.convert("L").point(lambda level: 255 - level)
    return mask.crop(mask.getbbox())


def horse(rng: np.random.Generator, side: int) -> Image.Image:
    mask = _horse()
    return _fit(
        mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else mask, side
    )


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(MATPLOTLIB / f"fonts/ttf/{name}.ttf", size)


def text_mask(rng: np.random.Generator, text: str, height: int) -> Image.Image:
    """Returns the mask of a text in some font, cut to its ink, about `height` px high."""
    font = _font(str(rng.choice(FONTS)), int(rng.integers(5, 9)) * 8)
    mask = font.getmask(text, mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask)) if mask.size[0] else Image.new("L", (1, 1))
    cut = image.crop(image.getbbox() or (0, 0, 1, 1))
    scale = height / cut.height
    return cut.resize((max(4, round(cut.width * scale)), height), Image.Resampling.BOX)


def _fit(mask: Image.Image, side: int) -> Image.Image:
    scale = side / max(mask.size)
    return mask.resize([max(4, round(n * scale)) for n in mask.size], Image.Resampling.BILINEAR)
