"""The keys of one source of a mixture, `input.mixture.NAME.*`."""

from paligemma_jax.settings import spec

# Every line of the table says them.
Key, NUMBER, OPTIONAL = spec.Key, spec.NUMBER, spec.OPTIONAL

KEYS = (
    Key("fname", None, (str,), "data set: a JSONL file"),
    Key("weight", 1.0, NUMBER, "its part of the examples, relative to the other sources'"),
    Key("image_dir", None, (str, *OPTIONAL), "its images; None: beside its own JSONL file"),
    Key("fields", None, (dict, *OPTIONAL), "its names; None: those of input.data.fields"),
    Key(
        "prefix_template",
        None,
        (str, *OPTIONAL),
        "its prompts; None: those of input.data.prefix_template",
    ),
)
