"""One row of pictures per example, side by side: what an augmentation makes of it."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paligemma_jax.reports import drawing

SIDE, GAP, TITLE = 224, 6, 18  # px of a picture, between two, of the line above a row
BACKGROUND = "#f6f7f9"


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture with its boxes.

    Attributes:
      image: uint8[H, W, 3].
      boxes_yxyx: float[n, 4] in 0..1 of the image.
      labels: n texts.
    """

    image: np.ndarray
    boxes_yxyx: np.ndarray
    labels: tuple[str, ...]


def draw(path: str | os.PathLike[str], rows: Sequence[tuple[str, Sequence[Picture]]]) -> None:
    """Writes a PNG with a row for each (title, pictures)."""
    columns = max(len(pictures) for _, pictures in rows)
    width, height = SIDE + GAP, SIDE + TITLE + GAP
    size = columns * width + GAP, len(rows) * height + GAP
    sheet = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    colors = drawing.choose_colors(
        label for _, pictures in rows for picture in pictures for label in picture.labels
    )
    for number, (title, pictures) in enumerate(rows):
        y = GAP + number * height
        pen.text((GAP, y), title, fill=drawing.INK, font=font)
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture.image).resize((SIDE, SIDE))
            image = drawing.draw_boxes(image, picture.boxes_yxyx, picture.labels, colors=colors)
            sheet.paste(image, (GAP + column * width, y + TITLE))
    sheet.save(path, format="PNG")
