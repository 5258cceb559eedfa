"""Answers that are JSON: fields of a form, counts of things."""

from paligemma_jax.tasks import answers, definition, structure_metrics

COUNTING = definition.Import(
    name="counting",
    prompt="count {classes} and answer in JSON",
    fields=("classes",),
    source=definition.OBJECTS,
    answer="counts",
    columns=("image", "objects"),
    scores=("count_exact", "json_f1"),
)


def make(options: definition.Options) -> definition.Task:
    """Returns the task of answers in JSON."""
    return answers.make(
        "json",
        options,
        check=structure_metrics.check_json,
        usual_scores=("json_exact", "json_f1"),
        looks=(definition.JSON,),
        form='{"dime": 2}',
        remedy="set task='json'",
        imports=(COUNTING,),
        has_short_answers=False,
    )
