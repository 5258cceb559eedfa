"""Many small pictures on one: a look at a data set."""

import dataclasses
import os
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from paligemma_jax.reports import drawing

SIDE = 300  # px of a picture
COLUMNS = 6
LINE_HEIGHT, CHARACTERS = 14, 48
PROMPT_LINES, ANSWER_LINES = 1, 4  # of the texts below it
GAP = 8
TINT = 0.45  # of a mask
BACKGROUND = "#f6f7f9"


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One picture of the sheet.

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


def write(path: str | os.PathLike[str], cells: Sequence[Cell]) -> None:
    """Writes the sheet as PNG. A picture that cannot be read leaves its reason in its place."""
    columns = min(COLUMNS, max(1, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    width = SIDE + GAP
    height = SIDE + (PROMPT_LINES + ANSWER_LINES) * LINE_HEIGHT + 2 * GAP
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    colors = drawing.choose_colors(label for cell in cells for label in cell.labels)
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
