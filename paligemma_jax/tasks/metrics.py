"""The table of scores that an evaluation of answers can ask for by name."""

from collections.abc import Sequence

from paligemma_jax.tasks import answer_metrics, caption_metrics, structure_metrics, text_metrics
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
        structure_metrics.json_f1,
        structure_metrics.summarize_json,
        further={"json_valid": "share of answers that are JSON"},
    ),
    "json_exact": Metric("all fields of a JSON", structure_metrics.json_exact),
    "count_exact": Metric('{"dime": 2}: all counts, zeros left out', structure_metrics.count_exact),
    "event_phase_f1": Metric(
        "'fall: start; cry: end', or sentences: pairs, as F1", structure_metrics.event_phase_f1
    ),
    "event_f1": Metric("the same without phases", structure_metrics.event_f1),
    "word_f1": Metric("words shared with the truth, as F1", caption_metrics.word_f1),
    "cider": Metric("CIDEr-D, 0..10", summarize=caption_metrics.summarize_cider),
    "bleu4": Metric("BLEU-4", summarize=caption_metrics.summarize_bleu),
    "rouge_l": Metric("ROUGE-L", caption_metrics.rouge_l),
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
    """Returns the table of metrics, for configs/README.md."""
    lines = ["| score | what it is | keys of a row |", "| --- | --- | --- |"]
    for name, metric in METRICS.items():
        keys = ", ".join(f"`{key}`" for key in dict.fromkeys((*metric.needs, *metric.groups)))
        lines.append(f"| `{name}` | {metric.doc} | {keys} |")
    return "\n".join(lines)
