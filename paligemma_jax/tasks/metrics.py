"""The metrics of answers in words or JSON by name, and the tasks that they score."""

import functools
from collections.abc import Callable, Sequence

from paligemma_jax.tasks import answer_metrics, box_text, definition, mask_text, text_metrics
from paligemma_jax.wording import phrases

Metric = text_metrics.Metric

METRICS = {
    "exact_match": Metric("one of the true answers", answer_metrics.exact_match),
    "vqa_accuracy": Metric("min(1, people who agree / 3)", answer_metrics.vqa_accuracy),
    "vqav2_accuracy": Metric(
        "VQAv2: the same, leaving one out, spelling changed; by answer_type",
        answer_metrics.vqav2_accuracy,
        groups=("answer_type",),
        needs=("answers",),
    ),
    "anls": Metric("DocVQA, InfoVQA: 1 - edit distance, 0 below one half", answer_metrics.anls),
    "relaxed_accuracy": Metric("ChartQA: numbers within 5%", answer_metrics.relaxed_accuracy),
    "pope_accuracy": Metric(
        "POPE: yes or no",
        answer_metrics.pope_accuracy,
        answer_metrics.summarize_pope,
        further={"pope_valid": "share of answers that are yes or no"},
    ),
    "tallyqa_accuracy": Metric(
        "TallyQA: counts, also as words; per count, and by issimple",
        answer_metrics.tallyqa_accuracy,
        answer_metrics.summarize_tallyqa,
        groups=("issimple",),
    ),
    "scienceqa_accuracy": Metric(
        "ScienceQA: the letter in 'the answer is a.'",
        answer_metrics.scienceqa_accuracy,
        answer_metrics.summarize_scienceqa,
        further={"scienceqa_parse_failures": "share of answers without a letter"},
    ),
    "rsvqa_accuracy": Metric(
        "RSVQA: exact match, by question_type, and the mean over types",
        answer_metrics.exact_match,
        answer_metrics.summarize_rsvqa,
        groups=("question_type",),
        needs=("question_type",),
        further={
            "rsvqa_average": "mean over question types",
            "rsvqa_average_nonum": "the same without counts",
        },
    ),
    "json_f1": Metric(
        "share of a JSON's fields, as F1",
        text_metrics.json_f1,
        text_metrics.summarize_json,
        further={"json_valid": "share of answers that are JSON"},
    ),
    "json_exact": Metric("all fields of a JSON", text_metrics.json_exact),
    "count_exact": Metric('{"dime": 2}: all counts, zeros left out', text_metrics.count_exact),
    "event_phase_f1": Metric(
        "'fall: start; cry: end', or sentences: pairs, as F1", text_metrics.event_phase_f1
    ),
    "event_f1": Metric("the same without phases", text_metrics.event_f1),
    "word_f1": Metric("words shared with the truth, as F1", answer_metrics.word_f1),
    "cider": Metric("CIDEr-D, 0..10", summarize=answer_metrics.summarize_cider),
    "bleu4": Metric("BLEU-4", summarize=answer_metrics.summarize_bleu),
    "rouge_l": Metric("ROUGE-L", answer_metrics.rouge_l),
}
NOT_HERE = {
    "meteor": "METEOR needs Java, or WordNet from a server. ",
    "spice": "SPICE needs Java. ",
}


def choose(names: Sequence[str]) -> text_metrics.Metrics:
    """Returns the metrics of these names, in their order.

    Raises:
      ValueError: a name that is unknown, given twice, or none at all.
    """
    if not names or len(set(names)) < len(names):
        raise ValueError(f"scores={list(names)}: expected one name or more, each once")
    for name in names:
        if name not in METRICS:
            hint = NOT_HERE.get(name.lower()) or phrases.did_you_mean(name, METRICS)
            raise ValueError(f"score '{name}' is unknown. {hint}Expected of {list(METRICS)}")
    return {name: METRICS[name] for name in names}


def markdown() -> str:
    """Returns the table of metrics, for docs/configs.md."""
    lines = ["| score | what it is | keys of a row |", "| --- | --- | --- |"]
    for name, metric in METRICS.items():
        keys = ", ".join(f"`{key}`" for key in dict.fromkeys((*metric.needs, *metric.groups)))
        lines.append(f"| `{name}` | {metric.doc} | {keys} |")
    return "\n".join(lines)


# The tasks: vqa, caption and json.


def make_task(
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
    chosen = choose(scores)
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
    return make_task(
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
    return make_task(
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
    return make_task(
        "json",
        options,
        check=text_metrics.check_json,
        usual_scores=("json_exact", "json_f1"),
        looks=(definition.JSON,),
        form='{"dime": 2}',
        remedy="set task='json'",
        imports=(COUNTING,),
        has_short_answers=False,
    )


def make_mixed(options: definition.Options) -> definition.Task:
    """Returns the task of data in which every row has its own: prompts tell which.

    An answer is held to the grammar of what it looks like, and may be empty, as that of a detection
    that finds nothing.
    """
    return make_task(
        "mixed",
        options,
        check=check_mixed,
        usual_scores=("exact_match",),
        looks=(definition.WORDS, definition.JSON, definition.BOXES, definition.MASKS),
        form="two dogs",
        remedy=None,
        imports=(),
        has_short_answers=False,
    )


def check_mixed(suffix: str) -> str | None:
    """Returns what keeps a suffix from being trained on as what it looks like, or None."""
    if "<seg" in suffix:
        return mask_text.check(suffix)
    return box_text.check(suffix) if "<loc" in suffix else None
