"""The keys that say when the state of a run is saved, and what is kept; part of keys.KEYS."""

from paligemma_jax.settings import spec

# Every line of the table says them.
Key, NUMBER, OPTIONAL = spec.Key, spec.NUMBER, spec.OPTIONAL

KEYS = (
    Key(
        "ckpt_steps",
        None,
        (int, *OPTIONAL),
        "save the run's state every so many steps; 0: only when it stops; none of the four: ten "
        "times a run",
        least=0,
    ),
    Key("ckpt_epochs", None, (*NUMBER, *OPTIONAL), "how often, in passes over the data", least=0),
    Key("ckpt_examples", None, (int, *OPTIONAL), "how often, in examples", least=0),
    Key("ckpt_percent", None, (*NUMBER, *OPTIONAL), "how often, as a fraction of the run", least=0),
    Key("keep_last", 2, (int,), "checkpoints that stay: so many of the newest", least=1),
    Key(
        "keep_every",
        None,
        (int, *OPTIONAL),
        "also save, and keep for good, every so many steps",
        least=1,
    ),
    Key(
        "keep_best",
        None,
        (str, *OPTIONAL),
        "also save, and keep, after the best evaluation: valid/map50; of valid/loss the least",
    ),
)
