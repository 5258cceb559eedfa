"""What an import read, dropped, changed and wrote: as numbers, as printed lines, as a picture."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.assembly import training_data
from paligemma_jax.data import objects, records
from paligemma_jax.importers import example, formatting
from paligemma_jax.reports import sheets
from paligemma_jax.tasks import geometry
from paligemma_jax.tasks import task as tasks
from paligemma_jax.wording import phrases

SUMMARY, SHEET = "conversion.json", "contact_sheet.png"
NUM_EXAMPLES = 3  # shown of each reason
NUM_CLASSES = 12
NUM_CELLS = 24


def summarize(
    classes: Sequence[str],
    tally: example.Tally,
    round_trip: formatting.RoundTrip,
    rows: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the numbers: read, dropped {what: {reason: count}}, changed, rows, round_trip."""
    checked: dict[str, Any] = {
        "boxes": round_trip.num_boxes,
        "largest_box_error_bins": round(float(round_trip.worst_box), 4),
        "texts": round_trip.num_texts,
    }
    if masks := round_trip.worst_masks():
        mean = round(float(np.mean([mask.iou for mask in masks])), 4)
        checked |= {
            "masks": len(masks),
            "mask_iou_mean": mean,
            "mask_iou_lowest": masks[0].iou,
        }
        checked["mask_lowest"] = f"{masks[0].source}, object {masks[0].number}, {masks[0].label}"
    return {
        "classes": list(classes),
        "read": dict(tally.read),
        "dropped": tally.count_drops(),
        "changed": dict(tally.changed),
        "rows": dict(rows),
        "round_trip": checked,
    }


def lines(summary: Mapping[str, Any], tally: example.Tally) -> Iterator[str]:
    """Yields the lines that a person reads at the end."""
    yield f"read     {_counts(summary['read'])}"
    if classes := summary["classes"]:
        shown = ", ".join(classes[:NUM_CLASSES])
        more = f" and {len(classes) - NUM_CLASSES} more" if len(classes) > NUM_CLASSES else ""
        yield f"classes  {shown}{more}"
    yield from change_lines(summary["changed"])
    yield from drop_lines(tally)
    yield f"wrote    {_counts(summary['rows'], 'rows of ')}; images {_counts(summary['images'])}"
    checked = summary["round_trip"]
    parts = []
    if checked["boxes"]:
        error = checked["largest_box_error_bins"]
        parts.append(f"{phrases.count(checked['boxes'], 'boxes')} within {error:.2f} of a bin")
    if checked["texts"]:
        parts.append(phrases.count(checked["texts"], "answers"))
    if "masks" in checked:
        parts.append(
            f"{phrases.count(checked['masks'], 'masks')} "
            f"with IoU {checked['mask_iou_mean']:.3f} "
            f"(lowest {checked['mask_iou_lowest']:.3f}: {checked['mask_lowest']})"
        )
    yield f"checked  read back: {'; '.join(parts) or 'images without objects'}"


def change_lines(changed: Mapping[str, int]) -> Iterator[str]:
    """Yields every change with its count."""
    for what, count in changed.items():
        yield f"changed  {phrases.count(count, what)}"


def drop_lines(tally: example.Tally) -> Iterator[str]:
    """Yields every reason with its count and first places."""
    for what, reasons in tally.count_drops().items():
        for reason, count in reasons.items():
            places = [d for d in tally.drops if (d.what, d.reason) == (what, reason)][:NUM_EXAMPLES]
            shown = "; ".join(f"{d.source}: {d.detail}" if d.detail else d.source for d in places)
            more = f"; and {count - len(places)} more" if count > len(places) else ""
            yield f"dropped  {phrases.count(count, f'{what}s')}, {reason}: {shown}{more}"


def write_sheet(
    path: str | os.PathLike[str], shown: Sequence[records.Record], *, task: tasks.Task
) -> None:
    """Writes a PNG with records from all over the data set.

    Boxes and masks are those that the task reads in suffixes; where it reads none, boxes and
    outlines that records keep.
    """
    count = min(NUM_CELLS, len(shown))
    chosen = np.linspace(0, len(shown) - 1, count).astype(int)
    classes = training_data.find_asked(task.name, shown).classes
    sheets.write_contact_sheet(path, [_cell(shown[i], task) for i in chosen], classes=classes)


def _counts(values: Mapping[str, int], between: str = "") -> str:
    parts = (phrases.count(count, f"{between}{name}") for name, count in values.items())
    return ", ".join(parts) or "nothing"


def _cell(record: records.Record, task: tasks.Task) -> sheets.Cell:
    image, kept, suffix = record.images[0], record.objects, record.suffix or ""
    read = task.draw(task.parse(suffix))
    boxes, labels, outlined = read.boxes_yxyx, read.labels, ()
    if kept is not None and read.masks is not None:
        outlined = tuple(
            geometry.paste_mask(mask, box, kept.height, kept.width)
            for mask, box in zip(read.masks, boxes, strict=True)
        )
    elif kept is not None:
        if len(boxes) != len(kept):  # counts: their text has no boxes
            exact = objects.to_detections(kept)
            boxes, labels = exact.boxes_yxyx, exact.labels
        outlined = tuple(
            np.zeros((kept.height, kept.width), bool)
            if outline is None
            else objects.bitmap(outline, width=kept.width, height=kept.height)
            for outline in kept.segmentations
        )
    return sheets.Cell(image, record.prefix, suffix, boxes, labels, outlined)
