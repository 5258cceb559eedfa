"""What is wrong with a data set: its answers, class names, prompts and lengths.

Every function looks at whole data sets and returns findings; nothing is read from disk here. The
records are those that a model would be taught (see `prefix_lm.clean`).
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from paligemma_jax.checks import findings
from paligemma_jax.data import jsonl, prefix_lm
from paligemma_jax.data import records as data_records
from paligemma_jax.tasks import task

Finding = findings.Finding
at = findings.at

# PaliGemma 2's prompt for boxes of every class (arXiv:2412.03555, appendix C).
ALL_CLASSES = "all classes"
IMBALANCE = 50  # the most frequent class has so many times more than the rarest
OPEN_PHRASES = 10  # different ones, and half as many as rows: prompts are no list of classes
MUCH_SHORTER = 2  # text_len could be so many times smaller

# What `parse` says it dropped -> what to call it, and what to do.
BOX_PROBLEMS = {
    "zero_area": ("box of zero area", "draw it again or remove it: nothing can be inside"),
    "loc_range": ("box out of range", "a coordinate is a bin from 0000 to 1023, four digits"),
    "inverted": ("box with its corners swapped", "the order is y1 x1 y2 x2, top left corner first"),
}
BAD_SUFFIX = "suffix that the task cannot read"
OTHER_TASK = "answers of another task"
GRAMMAR = "write it as the message says; docs/data.md shows rows"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The records of one split, as they are taught.

    Attributes:
      name: "training data" or "evals.NAME".
      records: in the order of the file.
      answered: the class names in each record's suffix; none where the task has no classes.
      asked: the class names in each record's prefix; none where it asks for no class by name.
      is_training: whether a model learns from it.
    """

    name: str
    records: Sequence[data_records.Record]
    answered: Sequence[Sequence[str]]
    asked: Sequence[Sequence[str]]
    is_training: bool = False


def bad_lines(name: str, report: jsonl.Report) -> list[Finding]:
    """Returns the lines that reading refuses or changes, a finding for each kind of trouble."""
    changed = [
        Finding(
            *("note", "prompt that has the template's words", note),
            *("leave them out of one of the two, the template or the rows", name),
            count=count,
        )
        for note, count in report.notes.items()
    ]
    return changed + [
        Finding(
            *("error", kind, findings.join(messages), report.remedy(kind), name),
            count=report.kinds[kind],
            places=tuple(report.places[kind][: findings.MAX_PLACES]),
        )
        for kind, messages in report.messages.items()
    ]


def other_task(sets: Sequence[DataSet], task_name: str) -> list[Finding]:
    """Returns an error for each data set whose answers are nearly all another task's.

    Where this task trains on such answers too, it is one warning on all training data together: a
    mixture may well have a source of each task.
    """
    problems = []
    training = [record for data in sets if data.is_training for record in data.records]
    for name, records, is_refused in (
        *((data.name, data.records, True) for data in sets),
        ("training data", training, False),
    ):
        other = task.find_mismatch(task_name, [record.suffix or "" for record in records])
        if other and other.is_refused == is_refused:
            severity = "error" if is_refused else "warning"
            problems.append(Finding(severity, OTHER_TASK, other.what, other.remedy, name))
    return problems


def suffixes(
    name: str,
    records: Sequence[data_records.Record],
    *,
    parse: Callable[[str], Any],
    check: Callable[[str], str | None],
) -> list[Finding]:
    """Returns answers that are empty, and those that training refuses, by what is wrong.

    Args:
      name: of the data set.
      records: of the data set.
      parse, check: of the task; what `parse` returns may count what it `dropped`, by reason.
    """
    by_kind: dict[str, list[tuple[str, str]]] = {}
    empty = []
    for record in records:
        suffix = record.suffix or ""
        if reason := check(suffix):
            dropped = [key for key in getattr(parse(suffix), "dropped", ()) if key in BOX_PROBLEMS]
            for kind in dropped or [BAD_SUFFIX]:
                by_kind.setdefault(kind, []).append((record.source, reason))
        elif not suffix.strip():
            empty.append(record.source)
    problems = []
    for kind, members in by_kind.items():
        title, remedy = BOX_PROBLEMS.get(kind, (kind, GRAMMAR))
        places = at(source for source, _ in members)
        what = findings.join(collections.Counter(reason for _, reason in members))
        problems.append(Finding("error", title, what, remedy, name, **places))
    if empty:
        is_all = len(empty) == len(records)
        what = f"{len(empty)} of {len(records)} rows have an empty suffix: nothing to be found"
        remedy = "meant as images without objects: they teach when to stay silent"
        severity = "warning" if is_all else "note"
        problems.append(Finding(severity, "empty suffix", what, remedy, name, **at(empty)))
    return problems


def unscored(
    name: str,
    records: Sequence[data_records.Record],
    *,
    check_row: Callable[[Mapping[str, Any]], str | None],
) -> list[Finding]:
    """Returns rows that lack what a score reads, as an evaluation refuses them before it starts."""
    problems = {one.source: reason for one in records if (reason := check_row(one.extra))}
    if not problems:
        return []
    what = findings.join(collections.Counter(problems.values()))
    remedy = "add the key to these rows (an import keeps it), or choose other scores"
    return [Finding("error", "rows cannot be scored", what, remedy, name, **at(problems))]


def image_slots(name: str, records: Sequence[data_records.Record], slots: int) -> list[Finding]:
    """Returns rows with more images than `input.max_images` has slots for."""
    many = [record for record in records if len(record.images) > slots]
    if not many:
        return []
    most = max(len(record.images) for record in many)
    what = f"up to {most} images in a row, and input.max_images is {slots}"
    remedy = f"set input.max_images={most}"
    places = at(record.source for record in many)
    return [Finding("error", "too many images", what, remedy, name, **places)]


def lengths(
    name: str, report: prefix_lm.LengthReport, *, suggested: int, allow_truncation: bool
) -> list[Finding]:
    """Returns texts that lose their eos, and texts of other stacks.

    `suggested`: the text_len that fits all data sets.
    """
    problems = []
    if report.too_long:
        what = (
            f"{len(report.too_long)} of {report.num_records} rows need more than text_len "
            f"{report.text_len} (up to {report.longest}): a model that never sees eos does not "
            f"learn to stop"
        )
        if report.num_without_target:
            what += f"; {report.num_without_target} have no answer left to learn"
        severity = "warning" if allow_truncation else "error"
        remedy = prefix_lm.make_room(suggested)
        places = at(f"{source} (needs {needed})" for source, needed in report.too_long)
        problems.append(Finding(severity, "no room for eos", what, remedy, name, **places))
    for removed, count in report.removed.items():
        what = f"{removed}: removed, because it is added when a row is made"
        remedy = "leave it out of the file"
        problems.append(
            Finding("note", "bos, newline or eos of its own", what, remedy, name, count)
        )
    return problems


def spare_length(text_len: int, reports: Iterable[prefix_lm.LengthReport]) -> list[Finding]:
    """Returns a text_len that is wasteful for all data sets."""
    longest = max((report.longest for report in reports), default=text_len)
    if text_len < MUCH_SHORTER * prefix_lm.round_up(longest):
        return []
    what = f"text_len is {text_len}, the longest row needs {longest}"
    remedy = f"input.text_len={prefix_lm.round_up(longest)} is enough, and faster"
    return [Finding("note", "text_len larger than needed", what, remedy, "input.text_len")]


def prompts(data: DataSet) -> list[Finding]:
    """Returns rows whose prefix asks for other classes than the suffix names.

    A class that is asked for and not there is how a negative looks, and no finding; nor are words
    that refer to an object, "detect the dog on the left". Where prompts ask for something else in
    every other row, they are no list of classes.
    """
    nothing, more = [], []
    is_open = _is_open(data)
    for record, asked, answered in zip(data.records, data.asked, data.answered, strict=True):
        extra = {label for label in answered if not _is_named(label, asked)}
        if not asked or list(asked) == [ALL_CLASSES] or not extra:
            continue
        place = f"{record.source} (asks for {_list(asked)}; has {_list(sorted(extra))})"
        (nothing if len(extra) == len(set(answered)) else more).append(place)
    problems = []
    if is_open and (nothing or more):
        what = "the prefix has other words than the suffix, as where prompts refer to objects"
        remedy = "nothing, if the words are meant; a metric compares labels as they are written"
        places = at(nothing + more)
        kind = "prompts in words of their own"
        return [Finding("note", kind, what, remedy, data.name, **places)]
    if nothing:
        what = "the prefix names no class of the suffix"
        remedy = "one of the two is spelt wrongly, or belongs to another row"
        problems.append(
            Finding("error", "prefix names no class", what, remedy, data.name, **at(nothing))
        )
    if more:
        what = "the suffix has classes that its prefix does not ask for"
        remedy = "name every class in the prefix ('detect a ; b'), or remove these objects"
        problems.append(
            Finding("warning", "class not asked for", what, remedy, data.name, **at(more))
        )
    return problems


def _is_open(data: DataSet) -> bool:
    """Whether prompts ask for something else in every other row: they are no list of classes."""
    phrases = {phrase for asked in data.asked for phrase in asked}
    return len(phrases) >= max(OPEN_PHRASES, sum(map(bool, data.asked)) / 2)


def _is_named(label: str, asked: Sequence[str]) -> bool:
    """Whether a prompt asks for a label, in further words or without."""
    return any(f" {label} " in f" {phrase} " for phrase in asked)


def spellings(sets: Sequence[DataSet]) -> list[Finding]:
    """Returns class names that differ only by case, spaces, '-' or '_', over all data sets.

    The spelling to take is that of most objects in answers: a prompt may name every class there is.
    """
    spelt: dict[str, dict[str, list[str]]] = {}
    objects = collections.Counter()
    for data in sets:
        for record, asked, answered in zip(data.records, data.asked, data.answered, strict=True):
            objects.update(answered)
            for label in {*asked, *answered}:
                spelt.setdefault(_normalize(label), {}).setdefault(label, []).append(record.source)
    problems = []
    for variants in spelt.values():
        if len(variants) == 1:
            continue
        first, *others = sorted(
            variants, key=lambda label: (-objects[label], -len(variants[label]), label)
        )
        counts = ", ".join(f"'{label}' {objects[label]}" for label in (first, *others))
        places = at(place for label in others for place in variants[label])
        what = f"one class in {len(variants)} spellings, in answers: {counts}"
        remedy = f"write '{first}' everywhere: to a model these are different classes"
        problems.append(Finding("error", "class spelt in several ways", what, remedy, "", **places))
    return problems


def balance(sets: Sequence[DataSet]) -> list[Finding]:
    """Returns a training set whose classes differ much in number, and classes it does not have."""
    training = [data for data in sets if data.is_training]
    counts = count_classes(training)
    if not counts:
        return []
    problems = []
    totals = {label: sum(n for n, _ in inner.values()) for label, inner in counts.items()}
    if absent := sorted({label for data in training for label in _asked(data)} - set(totals)):
        what = f"{_list(absent)}: named by prompts, and in no answer of the training data"
        remedy = "add rows that have it, or leave it out of the prompts: it is never learnt"
        kind = "class without an object"
        problems.append(Finding("warning", kind, what, remedy, "training data"))
    most, least = max(totals, key=lambda k: totals[k]), min(totals, key=lambda k: totals[k])
    if totals[most] >= IMBALANCE * totals[least]:
        what = f"'{most}' is there {totals[most]} times, '{least}' {totals[least]} times"
        remedy = "look at per_class in metrics.json; add rows of the rare classes"
        kind = "classes out of balance"
        problems.append(Finding("warning", kind, what, remedy, "training data"))
    for data in sets:
        unknown: dict[str, list[str]] = {}
        for record, answered in zip(data.records, data.answered, strict=True):
            for label in set(answered) - set(totals):
                unknown.setdefault(label, []).append(record.source)
        if unknown:
            what = f"{_list(sorted(unknown))}: in no row of the training data"
            remedy = "it cannot be learnt: add it to the training data, or remove it here"
            places = at(place for members in unknown.values() for place in members)
            problems.append(
                Finding("warning", "class never trained", what, remedy, data.name, **places)
            )
    return problems


def count_classes(sets: Iterable[DataSet]) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns class name -> data set -> (how often it is in a suffix, in how many rows).

    The most frequent class comes first; every data set has an entry.
    """
    sets = list(sets)
    objects, in_rows = collections.Counter(), collections.Counter()
    for data in sets:
        for answered in data.answered:
            objects.update((label, data.name) for label in answered)
            in_rows.update((label, data.name) for label in set(answered))
    totals = collections.Counter()
    for (label, _), count in objects.items():
        totals[label] += count
    return {
        label: {data.name: (objects[label, data.name], in_rows[label, data.name]) for data in sets}
        for label, _ in totals.most_common()
    }


def count_named_classes(sets: Sequence[DataSet]) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns `count_classes`, and behind these the classes that prompts alone name, with 0."""
    counts = count_classes(sets)
    if not counts:
        return {}
    absent = sorted({label for data in sets for label in _asked(data)} - set(counts))
    return counts | {label: {data.name: (0, 0) for data in sets} for label in absent}


def _asked(data: DataSet) -> set[str]:
    """Returns the classes that a data set's prompts name."""
    asked = {label for labels in data.asked for label in labels if label != ALL_CLASSES}
    return set() if _is_open(data) else asked


def _normalize(label: str) -> str:
    return re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", label).casefold()) or label


def _list(labels: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:limit])
    return shown + (f" and {len(labels) - limit} more" if len(labels) > limit else "")
