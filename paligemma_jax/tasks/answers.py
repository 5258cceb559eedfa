"""Tasks whose answers are words or JSON, scored by metrics by name: vqa, caption and json."""

import functools
from collections.abc import Callable

from paligemma_jax.tasks import definition, metrics, structure_metrics, text_metrics


def make(
    name: str,
    options: definition.Options,
    *,
    usual_scores: tuple[str, ...],
    looks: tuple[str, ...],
    form: str,
    remedy: str | None,
    imports: tuple[definition.Import, ...],
    has_short_answers: bool,
    check: Callable[[str], str | None] = text_metrics.check_answer,
) -> definition.Task:
    """Returns a task of text; the first of its metrics leads.

    Args:
      name: of the task.
      options: its `scores` replace the usual ones.
      usual_scores, looks, form, remedy, imports, has_short_answers, check: see `definition.Task`.

    Raises:
      ValueError: no such score.
    """
    scores = options.scores or usual_scores
    chosen = metrics.choose(scores)
    return definition.Task(
        name=name,
        parse=text_metrics.canonical,
        format=text_metrics.format_answer,
        check=check,
        labels=lambda _: (),
        has_short_answers=has_short_answers,
        score_example=functools.partial(text_metrics.score_example, metrics=chosen),
        aggregate=functools.partial(text_metrics.aggregate, metrics=chosen),
        check_row=functools.partial(text_metrics.check_row, metrics=chosen),
        usual_scores=usual_scores,
        metric=scores[0],
        score_docs={},
        first_scores=(),
        draw=lambda _: definition.NOTHING_DRAWN,
        grammar=None,
        looks=looks,
        form=form,
        remedy=remedy,
        imports=imports,
        needs_codec=False,
        moves_boxes=False,
        takes_noise_boxes=False,
        keeps_coordinates=False,
    )


CAPTION = definition.Import(
    name="caption",
    prompt="caption en",
    fields=(),
    source=definition.CAPTIONS,
    answer="text",
    columns=("image", "caption"),
)


def make_caption(options: definition.Options) -> definition.Task:
    """Returns the task of descriptions."""
    return make(
        "caption",
        options,
        usual_scores=("word_f1", "exact_match"),
        looks=(definition.WORDS, definition.JSON),
        form="two dogs play on a beach",
        remedy=None,  # that of short answers names both
        imports=(CAPTION,),
        has_short_answers=False,
    )


VQA = definition.Import(
    name="vqa",
    prompt="answer en {question}",
    fields=("question",),
    source=definition.QUESTIONS,
    answer="text",
    columns=("image", "question", "answer"),
    endings=(".csv", ".tsv", ".parquet", ".arrow"),
)


def make_vqa(options: definition.Options) -> definition.Task:
    """Returns the task of short answers."""
    return make(
        "vqa",
        options,
        usual_scores=("exact_match",),
        looks=(definition.WORDS, definition.JSON),
        form="two dogs",
        remedy="set task='vqa' (or 'caption': scored by its words)",
        imports=(VQA,),
        has_short_answers=True,
    )


COUNTING = definition.Import(
    name="counting",
    prompt="count {classes} and answer in JSON",
    fields=("classes",),
    source=definition.OBJECTS,
    answer="counts",
    columns=("image", "objects"),
    scores=("count_exact", "json_f1"),
)


def make_json(options: definition.Options) -> definition.Task:
    """Returns the task of answers in JSON."""
    return make(
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
