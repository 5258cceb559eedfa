"""The keys of one evaluation, `evals.NAME.*`."""

from paligemma_jax.settings import spec

# Every line of the table says them.
Key, NUMBER, OPTIONAL = spec.Key, spec.NUMBER, spec.OPTIONAL

# Instead of a file: the examples that are trained on.
INPUT = "input"

KEYS = (
    Key("fname", None, (str,), f"data set: a JSONL file, or '{INPUT}': what is trained on"),
    Key("image_dir", None, (str, *OPTIONAL), "its images; None: beside its own JSONL file"),
    Key("log_steps", None, (int, *OPTIONAL), "how often; one of four, and always after the last"),
    Key("log_epochs", None, (*NUMBER, *OPTIONAL), "how often, in passes over the training data"),
    Key("log_examples", None, (int, *OPTIONAL), "how often, in training examples"),
    Key("log_percent", None, (*NUMBER, *OPTIONAL), "how often, as a fraction of the run"),
    Key("batch_size", None, (int, *OPTIONAL), "None: the training batch size", least=1),
    Key(
        "num_examples",
        None,
        (int, *OPTIONAL),
        "use only the first so many rows; None: all",
        least=1,
    ),
    Key("decode", True, (bool,), "write and score answers; False: validation loss only"),
    Key(
        "scores",
        None,
        (list, tuple, *OPTIONAL),
        "scores of answers in words, the leading one first; None: the task's usual ones",
    ),
    Key(
        "max_new_tokens",
        None,
        (int, *OPTIONAL),
        "None: the longest true answer, and 16 more",
        least=1,
    ),
    Key(
        "sampler",
        "greedy",
        (str,),
        "how tokens are chosen",
        ("greedy", "temperature", "nucleus", "beam"),
    ),
    Key("temperature", 1.0, NUMBER, "of the samplers temperature and nucleus"),
    Key("top_p", 1.0, NUMBER, "probability mass that the sampler nucleus keeps"),
    Key("beam_size", 4, (int,), "of the sampler beam", least=1),
    Key(
        "constrain",
        None,
        (str, list, tuple, *OPTIONAL),
        "hold answers to a grammar: 'task' (boxes or masks with the labels that the prompt names), "
        "a list (of labels, or of whole answers), or the path of a JSON schema; None: free",
    ),
    Key("best_of", 1, (int,), "sample so many answers and keep the likeliest", least=1),
)


def names() -> list[str]:
    """Returns the names of all keys."""
    return [key.name for key in KEYS]
