"""A look at a data set: records drawn on one sheet, with their boxes and masks."""

import os
from collections.abc import Sequence

import numpy as np

from paligemma_jax.data import objects, records
from paligemma_jax.reports import contact_sheet
from paligemma_jax.tasks import box_text, mask_text, masks

NUM_CELLS = 24


def write(
    path: str | os.PathLike[str],
    found: Sequence[records.Record],
    *,
    coordinates: str,
    decode: mask_text.Decode | None = None,
) -> None:
    """Writes a PNG with records from all over the data set.

    Boxes are those that suffixes say. So are masks, if `decode` reads their tokens; else they are
    the outlines that records keep.
    """
    count = min(NUM_CELLS, len(found))
    chosen = np.linspace(0, len(found) - 1, count).astype(int)
    contact_sheet.write(path, [_cell(found[i], coordinates, decode) for i in chosen])


def _cell(
    record: records.Record, coordinates: str, decode: mask_text.Decode | None
) -> contact_sheet.Cell:
    image, kept, suffix = record.images[0], record.objects, record.suffix or ""
    if decode and kept:
        read = mask_text.parse(suffix, convention=coordinates)
        pasted = tuple(
            masks.paste(mask, box, kept.height, kept.width)
            for mask, box in zip(decode(read.codes), read.boxes_yxyx, strict=True)
        )
        return contact_sheet.Cell(
            image, record.prefix, suffix, read.boxes_yxyx, read.labels, pasted
        )
    boxes = box_text.parse(suffix, convention=coordinates)
    if kept is None:
        return contact_sheet.Cell(image, record.prefix, suffix, boxes.boxes_yxyx, boxes.labels)
    if len(boxes) != len(kept):  # counts: their text has no boxes
        boxes = objects.to_detections(kept)
    drawn = tuple(
        np.zeros((kept.height, kept.width), bool)
        if outline is None
        else objects.bitmap(outline, width=kept.width, height=kept.height)
        for outline in kept.segmentations
    )
    return contact_sheet.Cell(image, record.prefix, suffix, boxes.boxes_yxyx, boxes.labels, drawn)
