"""Short answers to questions about an image."""

from paligemma_jax.tasks import answers, definition

IMPORT = definition.Import(
    name="vqa",
    prompt="answer en {question}",
    fields=("question",),
    source=definition.QUESTIONS,
    answer="text",
    columns=("image", "question", "answer"),
    endings=(".csv", ".tsv", ".parquet", ".arrow"),
)


def make(options: definition.Options) -> definition.Task:
    """Returns the task of short answers."""
    return answers.make(
        "vqa",
        options,
        usual_scores=("exact_match",),
        looks=(definition.WORDS, definition.JSON),
        form="two dogs",
        remedy="set task='vqa' (or 'caption': scored by its words)",
        imports=(IMPORT,),
        has_short_answers=True,
    )
