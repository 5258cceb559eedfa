"""What a run trains on: records of one source or several, checked, and how they are changed."""

import dataclasses

import ml_collections

from paligemma_jax.build import data, terminal
from paligemma_jax.data import augment, order, pipeline, tokens


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Everything that `pipeline.train_batches` reads.

    Attributes:
      records: of all sources, one after the other.
      sources: what they are from.
      augmentation: changes them; None: nothing does.
    """

    records: data.Records
    sources: tuple[order.Source, ...]
    augmentation: augment.Augmenter | None


def read(config: ml_collections.ConfigDict, tokenizer: tokens.Tokenizer) -> TrainingData:
    """Reads and checks all records, and says how long they are and how they are changed."""
    records = data.read_records(
        config,
        config.input.data.fname,
        key="input.data.fname",
        image_dir=config.input.data.image_dir,
    )
    data.check_lengths(config, records, tokenizer, name="training data")
    pipeline.check_records(records, data.spec(config))
    augmentation = make_augmenter(config)
    if augmentation:
        augmentation.check(records)
        terminal.say(f"augmentation: {augmentation.settings.describe()}")
    return TrainingData(records, (order.Source("data", len(records)),), augmentation)


def make_augmenter(config: ml_collections.ConfigDict) -> augment.Augmenter | None:
    """Returns what changes training examples, or None where nothing does.

    Raises:
      ValueError: a setting out of its range.
    """
    try:
        settings = augment.Augmentation(**config.input.augment.to_dict())
    except ValueError as error:
        raise ValueError(f"config: input.{error}") from error
    if settings == augment.Augmentation(min_visible=settings.min_visible):
        return None
    convention = config.coordinates if config.task == "detection" else None
    return augment.Augmenter(settings, config.seed, convention)
