"""Many small pictures on one: a look at a data set, and at what an augmentation makes of it."""

import dataclasses
import os
import textwrap
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paligemma_jax.reports import drawing

SIDE, ROW_SIDE = 300, 224  # px of a picture: of a contact sheet, of rows
COLUMNS = 6
LINE_HEIGHT, CHARACTERS = 14, 48
PROMPT_LINES, ANSWER_LINES = 1, 4  # of the texts below it
GAP, ROW_GAP = 8, 6  # px between two
TITLE = 18  # px of the line above a row
TINT = 0.45  # of a mask
BACKGROUND = "#f6f7f9"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A picture of a contact sheet.

    Attributes:
      image: its path.
      prompt, answer: shown below, cut to a few lines.
      boxes_yxyx: float[n, 4] in 0..1 of the image. labels: n texts.
      masks: bool[H, W] of the image's size, one per label, or ().
    """

    image: str
    prompt: str
    answer: str
    boxes_yxyx: np.ndarray
    labels: tuple[str, ...] = ()
    masks: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A picture of a row.

    Attributes:
      image: uint8[H, W, 3].
      boxes_yxyx: float[n, 4] in 0..1 of the image.
      labels: n texts.
    """

    image: np.ndarray
    boxes_yxyx: np.ndarray
    labels: tuple[str, ...]


def write_contact_sheet(
    path: str | os.PathLike[str], cells: Sequence[Cell], *, classes: Iterable[str] = ()
) -> None:
    """Writes pictures with their texts as PNG; of one that cannot be read there is the reason.

    `classes`: all labels of the data set, so that each has the colour that it has elsewhere.
    """
    columns = min(COLUMNS, max(1, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    width = SIDE + GAP
    height = SIDE + (PROMPT_LINES + ANSWER_LINES) * LINE_HEIGHT + 2 * GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    labels = {label for cell in cells for label in cell.labels}
    colors = drawing.choose_colors(labels.union(classes))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, cell in enumerate(cells):
        x, y = GAP + number % columns * width, GAP + number // columns * height
        answer, bottom = cell.answer or "(nothing)", y + SIDE
        try:
            picture = _picture(cell, colors)
            sheet.paste(picture, (x, y))
            bottom = y + picture.height
        except (OSError, ValueError, SyntaxError) as error:
            answer = f"{os.path.basename(cell.image)} cannot be read: {error}"
        lines = [*_wrap(cell.prompt, PROMPT_LINES), *_wrap(answer, ANSWER_LINES)]
        for line, words in enumerate(lines):
            draw.text((x, bottom + 2 + line * LINE_HEIGHT), words, fill=drawing.INK, font=font)
    sheet.save(path, format="PNG")


def write_rows(
    path: str | os.PathLike[str],
    rows: Sequence[tuple[str, Sequence[Picture]]],
    *,
    classes: Iterable[str] = (),
) -> None:
    """Writes a PNG with a row of pictures, side by side, for each (title, pictures).

    `classes`: as in `write_contact_sheet`.
    """
    columns = max(len(pictures) for _, pictures in rows)
    width, height = ROW_SIDE + ROW_GAP, ROW_SIDE + TITLE + ROW_GAP
    size = columns * width + ROW_GAP, len(rows) * height + ROW_GAP
    sheet = Image.new("RGB", size, BACKGROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    labels = {label for _, pictures in rows for picture in pictures for label in picture.labels}
    colors = drawing.choose_colors(labels.union(classes))
    for number, (title, pictures) in enumerate(rows):
        y = ROW_GAP + number * height
        pen.text((ROW_GAP, y), title, fill=drawing.INK, font=font)
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture.image).resize((ROW_SIDE, ROW_SIDE))
            image = drawing.draw_boxes(image, picture.boxes_yxyx, picture.labels, colors=colors)
            sheet.paste(image, (ROW_GAP + column * width, y + TITLE))
    sheet.save(path, format="PNG")


def _wrap(text: str, num_lines: int) -> list[str]:
    return textwrap.wrap(text, CHARACTERS, max_lines=num_lines, placeholder=" ...")


def _picture(cell: Cell, colors: dict[str, str]) -> Image.Image:
    """Returns the picture at its size on the sheet, tinted and drawn upon after it is scaled."""
    image = drawing.open_rgb(cell.image)
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size])
    for label, mask in zip(cell.labels, cell.masks, strict=False):
        alpha = Image.fromarray((mask * (255 * TINT)).astype(np.uint8)).resize(image.size)
        image.paste(Image.new("RGB", image.size, colors[label]), mask=alpha)
    return drawing.draw_boxes(image, cell.boxes_yxyx, cell.labels, colors=colors)
