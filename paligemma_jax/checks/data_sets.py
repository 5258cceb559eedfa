"""From settings to what is wrong with their data: every data set read, linted, measured."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from paligemma_jax.assembly import datasets
from paligemma_jax.checks import findings, lint, lint_images
from paligemma_jax.console import say
from paligemma_jax.data import image_files, jsonl, prefix_lm, records, tokens
from paligemma_jax.reports import sections
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text, task
from paligemma_jax.wording import phrases

Finding = findings.Finding

TRAINING = "training data"
# Answers of so few kinds are classes; of more they are free text.
MAX_ANSWERS = 50
MAX_BINS = 12
BAR_WIDTH = 30


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that the settings name: its key, its file, and how its rows are read.

    `num_examples` None is all of them; `fields` and `prefix_template` None are `input.data`'s.
    """

    name: str
    key: str
    fname: str | None
    image_dir: str | None
    is_training: bool = False
    num_examples: int | None = None
    fields: Mapping[str, str] | None = None
    prefix_template: str | None = None


def look(
    settings: schema.Settings, tokenizer: tokens.Tokenizer | None, *, full: bool
) -> tuple[sections.Section, list[Finding], datasets.Records]:
    """Returns (what there is, what is wrong with it, the records to train on).

    Args:
      settings: of the run.
      tokenizer: to measure texts with; None where there is none.
      full: decode every image.
    """
    problems: list[Finding] = []
    facts, sets, raw, training = [], [], {}, []
    for source in list_sources(settings):
        try:
            examples, report = scan(settings, source)
        except (ValueError, OSError) as error:
            remedy = _with_about(settings, f"set {source.key} to a JSONL file that is there")
            problems.append(Finding("error", "cannot be read", str(error), remedy, source.name))
            continue
        raw[source.name] = examples
        training += examples if source.is_training else []
        facts.append((source.name, describe(source, examples, report)))
        report.remedies[records.MISSING] = _with_about(settings, report.remedy(records.MISSING))
        problems += lint.bad_lines(source.name, report)
        sets.append((source, datasets.as_learnt(settings, examples)))
    problems += unscored_rows(settings, raw)
    linted = classify(settings, sets)
    problems += lint_texts(settings, linted)
    lengths = {} if tokenizer is None else measure(settings, tokenizer, raw)
    allowed, suggested = settings.input.allow_truncation, suggest_text_len(lengths)
    for name, report in lengths.items():
        problems += lint.lengths(name, report, suggested=suggested, allow_truncation=allowed)
    problems += lint.spare_length(settings.input.text_len, lengths.values())
    size_facts, image_findings = look_at_images(settings, linted, full=full)
    parts = (
        sections.Facts((*facts, *size_facts)),
        class_table(linted),
        length_table(lengths, settings.input.text_len),
    )
    section = sections.Section("data", "Data", parts)
    return section, problems + image_findings, training


def _with_about(settings: schema.Settings, remedy: str) -> str:
    """Returns a remedy and, where the config says it, what the data must be."""
    about = settings.input.data.about
    return f"{remedy}. {about}" if about else remedy


def list_sources(settings: schema.Settings) -> list[Source]:
    """Returns the training data, or every source of a mixture, and the data of every evaluation."""
    given, sources = settings.input.data, []
    limit = settings.input.num_examples
    for name, part in settings.input.mixture.items():
        key = f"input.mixture.{name}"
        sources.append(
            Source(
                key,
                f"{key}.fname",
                part.fname,
                part.image_dir,
                is_training=True,
                num_examples=limit,
                fields=part.fields,
                prefix_template=part.prefix_template,
            )
        )
    if not sources:
        sources = [Source(TRAINING, "input.data.fname", given.fname, given.image_dir, True, limit)]
    for name, chosen in settings.evals.items():
        paths, key = (chosen.fname, chosen.image_dir), f"evals.{name}"
        if chosen.fname != schema.INPUT:
            sources.append(Source(key, f"{key}.fname", *paths, num_examples=chosen.num_examples))
    return sources


def scan(settings: schema.Settings, source: Source) -> tuple[list[records.Record], jsonl.Report]:
    """Returns the records of the good lines, and the bad ones. Suffixes are not looked at."""
    if not source.fname:
        raise ValueError(f"{source.key} is not set: the path of a JSONL file")
    with say.progress(f"reading {source.fname}", unit="B", unit_scale=True) as report:
        examples, bad = records.scan_jsonl(
            source.fname,
            keys=source.fields or settings.input.data.fields,
            prefix_template=source.prefix_template or settings.input.data.prefix_template,
            image_dir=source.image_dir or None,
            progress=report,
        )
    return examples[: source.num_examples], bad


def unscored_rows(
    settings: schema.Settings, raw: Mapping[str, Sequence[records.Record]]
) -> list[Finding]:
    """Returns the rows that evaluations would refuse: without a key that one of their scores reads.

    `raw`: the records of each data set by its name.
    """
    problems, training = (
        [],
        [source.name for source in list_sources(settings) if source.is_training],
    )
    for name, chosen in settings.evals.items():
        names = training if chosen.fname == schema.INPUT else [f"evals.{name}"]
        members = [record for one in names for record in raw.get(one, ())]
        try:
            judge = task.look_up(settings.task, task.Options(scores=tuple(chosen.scores or ())))
        except ValueError:  # an unknown score, which is said of the settings
            continue
        shown = members[: chosen.num_examples or None]
        problems += lint.unscored(f"evals.{name}", shown, check_row=judge.check_row)
    return problems


def describe(source: Source, examples: datasets.Records, report: jsonl.Report) -> str:
    """Returns a data set in a line."""
    images = {path for record in examples for path in record.images}
    parts = [
        phrases.count(len(examples), "rows"),
        *([phrases.count(report.num_bad, "bad lines")] if report.num_bad else []),
        phrases.count(len(images), "images"),
    ]
    return f"{', '.join(parts)}, {source.fname}"


def classify(
    settings: schema.Settings, sets: Sequence[tuple[Source, datasets.Records]]
) -> list[lint.DataSet]:
    """Returns data sets with the class names of each row, where the task has classes.

    The classes of boxes and masks are their labels; short answers of few kinds are classes too.
    """
    chosen = datasets.make_reader(settings)
    answers = {record.suffix for _, examples in sets for record in examples}
    is_closed = (
        chosen.has_short_answers
        and len(answers) <= MAX_ANSWERS
        and not task.find_mismatch(settings.task, [answer or "" for answer in answers])
    )
    classified = []
    for source, examples in sets:
        if is_closed:
            answered = [(record.suffix,) if record.suffix else () for record in examples]
        else:
            parsed = (chosen.parse(record.suffix or "") for record in examples)
            answered = [tuple(filter(None, chosen.labels(one))) for one in parsed]
        asked = [tuple(box_text.prefix_classes(record.prefix)) for record in examples]
        classified.append(lint.DataSet(source.name, examples, answered, asked, source.is_training))
    return classified


def lint_texts(settings: schema.Settings, sets: Sequence[lint.DataSet]) -> list[Finding]:
    """Returns what is wrong with answers, prompts and class names."""
    reader, problems = datasets.make_reader(settings), lint.other_task(sets, settings.task)
    refused = {one.subject for one in problems if one.severity == "error"}
    for one in sets:
        if one.name not in refused:
            problems += lint.suffixes(one.name, one.records, parse=reader.parse, check=reader.check)
        problems += lint.image_slots(one.name, one.records, settings.input.max_images)
        problems += lint.prompts(one)
    return problems + lint.spellings(sets) + lint.balance(sets)


def measure(
    settings: schema.Settings,
    tokenizer: tokens.Tokenizer,
    examples: dict[str, list[records.Record]],
) -> dict[str, prefix_lm.LengthReport]:
    """Returns how long the texts of each data set are."""
    reports = {}
    for name, members in examples.items():
        if not members:
            continue
        with say.progress(f"measuring {name}", unit="records") as progress:
            reports[name] = prefix_lm.length_report(
                members,
                tokenizer,
                text_len=settings.input.text_len,
                lowercase=settings.input.lowercase,
                progress=progress,
            )
    return reports


def suggest_text_len(reports: Mapping[str, prefix_lm.LengthReport]) -> int:
    """Returns the text_len that fits all data sets; 0 where there are none."""
    return max((report.suggested_text_len for report in reports.values()), default=0)


def look_at_images(
    settings: schema.Settings, sets: Sequence[lint.DataSet], *, full: bool
) -> tuple[list[tuple[str, str]], list[Finding]]:
    """Returns (sizes, what is wrong): equal files, empty ones, and with `full` broken ones."""
    num_workers = settings.input.num_workers or os.cpu_count() or 1
    every = list(dict.fromkeys(p for one in sets for r in one.records for p in r.images))
    sizes = image_files.read_sizes(every)
    with say.progress("comparing images", unit="B", unit_scale=True) as progress:
        contents = image_files.find_contents(sizes, num_workers=num_workers, progress=progress)
    problems = lint_images.between(sets, contents)
    for one in sets:
        problems += lint_images.empty_files(one, sizes) + lint_images.within(one, contents)
    if not full:
        return [], problems
    paths = [path for path in every if sizes.get(path) != 0]
    with say.progress("decoding images", unit="images") as progress:
        files = image_files.decode_all(paths, num_workers=num_workers, progress=progress)
    for one in sets:
        problems += lint_images.decoded_files(one, files)
    return [("image sizes", describe_sizes(list(files.values()), res=settings.res))], problems


def describe_sizes(files: Sequence[image_files.ImageFile], *, res: int) -> str:
    """Returns the smallest, the middle and the largest image in a line."""
    by_area = sorted((f for f in files if not f.problem), key=lambda f: f.width * f.height)
    if not by_area:
        return "none could be decoded"
    chosen = (by_area[0], by_area[len(by_area) // 2], by_area[-1])
    least, middle, most = (f"{file.width}x{file.height}" for file in chosen)
    small = sum(min(file.width, file.height) < res for file in by_area)
    enlarged = f"; {small:,} have a side below {res}" if small else ""
    return f"{len(by_area):,} decoded: {least} to {most}, median {middle}{enlarged}"


def class_table(sets: Sequence[lint.DataSet]) -> sections.Table:
    """Returns how often each class is there, and in how many rows, for each data set."""
    counts = lint.count_named_classes(sets)
    names = [one.name for one in sets]
    lines = []
    for label, inner in counts.items():
        pairs = (inner[name] for name in names)
        lines.append((label, *(f"{n:,} in {phrases.count(r, 'rows')}" for n, r in pairs)))
    return sections.Table("Classes", ("class", *names), tuple(lines))


def length_table(reports: dict[str, prefix_lm.LengthReport], text_len: int) -> sections.Table:
    """Returns a histogram of the text_len that rows need, all data sets together.

    It begins with the shortest row.
    """
    longest = max((report.longest for report in reports.values()), default=0)
    width = max(1, -(-longest // MAX_BINS))
    bins = [0] * (-(-longest // width) if longest else 0)
    for report in reports.values():
        for needed, count in report.counts.items():
            bins[(needed - 1) // width] += count
    most = max(bins, default=0)
    lines = tuple(
        (
            f"{i * width + 1}-{(i + 1) * width}" if width > 1 else str(i + 1),
            f"{n:,}",
            "#" * -(-n * BAR_WIDTH // most),
        )
        for i, n in enumerate(bins)
        if any(bins[: i + 1])
    )
    fits = suggest_text_len(reports)
    title = f"Tokens that a row needs (text_len is {text_len}, {fits} fits all)"
    return sections.Table(title, ("tokens", "rows", ""), lines)
