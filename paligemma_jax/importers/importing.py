"""Imports a data set of another tool: reads, formats, divides, writes, and reads back."""

import collections
import dataclasses
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.data import jsonl, objects, records, tokens
from paligemma_jax.files import atomic
from paligemma_jax.importers import (
    example,
    formats,
    formatting,
    import_report,
    label_check,
    options,
    pictures,
    remote,
    roboflow,
    splits,
)
from paligemma_jax.tasks import task as tasks

IMAGES = "images"
TOKENIZER = "tokenizer.model"
TEXTS = ("prefix", "suffix")
PROGRESS_ROWS = 500
MAX_NAMED = 12  # classes that are left out


def import_data(chosen: options.ImportOptions) -> dict[str, Any]:
    """Imports a data set, reports on the way, and returns the summary that is also written.

    Raises:
      ValueError: a source that cannot be read or gives no rows, or rows that do not read back.
    """
    start = time.monotonic()
    # An old folder is empty, or an earlier import: `options` checked it.
    with atomic.new_folder(chosen.target) as out:
        source = chosen.source
        if roboflow.is_address(source):
            source = _fetch(chosen, out.parent / "download")
        elif remote.is_address(source):
            source = str(remote.fetch(source, split=chosen.only, first=chosen.first))
        summary = _import(chosen, source, out)
    return summary | {"seconds": time.monotonic() - start}


def _fetch(chosen: options.ImportOptions, folder: pathlib.Path) -> str:
    with say.progress(f"fetching {chosen.source}", unit="B", unit_scale=True) as report:
        roboflow.download(
            chosen.source,
            folder,
            key=os.environ.get(roboflow.KEY),
            host=os.environ.get(roboflow.HOST_ENV) or roboflow.HOST,
            with_outlines=tasks.rule(chosen.task).answer == "masks",
            progress=report,
        )
    return str(folder)


def _read(
    chosen: options.ImportOptions, source: str, tally: example.Tally
) -> tuple[str, example.DataSet]:
    """Returns (the name of the format, what the source holds)."""
    given = chosen.format or ("masks" if chosen.masks else None)
    if (inner := formats.find_root(source)) != source:
        say.info(f"all of {source} lies in {inner}")
        source = inner
    name, reason = formats.choose(source, chosen.task, given)
    reason = "as --masks says" if given != chosen.format else reason
    say.info(f"{chosen.source} is {name} ({reason})")
    request = chosen.request(source)
    formats.check_options(name, request)
    with say.progress(f"reading {name}", unit="images") as report:
        return name, formats.FORMATS[name].read(request, tally, report)


def _import(chosen: options.ImportOptions, source: str, out: pathlib.Path) -> dict[str, Any]:
    tally = example.Tally()
    name, data = _read(chosen, source, tally)
    bad = _find_bad_classes(chosen, data.classes, tally)
    data = dataclasses.replace(data, classes=tuple(c for c in data.classes if c not in bad))
    formatter = formatting.Formatter(
        chosen.task,
        data.classes,
        prompt=chosen.prompt,
        coordinates=chosen.coordinates,
        codec=chosen.codec,
    )
    if chosen.only or chosen.first is not None:
        wanted = _take(data.examples, chosen, tally)
        total = data.total if chosen.first is None else min(data.total, chosen.first)
        data = dataclasses.replace(data, examples=wanted, total=total)
    rows, ways = _make_rows(data, bad, formatter, tally, out)
    label_check.check(rows, tally, source=chosen.source, task=chosen.task, searched=data.searched)
    parts = splits.divide(rows, out, ratios=chosen.ratios, group=chosen.group, seed=chosen.seed)
    label_check.warn_of_empty_splits(parts, task=chosen.task)
    if "{classes}" in formatter.template:
        label_check.warn_of_unused_classes(data.classes, rows)
    _write(parts, tally, formatter.round_trip, out, train_tokenizer=chosen.train_tokenizer)
    reader = tasks.look_up(
        tasks.trained_as(chosen.task).name,
        tasks.Options(
            convention=chosen.coordinates, codec=chosen.codec.decode if chosen.codec else None
        ),
    )
    read_back = _read_back(chosen.task, parts, out)
    import_report.write_sheet(out / import_report.SHEET, read_back, task=reader)
    summary = _summarize(chosen, name, data.classes, tally, formatter, parts, ways)
    atomic.write_json(out / import_report.SUMMARY, summary)
    for line in import_report.lines(summary, tally):
        say.info(line)
    say.info(f"look at  {chosen.target / import_report.SHEET}")
    return summary


def _take(
    examples: Iterable[example.Example], chosen: options.ImportOptions, tally: example.Tally
) -> Iterator[example.Example]:
    """Yields the examples of the split that is asked for, as one split, and the first so many.

    Raises:
      ValueError: there are none.
    """
    seen, count, is_remote = set(), 0, remote.is_address(chosen.source)
    wanted = chosen.only and (example.split_name(chosen.only) or chosen.only)
    for one in examples:
        seen.add(one.split)
        # Of an address only the files of that split are here, whatever they are called.
        if wanted and one.split != wanted and not (one.split is None and is_remote):
            tally.changed[f"rows of other splits than {chosen.only}, left out"] += 1
            continue
        if chosen.first is not None and count >= chosen.first:
            tally.changed[f"rows behind the first {chosen.first}"] += 1
            break
        count += 1
        # One split alone may be divided anew.
        yield dataclasses.replace(one, split=None) if wanted and chosen.ratios else one
    if not count:
        known = ", ".join(sorted(filter(None, seen))) or "none"
        raise ValueError(f"SRC {chosen.source}: no rows of a split '{chosen.only}'; it has {known}")


def _find_bad_classes(
    chosen: options.ImportOptions, classes: Sequence[str], tally: example.Tally
) -> frozenset[str]:
    """Returns the classes whose names no suffix can hold, and drops them.

    Raises:
      ValueError: no other is left.
    """
    if tasks.rule(chosen.task).answer not in ("boxes", "masks"):
        return frozenset()
    problems = {name: formatting.find_problem(name) for name in classes}
    bad = frozenset(name for name, problem in problems.items() if problem)
    for name in sorted(bad):
        detail = f"'{name}': {problems[name]}. Rename it in the source"
        tally.drop("name", "cannot be written in a suffix", chosen.source, detail)
    if bad and len(bad) == len(problems):
        lines = "\n".join(import_report.drop_lines(tally))
        raise ValueError(f"{chosen.source}: no class is left\n{lines}")
    return bad


def _select(
    read: example.Example,
    classes: Sequence[str],
    bad: frozenset[str],
    left_out: collections.Counter[str],
    tally: example.Tally,
) -> example.Example | None:
    """Returns an example with the objects that are asked for, None where it lost all that it had.

    Args:
      classes: that are asked for. bad: whose names cannot be written; both are disjoint.
      left_out: gets the labels of objects that are not asked for.
      tally: gets what is lost for its name.
    """
    lost: collections.Counter[str] = collections.Counter()
    kept = example.select_classes(
        read, set(read.objects.labels) - bad if read.objects else (), lost
    )
    for label in lost.elements():
        tally.drop("object", "of a class that no suffix can hold", read.source, label)
    if lost and not kept.objects:
        tally.drop("image", "none of its objects could be kept", read.source, read.picture.name)
        return None
    return example.select_classes(kept, classes, left_out)


def _summarize(
    chosen: options.ImportOptions,
    name: str,
    classes: Sequence[str],
    tally: example.Tally,
    formatter: formatting.Formatter,
    parts: Mapping[str, list[splits.Row]],
    ways: Mapping[str, int],
) -> dict[str, Any]:
    """Returns what an import read, dropped and wrote: the content of its summary file."""
    return {
        "source": chosen.source,
        "format": name,
        "task": chosen.task,
        "prompt": formatter.template,
        "coordinates": chosen.coordinates,
        "mask_codec": chosen.mask_codec,
        "seed": chosen.seed,
        **import_report.summarize(
            classes,
            tally,
            formatter.round_trip,
            {split: len(lines) for split, lines in parts.items()},
        ),
        "images": dict(ways),
    }


def _make_rows(
    data: example.DataSet,
    bad: frozenset[str],
    formatter: formatting.Formatter,
    tally: example.Tally,
    out: pathlib.Path,
) -> tuple[list[splits.Row], collections.Counter[str]]:
    """Puts images under the target and returns the rows, and how many images were put how."""
    images = pictures.PlacedImages(out / IMAGES)
    rows = []
    left_out: collections.Counter[str] = collections.Counter()
    with say.progress("writing", unit="rows") as report:
        for number, read in enumerate(data.examples, 1):
            if number % PROGRESS_ROWS == 0:
                report(number, max(number, data.total))
            selected = _select(read, data.classes, bad, left_out, tally)
            formatted = formatter.make(selected, tally) if selected else None
            if formatted is None:
                continue
            image = f"{IMAGES}/{images.put(read.picture)}"
            line: dict[str, Any] = {
                "image": image,
                "prefix": formatted.prefix,
                "suffix": formatted.suffix,
            }
            line |= read.extra
            if formatted.objects is not None:
                line |= objects.to_row(formatted.objects)
            rows.append(splits.Row(line, image, read.picture.name, read.split))
    if left_out:
        ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        names = ", ".join(f"{name} ({count})" for name, count in ordered[:MAX_NAMED])
        more = ", ..." if len(left_out) > MAX_NAMED else ""
        key = f"objects left out of classes that are not asked for: {names}{more}"
        tally.changed[key] = left_out.total()
    return rows, images.ways


def _write(
    parts: Mapping[str, Sequence[splits.Row]],
    tally: example.Tally,
    round_trip: formatting.RoundTrip,
    out: pathlib.Path,
    *,
    train_tokenizer: bool,
) -> None:
    """Writes the rows of every split, the lists of drops and masks, and a tokenizer if asked."""
    for split, rows in parts.items():
        atomic.write_jsonl(out / f"{split}.jsonl", [row.line for row in rows])
    if train_tokenizer:
        texts = [row.line[key] for row in next(iter(parts.values())) for key in TEXTS]
        tokens.train_tokenizer(texts, out / TOKENIZER)
    masks = round_trip.worst_masks()
    for file, listed in ((jsonl.DROPPED, tally.drops), (jsonl.MASK_ROUND_TRIP, masks)):
        if listed:
            atomic.write_jsonl(out / file, [dataclasses.asdict(item) for item in listed])


def _read_back(
    task_name: str, parts: Mapping[str, Sequence[splits.Row]], out: pathlib.Path
) -> list[records.Record]:
    """Reads what was written as training will."""
    check = tasks.trained_as(task_name).check
    read: list[records.Record] = []
    for split in parts:
        with say.progress(f"checking {split}", unit="B", unit_scale=True) as report:
            read += records.read_jsonl(out / f"{split}.jsonl", check=check, progress=report)
    return read


def say_what_next(chosen: options.ImportOptions, summary: Mapping[str, Any]) -> None:
    """Prints which settings a config of the imported data needs."""
    training = chosen.target / f"{next(iter(summary['rows']))}.jsonl"
    task = tasks.trained_as(chosen.task)
    say.info(f"train    c.task = '{task.name}', c.input.data.fname = '{training}'")
    if chosen.train_tokenizer:
        say.info(f"         c.tokenizer = '{chosen.target / TOKENIZER}' (from scratch)")
    if chosen.mask_codec:
        say.info(f"         c.mask_codec = '{chosen.mask_codec}'")
    if scores := tasks.rule(chosen.task).scores:
        say.info(f"score    c.evals.NAME.scores = {scores}")
