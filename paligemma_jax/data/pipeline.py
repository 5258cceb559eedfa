"""Records to batches of numpy arrays: order, process slices, decoding ahead of use.

A batch holds B examples of this process, M image slots each, all of it what a model reads:

    image       uint8[B, M, R, R, 3]   zeros in unused slots
    mask_image  bool[B, M]             False for an unused slot
    text        int32[B, T + 1] to train on, [B, T] to decode from; mask_ar, mask_input (and
                mask_loss) bool of the same shape: see `rows`

The order is a function of (seed, step): nothing but the step number is needed to resume. Files are
read, decoded and resized in TensorFlow's threads, some batches ahead.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from paligemma_jax.data import images, rows, tokens
from paligemma_jax.data import records as data_records

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """What a batch looks like and who makes which part of it.

    Attributes:
      res: side of the images in pixels.
      text_len: T above.
      batch_size: examples per batch over all processes; each process makes its share.
      max_images: image slots per example, M above.
      lowercase, allow_truncation: as in `rows`.
      process_index, process_count: which share; jax.process_index() and jax.process_count().
      num_workers: images decoded at a time; None is one per core.
      prefetch: batches made ahead of use.
    """

    res: int
    text_len: int
    batch_size: int
    max_images: int = 1
    lowercase: bool = False
    allow_truncation: bool = False
    process_index: int = 0
    process_count: int = 1
    num_workers: int | None = None
    prefetch: int = 2

    def __post_init__(self):
        for name in ("res", "text_len", "batch_size", "max_images", "process_count", "prefetch"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide among {self.process_count} "
                f"processes; use a multiple of {self.process_count}"
            )
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"no process {self.process_index} among {self.process_count}")

    @property
    def local_batch_size(self) -> int:
        """Examples per batch of this process."""
        return self.batch_size // self.process_count

    @property
    def local_slice(self) -> slice:
        """This process's rows of a batch over all processes."""
        start = self.process_index * self.local_batch_size
        return slice(start, start + self.local_batch_size)

    @property
    def text_options(self) -> dict[str, Any]:
        """Arguments of `rows.encode_training` and `rows.encode_prompt`."""
        return dict(
            text_len=self.text_len,
            lowercase=self.lowercase,
            allow_truncation=self.allow_truncation,
        )


def order(seed: int, step: int, *, num_records: int, batch_size: int) -> np.ndarray:
    """Returns int64[batch_size], the records of a training step over all processes.

    Each pass over the data is a permutation of its own; a batch may reach into the next pass, so no
    record is left out. Steps count from 0.
    """
    position = np.arange(step * batch_size, (step + 1) * batch_size)
    epoch, offset = np.divmod(position, num_records)
    indices = np.empty(batch_size, np.int64)
    for e in np.unique(epoch).tolist():
        here = epoch == e
        indices[here] = _permutation(seed, e, num_records)[offset[here]]
    return indices


def train_batches(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    spec: BatchSpec,
    *,
    seed: int,
    total_steps: int,
    start_step: int = 0,
) -> Iterator[Batch]:
    """Returns the batches of steps start_step .. total_steps - 1, shuffled by `order`.

    Raises:
      ValueError: here, for records without suffix or with too many images; while iterating, for an
        image that cannot be read or a text that does not fit, naming the record's source.
    """
    check_records(records, spec)

    def plan() -> Iterator[np.ndarray]:
        for step in range(start_step, total_steps):
            indices = order(seed, step, num_records=len(records), batch_size=spec.batch_size)
            yield indices[spec.local_slice]

    encode = functools.partial(_encode_training, tokenizer=tokenizer, spec=spec)
    return _make_batches(plan, records, encode, spec)


def eval_batches(
    records: Sequence[data_records.Record], tokenizer: tokens.Tokenizer, spec: BatchSpec
) -> Iterator[Batch]:
    """Returns all records once, in order, as prompts to decode from.

    Every process gets the same number of batches. Rows that fill the last one repeat the last
    record, so that they are as harmless to compute as it is.

    Returns:
      batches with, besides, `_mask` bool[B] (False: the row only fills the batch) and `index`
      int32[B] (the record's place in `records`; -1 where `_mask` is False).

    Raises:
      ValueError: as `train_batches`.
    """
    check_records(records, spec, need_suffix=False)
    encode = functools.partial(_encode_prompt, tokenizer=tokenizer, spec=spec)
    return _number_rows(records, encode, spec)


def validation_batches(
    records: Sequence[data_records.Record], tokenizer: tokens.Tokenizer, spec: BatchSpec
) -> Iterator[Batch]:
    """As `eval_batches`, with text and masks as in training: for the loss over all records."""
    check_records(records, spec)
    encode = functools.partial(_encode_training, tokenizer=tokenizer, spec=spec)
    return _number_rows(records, encode, spec)


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """Returns a permutation of range(num_records), the same with every version of numpy.

    The raw stream of a bit generator is fixed; `Generator.permutation` may change (NEP 19).
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_records)
    permutation = np.argsort(bits, kind="stable")
    permutation.flags.writeable = False  # it is cached
    return permutation


def check_records(
    records: Sequence[data_records.Record], spec: BatchSpec, *, need_suffix: bool = True
) -> None:
    """Raises a ValueError for records that make no batch: what `train_batches` would say."""
    if not records:
        raise ValueError("no records to make batches of")
    for record in records:
        if len(record.images) > spec.max_images:
            raise ValueError(
                f"{record.source}: {len(record.images)} images, but max_images is "
                f"{spec.max_images}; set max_images={max(len(r.images) for r in records)}"
            )
        if need_suffix and record.suffix is None:
            raise ValueError(f"{record.source}: no suffix; a loss needs one in every row")


def _number_rows(records, encode, spec: BatchSpec) -> Iterator[Batch]:
    """Yields the batches of all records in order, with `_mask` and `index`."""
    numbers = np.arange(-(-len(records) // spec.batch_size) * spec.batch_size)
    numbers = numbers.reshape(-1, spec.batch_size)[:, spec.local_slice]
    batches = _make_batches(lambda: np.minimum(numbers, len(records) - 1), records, encode, spec)
    for number, batch in zip(numbers, batches, strict=True):
        is_real = number < len(records)
        index = np.where(is_real, number, -1).astype(np.int32)
        yield {**batch, "_mask": is_real, "index": index}


def _make_batches(
    plan: Callable[[], Iterable[np.ndarray]],
    records: Sequence[data_records.Record],
    encode: Callable[[data_records.Record], Batch],
    spec: BatchSpec,
) -> Iterator[Batch]:
    """Yields a batch for each array of record numbers in `plan()`, an iterable that can restart."""
    tf = images.tensorflow()
    image_batches = _image_dataset(plan, records, spec).as_numpy_iterator()
    for numbers in plan():
        chosen = [records[i] for i in numbers]
        encoded = [_encode_row(encode, record) for record in chosen]
        used = np.array([len(record.images) for record in chosen])
        try:
            image = next(image_batches)
        except tf.errors.OpError as error:
            _raise_bad_image(chosen, spec, error)
        yield {
            "image": image.reshape(-1, spec.max_images, spec.res, spec.res, 3),
            "mask_image": np.arange(spec.max_images) < used[:, None],
            **{key: np.stack([row[key] for row in encoded]) for key in encoded[0]},
        }


def _image_dataset(plan, records, spec: BatchSpec):
    """Returns a tf.data.Dataset of uint8[B * M, R, R, 3] for each array of numbers in `plan()`.

    Python only names the files, once per batch; an unused slot is named "".
    """
    tf = images.tensorflow()
    num_slots = spec.local_batch_size * spec.max_images

    def name_files() -> Iterator[list[str]]:
        for numbers in plan():
            slots = [records[i].images for i in numbers]
            yield [p for used in slots for p in (*used, *[""] * (spec.max_images - len(used)))]

    def load_slot(path):
        empty = functools.partial(tf.zeros, (spec.res, spec.res, 3), tf.uint8)
        return tf.cond(path == "", empty, lambda: images.load_op(path, res=spec.res))

    paths = tf.data.Dataset.from_generator(
        name_files, output_signature=tf.TensorSpec((num_slots,), tf.string)
    )
    num_workers = spec.num_workers or os.cpu_count() or 1
    loaded = paths.unbatch().map(load_slot, num_parallel_calls=num_workers, deterministic=True)
    return loaded.batch(num_slots, drop_remainder=True).prefetch(spec.prefetch)


def _raise_bad_image(chosen: Sequence[data_records.Record], spec: BatchSpec, error) -> NoReturn:
    """Finds which image of a batch TensorFlow could not read, and says where it is from."""
    for record in chosen:
        for path in record.images:
            images.load(path, res=spec.res, source=record.source)
    sources = ", ".join(record.source for record in chosen)
    raise ValueError(f"an image of {sources} could not be read, and now can: {error}") from error


def _encode_row(encode: Callable[[data_records.Record], Batch], record) -> Batch:
    try:
        return encode(record)
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error


def _encode_training(record: data_records.Record, tokenizer, spec: BatchSpec) -> Batch:
    suffix = record.suffix or ""
    return rows.encode_training(tokenizer, record.prefix, suffix, **spec.text_options)


def _encode_prompt(record: data_records.Record, tokenizer, spec: BatchSpec) -> Batch:
    return rows.encode_prompt(tokenizer, record.prefix, **spec.text_options)
