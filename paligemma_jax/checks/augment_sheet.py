"""A sheet of what a config's augmentation does: each example as it is, then as it would be seen.

Boxes are those of the answers that would be learnt. No weights are read.
"""

import os

import numpy as np

from paligemma_jax.assembly import training_data
from paligemma_jax.console import say
from paligemma_jax.data import augment, images, prefix_lm, records, warp
from paligemma_jax.reports import sheets
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text


def write(
    settings: schema.Settings,
    path: str | os.PathLike[str],
    *,
    examples: int = 6,
    changes: int = 5,
) -> None:
    """Writes the sheet as PNG: the first `examples` of the run that have an image, in rows.

    Args:
      settings: all settings.
      path: of the sheet.
      examples: how many rows.
      changes: how many changed pictures each has, those of its first so many passes.

    Raises:
      ValueError: nothing is augmented, or no record has an image.
    """
    augmenter = training_data.make_augmenter(settings)
    if augmenter is None:
        raise ValueError("no augmentation is on: set keys under input.augment, as flip_lr=0.5")
    found, _ = training_data.read_sources(settings)
    augmenter.check(found)
    chosen = [record for record in found if record.images][:examples]
    if not chosen:
        raise ValueError("no record has an image to draw")
    res = max(settings.res, sheets.ROW_SIDE)
    drawn = []
    with say.progress("drawing", unit="examples") as report:
        for number, record in enumerate(chosen, 1):
            plain = _picture(images.load(record.images[0], res=res), record.suffix or "", augmenter)
            positions = [number + turn * len(found) for turn in range(changes)]
            changed = [_change(record, position, augmenter, res=res) for position in positions]
            title = f"{record.source}: {record.prefix}"
            drawn.append((title, [plain, *changed]))
            report(number, len(chosen))
    sheets.write_rows(path, drawn)
    say.info(f"{os.fspath(path)}: {augmenter.settings.describe()}")


def _change(
    record: records.Record, position: int, augmenter: augment.Augmenter, *, res: int
) -> sheets.Picture:
    """Returns an example as it is drawn at a position of the run."""
    numbers = augmenter.draw(record, position).to_array()
    pixels = warp.load_op(record.images[0], numbers, res=res, settings=augmenter.settings).numpy()
    return _picture(pixels, augmenter.answer(record, position), augmenter)


def _picture(pixels, suffix: str, augmenter: augment.Augmenter) -> sheets.Picture:
    answer = box_text.Detections(np.zeros((0, 4)), ())
    if augmenter.convention:
        answer = box_text.parse(prefix_lm.clean("", suffix)[1], convention=augmenter.convention)
    return sheets.Picture(pixels, answer.boxes_yxyx, answer.labels)
