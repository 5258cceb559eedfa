"""Records to batches of numpy arrays: order, process slices, decoding ahead of use.

A batch holds B examples of this process, M image slots each, all of it what a model reads:

    image       uint8[B, M, R, R, 3]   zeros in unused slots; or what `read_images` gives instead,
                                       or, of models that see crops, as `images` says
    mask_image  bool[B, M]             False for an unused slot
    text        int32[B, T + 1] to train on, [B, T] to decode from; mask_ar, mask_input (and
                mask_loss) bool of the same shape: see `prefix_lm`

Order (`index_sampler`) and augmentation (`augment`) are functions of (seed, step): nothing but the
step number is needed to resume. Files are read, decoded, resized and augmented in TensorFlow's
threads, some batches ahead.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from paligemma_jax.data import augment, images, index_sampler, noise_boxes, prefix_lm, tokens
from paligemma_jax.data import records as data_records
from paligemma_jax.tasks import text_metrics

Batch = dict[str, np.ndarray]
# (record, position of the example in the run)
Example = tuple[data_records.Record, int]
# The examples of each batch; an iterable that can restart.
Plan = Callable[[], Iterable[Sequence[Example]]]
# (batches of examples, what a batch looks like) -> for each batch its arrays made of images
ReadImages = Callable[[Plan, "BatchSpec"], Iterator[Batch]]
# (record, position of the example in the run) -> a row of text and masks
Encode = Callable[[data_records.Record, int], Batch]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """What a batch looks like and who makes which part of it.

    Attributes:
      res: side of the images in pixels.
      text_len: T above.
      batch_size: examples per batch over all processes; each process makes its share.
      max_images: image slots per example, M above.
      lowercase, allow_truncation: as in `prefix_lm`.
      draw_answers: whether to train on one of a row's answers, each time another.
      process_index, process_count: which share; jax.process_index() and jax.process_count().
      num_workers: images decoded at a time; None is one per core.
      prefetch: batches made ahead of use.
      resampling: how images become squares, one of `images.RESAMPLINGS`.
    """

    res: int
    text_len: int
    batch_size: int
    max_images: int = 1
    lowercase: bool = False
    allow_truncation: bool = False
    draw_answers: bool = False
    process_index: int = 0
    process_count: int = 1
    num_workers: int | None = None
    prefetch: int = 2
    resampling: str = images.BILINEAR

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
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: [R, R, 3] as a rule."""
        return images.shape(self.res, self.resampling)

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
        """Arguments of `prefix_lm.encode_training` and `prefix_lm.encode_prompt`."""
        return dict(
            text_len=self.text_len,
            lowercase=self.lowercase,
            allow_truncation=self.allow_truncation,
        )


def training_arrays(spec: BatchSpec) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns name -> (shape of one row, type) of the arrays of a training batch."""
    text = (spec.text_len + 1,)
    return {
        "image": ((spec.max_images, *spec.image_shape), np.uint8),
        "mask_image": ((spec.max_images,), np.bool_),
        **dict.fromkeys(prefix_lm.TEXT_ARRAYS, (text, np.bool_)),
        "text": (text, np.int32),
    }


def train_batches(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    spec: BatchSpec,
    *,
    seed: int,
    total_steps: int,
    start_step: int = 0,
    sources: Sequence[index_sampler.Source] = (),
    augmentation: augment.Augmenter | None = None,
    noise: noise_boxes.NoiseBoxes | None = None,
    read_images: ReadImages | None = None,
    text_lens: Sequence[int] = (),
    largest: Callable[[int], int] = int,
) -> Iterator[Batch]:
    """Returns the batches of steps start_step .. total_steps - 1, as `index_sampler.Order` says.

    Args:
      records: of all sources, one after the other.
      tokenizer: makes text ids.
      spec: what a batch looks like.
      seed: of the order.
      total_steps, start_step: which batches.
      sources: what the records are from; by default one source.
      augmentation: changes every example in its own way.
      noise: fills answers up.
      read_images: gives what stands in place of pixels, which are then not read.
      text_lens: shorter than the spec's. A batch has the smallest T that fits its rows, those of
        all processes, so that it is the same T everywhere and after a resume.
      largest: (a number of this process) -> the largest of all processes, which call it alike.

    Raises:
      ValueError: here, for records without suffix, with too many images or with text that cannot
        follow an augmented image; while iterating, for an image that cannot be read or a text that
        does not fit, naming the record's source.
    """
    check_records(records, spec)
    if augmentation:
        augmentation.check(records)
    sources = sources or [index_sampler.Source("training data", len(records))]
    order = index_sampler.Order(seed, sources, batch_size=spec.batch_size)

    def plan() -> Iterator[list[Example]]:
        for step in range(start_step, total_steps):
            numbers = order.records(step)[spec.local_slice].tolist()
            positions = order.positions(step)[spec.local_slice].tolist()
            yield [(records[i], p) for i, p in zip(numbers, positions, strict=True)]

    encode = functools.partial(
        _encode_training,
        tokenizer=tokenizer,
        spec=spec,
        augmentation=augmentation,
        noise=noise,
        seed=seed if spec.draw_answers else None,
    )
    read = read_images or functools.partial(_read_pixels, augmentation=augmentation)
    batches = _make_batches(plan, encode, spec, read)
    if not text_lens:
        return batches
    return prefix_lm.fit_lengths(
        batches, text_lens=text_lens, longest=spec.text_len, largest=largest
    )


def eval_batches(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    spec: BatchSpec,
    *,
    read_images: ReadImages | None = None,
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
    return _number_rows(records, encode, spec, read_images or _read_pixels)


def validation_batches(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    spec: BatchSpec,
    *,
    noise: noise_boxes.NoiseBoxes | None = None,
    read_images: ReadImages | None = None,
) -> Iterator[Batch]:
    """As `eval_batches`, with text and masks as in training: for the loss over all records."""
    check_records(records, spec)
    encode = functools.partial(_encode_training, tokenizer=tokenizer, spec=spec, noise=noise)
    return _number_rows(records, encode, spec, read_images or _read_pixels)


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


def _number_rows(
    records: Sequence[data_records.Record], encode: Encode, spec: BatchSpec, read: ReadImages
) -> Iterator[Batch]:
    """Yields the batches of all records in order, with `_mask` and `index`."""
    numbers = np.arange(-(-len(records) // spec.batch_size) * spec.batch_size)
    numbers = numbers.reshape(-1, spec.batch_size)[:, spec.local_slice]
    examples = list(zip(records, range(len(records)), strict=True))
    plan = [[examples[min(number, len(records) - 1)] for number in row] for row in numbers.tolist()]
    batches = _make_batches(lambda: plan, encode, spec, read)
    for number, batch in zip(numbers, batches, strict=True):
        is_real = number < len(records)
        index = np.where(is_real, number, -1).astype(np.int32)
        yield {**batch, "_mask": is_real, "index": index}


def _read_pixels(
    plan: Plan,
    spec: BatchSpec,
    augmentation: augment.Augmenter | None = None,
) -> Iterator[Batch]:
    pixels = read_image_batches(
        plan,
        res=spec.res,
        batch_size=spec.local_batch_size,
        max_images=spec.max_images,
        num_workers=spec.num_workers,
        prefetch=spec.prefetch,
        augmentation=augmentation,
        resampling=spec.resampling,
    )
    return ({"image": array} for array in pixels)


def _make_batches(plan: Plan, encode: Encode, spec: BatchSpec, read: ReadImages) -> Iterator[Batch]:
    """Yields a batch for each list of examples in `plan()`."""
    images = read(plan, spec)
    for examples in plan():
        encoded = [_encode_row(encode, record, position) for record, position in examples]
        used = np.array([len(record.images) for record, _ in examples])
        yield {
            **next(images),
            "mask_image": np.arange(spec.max_images) < used[:, None],
            **{key: np.stack([row[key] for row in encoded]) for key in encoded[0]},
        }


def _encode_row(encode: Encode, record: data_records.Record, position: int) -> Batch:
    try:
        return encode(record, position)
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error


def _encode_training(
    record: data_records.Record,
    position: int,
    *,
    tokenizer: tokens.Tokenizer,
    spec: BatchSpec,
    augmentation: augment.Augmenter | None = None,
    noise: noise_boxes.NoiseBoxes | None = None,
    seed: int | None = None,
) -> Batch:
    suffix = augmentation.answer(record, position) if augmentation else record.suffix or ""
    if seed is not None:
        suffix = draw_answer(record, position, seed=seed) or suffix
    row = prefix_lm.encode_training(tokenizer, record.prefix, suffix, **spec.text_options)
    return noise.fill(row, position) if noise else row


def draw_answer(record: data_records.Record, position: int, *, seed: int) -> str | None:
    """Returns one of a record's answers, which follows from (seed, position); None without any."""
    answers = text_metrics.find_references(None, record.extra)
    if not answers:
        return None
    (number,) = index_sampler.uniforms(seed, index_sampler.DRAW_ANSWERS, position, 1)
    return answers[int(number * len(answers))]


def _encode_prompt(
    record: data_records.Record, position: int, *, tokenizer: tokens.Tokenizer, spec: BatchSpec
) -> Batch:
    del position  # A prompt is the same wherever it stands.
    return prefix_lm.encode_prompt(tokenizer, record.prefix, **spec.text_options)


def read_image_batches(
    plan: Plan,
    *,
    res: int,
    batch_size: int,
    max_images: int,
    num_workers: int | None = None,
    prefetch: int = 2,
    augmentation: augment.Augmenter | None = None,
    resampling: str = images.BILINEAR,
) -> Iterator[np.ndarray]:
    """Yields uint8[B, M, R, R, 3] for each batch of `plan()`; an unused slot is zeros.

    With another resampling images have another `images.shape`.

    Args:
      plan: batches of `batch_size` examples.
      res: R, in pixels.
      batch_size: B.
      max_images: M.
      num_workers: images decoded at a time; None is one per core.
      prefetch: batches made ahead of use.
      augmentation: changes the images of every example in its own way.
      resampling: how images become squares, one of `images.RESAMPLINGS`.

    Raises:
      ValueError: an image that cannot be read, naming the record's source.
    """
    tf = images.tensorflow()
    num_slots = batch_size * max_images
    shape = images.shape(res, resampling)

    def load(path, numbers):
        if augmentation is None:
            return images.load_op(path, res=res, resampling=resampling)
        chosen = augmentation.settings
        return augment.load_op(path, numbers, res=res, settings=chosen, resampling=resampling)

    def load_slot(path, numbers):
        unused = tf.zeros(shape, tf.uint8)
        return tf.cond(path == "", lambda: unused, lambda: load(path, numbers))

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
            chosen = [record for record, _ in examples]
            _raise_bad_image(chosen, error, res=res, resampling=resampling)
        yield batch.reshape(batch_size, max_images, *shape)


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


def _raise_bad_image(
    chosen: Sequence[data_records.Record], error: Exception, *, res: int, resampling: str
) -> NoReturn:
    """Finds which image of a batch TensorFlow could not read, and says where it is from."""
    for record in chosen:
        for path in record.images:
            images.load(path, res=res, resampling=resampling, source=record.source)
    sources = ", ".join(record.source for record in chosen)
    raise ValueError(f"an image of {sources} could not be read, and now can: {error}") from error
