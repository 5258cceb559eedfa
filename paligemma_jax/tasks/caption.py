"""Descriptions of an image."""

from paligemma_jax.tasks import answers, definition

IMPORT = definition.Import(
    name="caption",
    prompt="caption en",
    fields=(),
    source=definition.CAPTIONS,
    answer="text",
    columns=("image", "caption"),
)


def make(options: definition.Options) -> definition.Task:
    """Returns the task of descriptions."""
    return answers.make(
        "caption",
        options,
        usual_scores=("word_f1", "exact_match"),
        looks=(definition.WORDS, definition.JSON),
        form="two dogs play on a beach",
        remedy=None,  # that of short answers names both
        imports=(IMPORT,),
        has_short_answers=False,
    )
