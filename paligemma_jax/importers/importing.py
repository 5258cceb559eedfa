"""Data sets of other tools to JSONL: read, put into words, divide, write, check, and show."""

import collections
import dataclasses
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.data import image_files, jsonl, objects, records, tokens
from paligemma_jax.files import atomic
from paligemma_jax.importers import (
    example,
    formats,
    import_summary,
    placing,
    roboflow,
    sheet,
    splits,
    words,
)
from paligemma_jax.tasks import geometry
from paligemma_jax.wording import quantities

SUMMARY, SHEET, IMAGES = "conversion.json", "contact_sheet.png", "images"
TOKENIZER = "tokenizer.model"
TEXTS = ("prefix", "suffix")
ALL = "train"  # the split of everything where there are none
NUM_SHOWN = 3  # examples of each reason
PROGRESS_ROWS = 500


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What to import, and how.

    Attributes:
      source: file, folder, or an address of Roboflow.
      target: the folder to write.
      task: a key of `words.PROMPTS`.
      format: a key of `formats.FORMATS`; None is to look.
      images, classes, columns, components: see `example.Request`.
      prompt: template of the prompts; None is the task's own.
      coordinates: convention of `<loc>` tokens.
      ratios: {split: share} where the source has no splits; {} leaves them together.
      group: regular expression for what must stay in one split, see `splits.group_key`.
      seed: decides the splits.
      codec, mask_codec: turns masks into tokens, and the file that it is; for segmentation.
      train_tokenizer: whether a small tokenizer is learnt from the texts of the first split.
    """

    source: str
    target: pathlib.Path
    task: str
    format: str | None = None
    images: str | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    components: bool = False
    prompt: str | None = None
    coordinates: str = geometry.DEFAULT_CONVENTION
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    group: str | None = None
    seed: int = 0
    codec: words.MaskCodec | None = None
    mask_codec: str | None = None
    train_tokenizer: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """A line to be: its JSON, its image relative to the target, the split that the source says."""

    line: dict[str, Any]
    image: str
    name: str
    split: str | None


def import_data(options: ImportOptions) -> dict[str, Any]:
    """Imports a data set, reports on the way, and returns the summary that is also written.

    Raises:
      ValueError: what cannot be read, has nothing to give, or would not read back.
    """
    start = time.monotonic()
    options.target.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(
        tempfile.mkdtemp(prefix=options.target.name + ".", dir=options.target.parent)
    )
    try:
        folder = made / "download" if roboflow.is_address(options.source) else None
        source = _fetch(options, folder) if folder else options.source
        out = made / "made"
        out.mkdir()
        summary = _import(options, source, out)
        _put_in_place(out, options.target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return summary | {"seconds": time.monotonic() - start}


def is_ours(folder: pathlib.Path) -> bool:
    """Whether a folder was written by `import_data`, so that it may be replaced."""
    return (folder / SUMMARY).is_file()


def _fetch(options: ImportOptions, folder: pathlib.Path) -> str:
    with say.progress(f"fetching {options.source}", unit="B", unit_scale=True) as report:
        roboflow.download(
            options.source,
            folder,
            key=os.environ.get(roboflow.KEY),
            with_outlines=options.task == "segmentation",
            progress=report,
        )
    return str(folder)


def _import(options: ImportOptions, source: str, out: pathlib.Path) -> dict[str, Any]:
    name, reason = formats.find(source, options.task, options.format)
    say.info(f"{options.source} is {name} ({reason})")
    request = example.Request(
        source, options.task, options.images, options.classes, options.columns, options.components
    )
    tally = example.Tally()
    with say.progress(f"reading {name}", unit="images") as report:
        data = formats.FORMATS[name].read(request, tally, report)
    wording = words.Wording(
        options.task,
        data.classes,
        prompt=options.prompt,
        coordinates=options.coordinates,
        codec=options.codec,
    )
    rows, ways = _write_rows(data, wording, tally, out)
    if not rows:
        said = "\n".join(import_summary.describe_drops(tally))
        raise ValueError(f"{options.source}: nothing is left to write\n{said}")
    parts = _divide(rows, options, out)
    for split, lines in parts.items():
        atomic.write_jsonl(out / f"{split}.jsonl", [row.line for row in lines])
    if options.train_tokenizer:
        texts = [row.line[key] for row in next(iter(parts.values())) for key in TEXTS]
        tokens.train_tokenizer(texts, out / TOKENIZER)
    masks = wording.round_trip.worst_masks()
    for file, listed in ((jsonl.DROPPED, tally.drops), (jsonl.MASK_ROUND_TRIP, masks)):
        if listed:
            atomic.write_jsonl(out / file, [dataclasses.asdict(item) for item in listed])
    read_back = _read_back(options, parts, out)
    decode = options.codec and options.codec.decode
    sheet.write(out / SHEET, read_back, coordinates=options.coordinates, decode=decode)
    counts = {split: len(lines) for split, lines in parts.items()}
    summary = {
        "source": options.source,
        "format": name,
        "task": options.task,
        "prompt": wording.template,
        "coordinates": options.coordinates,
        "mask_codec": options.mask_codec,
        "seed": options.seed,
        **import_summary.make(data.classes, tally, wording.round_trip, counts),
        "images": dict(ways),
    }
    atomic.write_json(out / SUMMARY, summary)
    for line in import_summary.describe(summary, tally):
        say.info(line)
    _say_what_next(options, options.target / f"{next(iter(parts))}.jsonl")
    return summary


def _say_what_next(options: ImportOptions, training: pathlib.Path) -> None:
    """Says where to look, and which settings a config needs."""
    say.info(f"look at  {options.target / SHEET}")
    task = words.TRAINED_AS[options.task]
    say.info(f"train    c.task = '{task}', c.input.data.fname = '{training}'")
    if options.train_tokenizer:
        say.info(f"         c.tokenizer = '{options.target / TOKENIZER}' (from scratch)")
    if options.mask_codec:
        say.info(f"         c.mask_codec = '{options.mask_codec}'")
    if scores := words.SCORED_BY.get(options.task):
        say.info(f"score    c.evals.NAME.scores = {scores}")


def _write_rows(
    data: example.DataSet, wording: words.Wording, tally: example.Tally, out: pathlib.Path
) -> tuple[list[_Row], collections.Counter[str]]:
    """Puts images under the target and returns the rows, and how many images were put how."""
    images = placing.Images(out / IMAGES)
    rows = []
    with say.progress("writing", unit="rows") as report:
        for number, found in enumerate(data.examples, 1):
            if number % PROGRESS_ROWS == 0:
                report(number, max(number, data.total))
            worded = wording.make(found, tally)
            if worded is None:
                continue
            image = f"{IMAGES}/{images.put(found.picture)}"
            line: dict[str, Any] = {
                "image": image,
                "prefix": worded.prefix,
                "suffix": worded.suffix,
            }
            if worded.objects is not None:
                line |= objects.to_row(worded.objects)
            rows.append(_Row(line, image, found.picture.name, found.split))
    return rows, images.ways


def _divide(
    rows: Sequence[_Row], options: ImportOptions, out: pathlib.Path
) -> dict[str, list[_Row]]:
    """Returns split -> rows: the source's splits, or new ones without a leak."""
    said = {row.split for row in rows}
    parts: dict[str, list[_Row]] = {}
    if said != {None} and len(said) > 1:
        if options.ratios:
            names = sorted(map(str, said))
            raise ValueError(
                f"--split is for sources without splits; {options.source} has {', '.join(names)}"
            )
        parts = {name: [] for name in example.SPLITS.values() if name in said}
        for row in rows:
            parts.setdefault(row.split or ALL, []).append(row)
        _warn_of_leaks(parts, out)
        return parts
    if not options.ratios:
        say.info("no splits: one file. --split train=0.8,valid=0.2 divides it without a leak")
        return {next(iter(said)) or ALL: list(rows)}
    contents = _content_keys(rows, out)
    groups = splits.join(
        [
            (
                f"group {splits.group_key(row.name, options.group)}",
                f"image {row.image}",
                f"same {content}",
            )
            for row, content in zip(rows, contents, strict=True)
        ]
    )
    chosen = splits.assign(groups, ratios=options.ratios, seed=options.seed)
    parts = {name: [] for name in options.ratios}
    for row, split in zip(rows, chosen, strict=True):
        parts[split].append(row)
    return parts


def _content_keys(rows: Sequence[_Row], out: pathlib.Path) -> list[str]:
    """Returns a key per row that says which bytes its image has."""
    paths = [str(out / row.image) for row in rows]
    with say.progress("comparing images", unit="B", unit_scale=True) as report:
        contents = image_files.find_contents(
            image_files.read_sizes(paths), num_workers=os.cpu_count() or 1, progress=report
        )
    return [contents[path] for path in paths]


def _warn_of_leaks(parts: Mapping[str, Sequence[_Row]], out: pathlib.Path) -> None:
    """Says which images of equal bytes stand in several of the source's splits."""
    rows = [(split, row) for split, lines in parts.items() for row in lines]
    first: dict[str, tuple[str, str]] = {}
    leaks: dict[str, str] = {}
    for (split, row), key in zip(rows, _content_keys([row for _, row in rows], out), strict=True):
        there, name = first.setdefault(key, (split, row.name))
        if there != split:
            leaks[key] = f"{name} ({there}) = {row.name} ({split})"
    if leaks:
        shown = ", ".join(list(leaks.values())[:NUM_SHOWN])
        images = quantities.count(len(leaks), "images")
        say.warning(f"in several splits of the source: {images}: {shown}")


def _read_back(
    options: ImportOptions, parts: Mapping[str, Sequence[_Row]], out: pathlib.Path
) -> list[records.Record]:
    """Reads what was written as training will."""
    check = words.choose_check(options.task)
    found: list[records.Record] = []
    for split in parts:
        with say.progress(f"checking {split}", unit="B", unit_scale=True) as report:
            found += records.read_jsonl(out / f"{split}.jsonl", check=check, progress=report)
    return found


def _put_in_place(made: pathlib.Path, target: pathlib.Path) -> None:
    if target.exists():
        shutil.rmtree(target)  # empty, or written by us: the door has looked
    os.replace(made, target)
