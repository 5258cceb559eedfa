"""Boxes and masks on pictures: one colour per class, drawn into the picture or to lay over it."""

import base64
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Apart from each other, and none of them green: green is the truth's.
COLORS = (
    *("#d62728", "#1f77b4", "#ff7f0e", "#9467bd", "#e377c2", "#8c564b"),
    *("#17becf", "#b8860b", "#3f51b5", "#c2185b", "#00838f", "#ff5252"),
)
OTHER_COLOR = "#5d6d7e"  # of a label that has no colour of its own
TRUTH_COLOR = "#16a34a"
INK = "#1f2933"
MASK_SIDE = 64  # px of a row's mask in its box
MASK_OPACITY = 0.45
SMALLEST_LETTERS = 7  # px


def choose_colors(labels: Iterable[str]) -> dict[str, str]:
    """Returns a colour "#rrggbb" per label; the same set of labels gives the same colours.

    A label has the colour that its letters choose, whichever others there are, unless one that
    sorts before it has that colour already: then the next that is free. Give all classes of a data
    set, not those of a picture alone, and a class looks alike everywhere.
    """
    taken: dict[str, str] = {}
    for label in sorted(set(labels)):
        start = zlib.crc32(label.encode())
        order = [COLORS[(start + step) % len(COLORS)] for step in range(len(COLORS))]
        lap = len(taken) // len(COLORS) * len(COLORS)
        used = set(list(taken.values())[lap:])
        taken[label] = next(color for color in order if color not in used)
    return taken


def open_rgb(file: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Returns a picture as RGB, turned as its pixels are stored, like the model's input."""
    with Image.open(file) as image:
        if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip them, not scale
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
        return image.convert("RGB")


def draw_boxes(
    image: Image.Image | np.ndarray,
    boxes_yxyx: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    masks: Sequence[str] | None = None,
    colors: Mapping[str, str] | None = None,
) -> Image.Image:
    """Returns a copy of the image with boxes, labels, confidences and masks drawn into it.

    Args:
      image: a picture, or uint8[H, W, 3].
      boxes_yxyx: float[n, 4] in 0..1 of the image.
      labels: n texts.
      scores: n confidences, written beside the labels; None writes none.
      masks: n masks of 64x64 in their boxes, as base64 of their bits; None draws none.
      colors: "#rrggbb" by label. By default `choose_colors` of these labels; give one mapping for
        all pictures to have a class look alike in all of them.

    Raises:
      ValueError: not one label and one score per box.
    """
    boxes = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4)
    given = {"labels": labels, "scores": scores, "masks": masks}
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if set(counts.values()) - {len(boxes)}:
        raise ValueError(f"{len(boxes)} boxes need as many labels, scores, masks; found {counts}")
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = picture.convert("RGB")  # always a copy
    colors = choose_colors(labels) if colors is None else colors
    for box, label, mask in zip(boxes, labels, masks or (), strict=masks is not None):
        _blend_mask(picture, box, mask, colors.get(label, OTHER_COLOR))
    side = max(picture.size)
    line_width = max(1, round(side / 250))
    font = ImageFont.load_default(size=_letter_size(side))
    draw = ImageDraw.Draw(picture)
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        y1, x1, y2, x2 = np.rint(box * np.tile([picture.height, picture.width], 2)).astype(int)
        color = colors.get(label, OTHER_COLOR)
        text = label if scores is None else f"{label} {scores[number]:.2f}"
        # The outline lies inside the box; Pillow's corners are the outermost pixels drawn.
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=color, width=line_width)
        _draw_tag(draw, text, x1, y1, color=color, font=font)
    return picture


def beside(pictures: Sequence[Image.Image | np.ndarray]) -> Image.Image:
    """Returns pictures side by side, all as high as the first one."""
    opened = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
    height = opened[0].height
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in opened]
    whole = Image.new("RGB", (sum(picture.width for picture in scaled), height))
    x = 0
    for picture in scaled:
        whole.paste(picture, (x, 0))
        x += picture.width
    return whole


def add_caption(picture: Image.Image, text: str, *, num_lines: int | None = None) -> Image.Image:
    """Returns a picture with text below it: black on white, as many lines as it takes.

    `num_lines`: just so many, whatever the text; what has no room is left out ("...").
    """
    size = max(12, max(picture.size) / 30)
    font, line_height = ImageFont.load_default(size=size), round(1.4 * size)
    lines = _wrap(text, font, picture.width - 12)
    if num_lines is not None and len(lines) > num_lines:
        lines = [*lines[: num_lines - 1], lines[num_lines - 1] + " ..."]
    height = picture.height + line_height * (num_lines or len(lines)) + 8
    whole = Image.new("RGB", (picture.width, height), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        draw.text((6, picture.height + 4 + number * line_height), line, fill="black", font=font)
    return whole


def enlarge(pixels: np.ndarray, *, at_least: int) -> Image.Image:
    """Returns uint8[H, W, 3] as a picture of so many pixels a side, each one a sharp square."""
    factor = max(1, -(-at_least // min(pixels.shape[:2])))
    return Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def mask_image(mask: str, color: str) -> Image.Image:
    """Returns RGBA 64x64: the mask (base64 of its bits) in a colour "#rrggbb" to see through."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(mask), np.uint8))
    alpha = bits.reshape(MASK_SIDE, MASK_SIDE) * round(255 * MASK_OPACITY)
    image = Image.new("RGB", (MASK_SIDE, MASK_SIDE), color)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def mask_png(mask: str, color: str) -> bytes:
    """Returns `mask_image` as a PNG file of some hundred bytes."""
    buffer = io.BytesIO()
    mask_image(mask, color).save(buffer, format="PNG")
    return buffer.getvalue()


def _letter_size(side: int) -> float:
    """Returns how large labels are, in px, on a picture whose longer side is so many px.

    Below 200 px they shrink with the picture as long as they can be read, so that some of it can
    still be seen.
    """
    return max(SMALLEST_LETTERS, min(10, side / 20), side / 45)


def _blend_mask(picture: Image.Image, box: np.ndarray, mask: str, color: str) -> None:
    y1, x1, y2, x2 = np.rint(box * np.tile([picture.height, picture.width], 2)).astype(int).tolist()
    if y2 > y1 and x2 > x1:
        overlay = mask_image(mask, color).resize((x2 - x1, y2 - y1), Image.Resampling.BILINEAR)
        picture.paste(overlay.convert("RGB"), (x1, y1), overlay.getchannel("A"))


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Returns text in lines that are no wider than so many px, one word at least in each."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    x: float,
    y: float,
    *,
    color: str,
    font: Any,
) -> None:
    """Writes white on the class's colour above (x, y), or as near as the picture allows."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(x, draw.im.size[0] - width))
    y = y - height if y >= height else y
    draw.rectangle((x, y, x + width, y + height), fill=color)
    draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
