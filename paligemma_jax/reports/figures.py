"""Pictures of a page with boxes and masks laid over them, as HTML that needs no other file."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.reports import drawing, page

MAX_SIDE = 480  # px of an embedded picture
CARD_WIDTH, CARD_HEIGHT = 320, 420  # px that a picture fills on the page
MAX_PICTURE_BYTES = 12 * 2**20  # of a page; examples beyond have no pictures


class Figures:
    """Makes pictures part of a page, as long as there is room.

    `open_image`: path -> picture.
    """

    def __init__(self, open_image: Callable[[str], Image.Image]):
        self._open, self._room = open_image, MAX_PICTURE_BYTES

    def draw(self, path: str, row: Mapping[str, Any], colors: Mapping[str, str]) -> str:
        """Returns a picture under the boxes and masks of a row, or the reason why there is none."""
        if self._room <= 0:
            room = MAX_PICTURE_BYTES // 2**20
            return _missing(f"{path}: the pictures above fill the {room} MB of a page")
        try:
            image = self._open(path).convert("RGB")  # a copy
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=85)
        except Exception as error:  # a report is worth having without one of its pictures
            return _missing(f"{path} cannot be read: {type(error).__name__}: {error}")
        self._room -= buffer.tell()
        width = min(CARD_WIDTH, round(CARD_HEIGHT * image.width / image.height))
        url = page.embed(buffer.getvalue(), "image/jpeg")
        return (
            f'<figure style="width:{width}px"><img src="{url}" alt="{page.escape(path)}">'
            f'<svg aria-hidden="true">{_overlay(row, colors)}</svg></figure>'
        )


def _missing(reason: str) -> str:
    return f'<div class="missing">{page.escape(reason)}</div>'


def _overlay(row: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    """Returns the boxes in percent of the picture: sharp at any size, text of one size."""
    truths = "".join(
        _mask(found, drawing.TRUTH_COLOR)
        + _box(found["box_yxyx"], drawing.TRUTH_COLOR, found["label"], below=True)
        for found in row.get("truths") or ()
    )
    predictions = "".join(
        _mask(found, colors.get(found["label"], drawing.OTHER_COLOR))
        + _box(
            found["box_yxyx"],
            colors.get(found["label"], drawing.OTHER_COLOR),
            f"{found['label']} {found['score']:.2f}",
            below=False,
        )
        for found in row.get("detections", ())
    )
    return f'<g class="prediction">{predictions}</g><g class="truth">{truths}</g>'


def _mask(found: Mapping[str, Any], color: str) -> str:
    """Returns an object's mask, stretched to its box, or nothing if it has none."""
    if "mask" not in found:
        return ""
    y1, x1, y2, x2 = (100 * float(value) for value in found["box_yxyx"])
    url = page.embed(drawing.mask_png(found["mask"], color), "image/png")
    return (
        f'<image href="{url}" x="{x1:.3f}%" y="{y1:.3f}%" width="{x2 - x1:.3f}%"'
        f' height="{y2 - y1:.3f}%" preserveAspectRatio="none"/>'
    )


def _box(box_yxyx: Sequence[float], color: str, text: str, *, below: bool) -> str:
    """Returns one box, its text above it or below it, or inside where the picture ends."""
    y1, x1, y2, x2 = (100 * float(value) for value in box_yxyx)
    if below:
        y, offset = y2, (13 if y2 < 94 else -5)
    else:
        y, offset = y1, (-4 if y1 > 6 else 13)
    # Near the right edge the text ends at the box's edge instead of starting there.
    x, anchor = (x1 + 0.5, "start") if x1 < 65 else (x2 - 0.5, "end")
    return (
        f'<rect x="{x1:.3f}%" y="{y1:.3f}%" width="{x2 - x1:.3f}%" height="{y2 - y1:.3f}%"'
        f' stroke="{color}"/><text x="{x:.3f}%" y="{y:.3f}%" dy="{offset}" fill="{color}"'
        f' text-anchor="{anchor}">{page.escape(text)}</text>'
    )
