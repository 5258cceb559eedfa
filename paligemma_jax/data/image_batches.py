"""The images of batches, read, decoded, resized and augmented in TensorFlow's threads."""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

import numpy as np

from paligemma_jax.data import augment, images, records, warp

# (record, position of the example in the run)
Example = tuple[records.Record, int]
# The examples of each batch; an iterable that can restart.
Plan = Callable[[], Iterable[Sequence[Example]]]


def read(
    plan: Plan,
    *,
    res: int,
    batch_size: int,
    max_images: int,
    num_workers: int | None = None,
    prefetch: int = 2,
    augmentation: augment.Augmenter | None = None,
) -> Iterator[np.ndarray]:
    """Yields uint8[B, M, R, R, 3] for each batch of `plan()`; an unused slot is zeros.

    Args:
      plan: batches of `batch_size` examples.
      res: R, in pixels.
      batch_size: B.
      max_images: M.
      num_workers: images decoded at a time; None is one per core.
      prefetch: batches made ahead of use.
      augmentation: changes the images of every example in its own way.

    Raises:
      ValueError: an image that cannot be read, naming the record's source.
    """
    tf = images.tensorflow()
    num_slots = batch_size * max_images
    settings = augment.Augmentation() if augmentation is None else augmentation.settings

    def load_slot(path, numbers):
        return tf.cond(
            path == "",
            lambda: tf.zeros((res, res, 3), tf.uint8),
            lambda: warp.load_op(path, numbers, res=res, settings=settings),
        )

    # Python only names the files, once per batch, and says how each one is changed.
    slots = tf.data.Dataset.from_generator(
        functools.partial(_name_files, plan, max_images=max_images, augmentation=augmentation),
        output_signature=(
            tf.TensorSpec((num_slots,), tf.string),
            tf.TensorSpec((num_slots, augment.NUM_NUMBERS), tf.float32),
        ),
    )
    loaded = slots.unbatch().map(
        load_slot, num_parallel_calls=num_workers or os.cpu_count() or 1, deterministic=True
    )
    # Nothing is left to tune; and the thread that would tune sleeps for up to a minute at the end,
    # with this one waiting for it.
    options = tf.data.Options()
    options.autotune.enabled = False
    loaded = loaded.batch(num_slots, drop_remainder=True).prefetch(prefetch).with_options(options)
    batches = loaded.as_numpy_iterator()
    for examples in plan():
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            _raise_bad_image([record for record, _ in examples], error, res=res)
        yield batch.reshape(batch_size, max_images, res, res, 3)


def _name_files(
    plan: Plan, *, max_images: int, augmentation: augment.Augmenter | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields each batch's paths, "" for an unused slot, and float32[slots, NUM_NUMBERS] draws."""
    for examples in plan():
        slots = [record.images for record, _ in examples]
        paths = [path for used in slots for path in (*used, *[""] * (max_images - len(used)))]
        drawn = np.zeros((len(examples), augment.NUM_NUMBERS), np.float32)
        if augmentation and augmentation.settings.changes_pixels:
            for row, (record, position) in zip(drawn, examples, strict=True):
                row[:] = augmentation.draw(record, position).to_array()
        yield paths, np.repeat(drawn, max_images, axis=0)


def _raise_bad_image(chosen: Sequence[records.Record], error: Exception, *, res: int) -> NoReturn:
    """Finds which image of a batch TensorFlow could not read, and says where it is from."""
    for record in chosen:
        for path in record.images:
            images.load(path, res=res, source=record.source)
    sources = ", ".join(record.source for record in chosen)
    raise ValueError(f"an image of {sources} could not be read, and now can: {error}") from error
