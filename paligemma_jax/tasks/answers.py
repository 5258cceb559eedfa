"""Tasks whose answers are words, scored by metrics that are chosen by name."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from paligemma_jax.tasks import answer_text, definition, metrics, text_metrics


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
    check: Callable[[str], str | None] = answer_text.check,
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

    def score_example(
        prediction: str,
        *,
        suffix: str | None,
        tokens: definition.Tokens | None = None,
        extra: Mapping[str, Any] | None = None,
        draw_truth: Callable[[], Any] | None = None,  # noqa: ARG001 (a ScoreExample)
    ) -> dict[str, Any]:
        return text_metrics.score_example(
            prediction, suffix=suffix, tokens=tokens, extra=extra, metrics=chosen
        )

    return definition.Task(
        name=name,
        parse=answer_text.parse,
        format=answer_text.format,
        check=check,
        labels=lambda _: (),
        has_short_answers=has_short_answers,
        score_example=score_example,
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
