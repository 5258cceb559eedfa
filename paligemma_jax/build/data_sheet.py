"""A look at a data set: records drawn on one sheet, with their boxes and outlines."""

import os
from collections.abc import Sequence

import numpy as np

from paligemma_jax.data import objects as data_objects
from paligemma_jax.data import records
from paligemma_jax.reports import contact_sheet
from paligemma_jax.tasks import detection

NUM_CELLS = 24


def write(
    path: str | os.PathLike[str], found: Sequence[records.Record], *, coordinates: str
) -> None:
    """Writes a PNG with records from all over the data set, boxes as their suffixes say."""
    count = min(NUM_CELLS, len(found))
    chosen = np.linspace(0, len(found) - 1, count).astype(int)
    contact_sheet.write(path, [_cell(found[i], coordinates) for i in chosen])


def _cell(record: records.Record, coordinates: str) -> contact_sheet.Cell:
    image, kept, suffix = record.images[0], record.objects, record.suffix or ""
    boxes = detection.parse(suffix, convention=coordinates)
    if kept is None:
        return contact_sheet.Cell(image, record.prefix, suffix, boxes.boxes_yxyx, boxes.labels)
    if len(boxes) != len(kept):  # counts: their text has no boxes
        boxes = data_objects.to_detections(kept)
    masks = tuple(
        np.zeros((kept.height, kept.width), bool)
        if outline is None
        else data_objects.bitmap(outline, width=kept.width, height=kept.height)
        for outline in kept.segmentations
    )
    return contact_sheet.Cell(image, record.prefix, suffix, boxes.boxes_yxyx, boxes.labels, masks)
