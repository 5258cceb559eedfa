"""The first thing to try with new data: 8 examples, until the model repeats them.

Every config of the project takes it as an argument (`configs/vqa_448.py:overfit`). A run that does
not get there has something wrong that more data will not mend: answers that the picture or the
prompt do not decide, a rate that is too low, weights that do not fit, too little that trains.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from paligemma_jax.settings import keys, schema

NUM_EXAMPLES = 8
MAX_STEPS = 400
WARMUP_STEPS = 10
LOG_STEPS = 20  # between two rows of metrics, and two looks at the answers
NAME, SCORE = "overfit", "verbatim"
# Of a schedule, what says how high it is and not how it goes on.
HEIGHT = ("base", "scale_with_batchsize")


def make(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the settings changed to learn the first 8 examples by heart, and then to stop.

    What trains stays, with its optimizer and its rate, which no longer decays. What keeps a model
    from repeating its examples goes: augmentation, dropout, label smoothing, noise boxes, truncated
    texts. There is one evaluation, of the examples themselves; state is not saved on the way.
    """
    batch_size = min(config.input.batch_size, NUM_EXAMPLES)
    # Micro-batches are not larger than before: they decide the memory.
    micro_batch_size = config.input.batch_size // config.accumulation_steps
    config.accumulation_steps = next(
        parts
        for parts in range(1, batch_size + 1)
        if batch_size % parts == 0 and batch_size <= parts * micro_batch_size
    )
    config.input.update(
        num_examples=NUM_EXAMPLES, batch_size=batch_size, allow_truncation=False, noise_piece=None
    )
    for key in keys.keys_of(schema.AugmentSettings):
        config.input.augment[key.name] = key.default
    config.model.img.dropout = config.model.llm.dropout = config.lora.dropout = 0.0
    config.label_smoothing, config.ema_decay = 0.0, None
    config.log_training_steps = LOG_STEPS
    config.total_epochs = config.total_examples = None
    config.total_steps, config.stop_at = MAX_STEPS, [(f"{NAME}/{SCORE}", 1.0)]
    config.schedule = _constant(config.schedule)
    config.evals = {NAME: dict(fname=schema.INPUT, log_steps=LOG_STEPS)}
    config.ckpt_epochs = config.ckpt_examples = config.ckpt_percent = None
    config.ckpt_steps, config.keep_every, config.keep_best = 0, None, None
    return config


def _constant(schedule: Any) -> Any:
    """Returns a schedule, or rules on schedules, that stays up after a short warm-up."""
    if isinstance(schedule, list | tuple):
        return [(regex, _constant(inner)) for regex, inner in schedule]
    if not isinstance(schedule, Mapping | ml_collections.ConfigDict):
        return schedule
    height = {key: schedule[key] for key in HEIGHT if key in schedule}
    return {"decay_type": "constant", "warmup_steps": WARMUP_STEPS, **height}
