"""From settings to records and batches; what is wrong with data is an error here."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import npz
from paligemma_jax.console import say
from paligemma_jax.data import images, locations, noise_boxes, pipeline, prefix_lm, records, tokens
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.hub import sites
from paligemma_jax.params import sharding
from paligemma_jax.reports import drawing
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task, text_metrics
from paligemma_jax.wording import phrases

# Prompts, and the room for answers, are multiples of this, and of few lengths: see `round_length`.
PROMPT_MULTIPLE = 8
# Room beyond the longest true answer: a model may write more than it was shown.
EXTRA_NEW_TOKENS = 16
MAX_LISTED = 20
NOISE_ROWS = 2000  # rows, from all over the data, whose boxes are where noise may lie
# Each is one more program to compile.
MAX_TEXT_LENS = 3

Records = Sequence[records.Record]


def make_task(settings: schema.Settings, scores: Sequence[str] | None = None) -> task.Task:
    """Returns the task that the settings name; `scores` replace its usual ones.

    Raises:
      ValueError: settings that contradict each other. OSError: no mask codec, for segmentation.
    """
    needs_codec = task.look_up(settings.task).needs_codec
    codec = weights.codec_of_task(settings.mask_codec).decode if needs_codec else None
    options = dataclasses.replace(_task_options(settings), scores=tuple(scores or ()), codec=codec)
    return task.choose(settings.task, options)


def make_reader(settings: schema.Settings) -> task.Task:
    """Returns the task to read and check texts with; it needs no mask codec, and cannot score."""
    return task.look_up(settings.task, _task_options(settings))


def _task_options(settings: schema.Settings) -> task.Options:
    return task.Options(
        convention=settings.coordinates, noise_boxes=settings.input.noise_piece is not None
    )


def make_noise(
    settings: schema.Settings, tokenizer: tokens.Tokenizer, examples: Records = ()
) -> noise_boxes.NoiseBoxes | None:
    """Returns what fills answers up, in part with boxes of `examples`; None where nothing does."""
    piece = settings.input.noise_piece
    if piece is None:
        return None
    chosen = examples[:: max(1, len(examples) // NOISE_ROWS)]
    suffixes = [record.suffix or "" for record in chosen]
    try:
        return noise_boxes.make(tokenizer, piece, seed=settings.seed, suffixes=suffixes)
    except ValueError as error:
        raise ValueError(f"input.noise_piece: {error}") from error


def read_records(
    settings: schema.Settings,
    fname: str | None,
    *,
    key: str,
    image_dir: str | None = None,
    fields: Mapping[str, str] | None = None,
    prefix_template: str | None = None,
) -> Records:
    """Returns the records of a JSONL file.

    Args:
      settings: all settings.
      fname: the file.
      key: the config key that names it, for errors.
      image_dir: where its images are; None: beside it.
      fields, prefix_template: None: those of `input.data`.

    Raises:
      ValueError: bad lines, all of them listed; or answers that are nearly all another task's.
    """
    if not fname:
        raise ValueError(f"{key} is not set: the path of a JSONL file")
    fname, image_dir = _fetch(fname, image_dir)
    data = settings.input.data
    check, keys = task.look_up(settings.task).check, fields or data.fields
    template = prefix_template or data.prefix_template
    passed = _checks_entry(settings, fname, keys)
    kept = _kept_rows(passed, os.path.abspath(fname), image_dir, template, check) if passed else []
    if kept:
        return list(kept[0])
    is_known = passed is not None and load_entry(passed) is not None
    checked: list[str] = []

    def check_suffix(suffix: str) -> str | None:
        checked.append(prefix_lm.clean("", suffix)[1])
        return check(checked[-1])

    try:
        with say.progress(f"reading {fname}", unit="B", unit_scale=True) as report:
            read, lines = records.scan_jsonl(
                fname,
                keys=keys,
                prefix_template=template,
                image_dir=image_dir or None,
                check=None if is_known else check_suffix,
                progress=report,
            )
            lines.raise_problems()
    except ValueError as error:
        other = task.find_mismatch(settings.task, checked)
        if other is None or not other.is_refused:
            about = f"\n  {data.about}" if data.about else ""
            raise ValueError(f"{error}{about}") from error
        raise ValueError(f"{fname}: {other.what}: {other.remedy}") from None
    for note, count in lines.notes.items():
        say.info(f"{fname}: {phrases.count(count, note)}")
    if passed and not is_known:
        store_entry(passed, {"num_records": np.array(len(read))})
    if passed and os.path.getsize(fname) <= MOST_BYTES_KEPT:
        kept.append(tuple(read))
    return read


def _fetch(fname: str, image_dir: str | None) -> tuple[str, str | None]:
    """Returns where a JSONL file is here, and its images: of an address, beside it there."""
    if not run_folder.is_remote(fname):
        return fname, image_dir
    with say.working(f"fetching {fname}"):
        return run_folder.fetch(fname), image_dir or fname.rpartition("/")[0]


@functools.lru_cache(maxsize=2)
def _kept_rows(*known_by: Hashable) -> list[tuple[records.Record, ...]]:
    """Returns where a process keeps what it has read, of the last data sets: the runs of a sweep
    are of one. Images that are gone since are missed when they are read."""
    del known_by
    return []


def _checks_entry(settings: schema.Settings, fname: str, keys: Mapping[str, str]) -> str | None:
    """Returns the entry that says that a file's suffixes are good; None for a small file."""
    if not os.path.isfile(fname) or os.path.getsize(fname) < MIN_BYTES:
        return None
    rules = json.dumps([settings.task, settings.coordinates, dict(keys)])
    return name_entry("checks", [hash_file(fname), rules.encode()])


def as_learnt(settings: schema.Settings, examples: Records) -> Records:
    """Returns records with the texts that a model is taught, which are what it is scored by."""
    cleaned = []
    for record in examples:
        prefix, suffix, _ = prefix_lm.clean(
            record.prefix, record.suffix or "", lowercase=settings.input.lowercase
        )
        suffix = None if record.suffix is None else suffix
        extra = record.extra
        if settings.input.lowercase and isinstance(extra.get(text_metrics.ANSWERS), list):
            lowered = [str(answer).lower() for answer in extra[text_metrics.ANSWERS]]
            extra = {**extra, text_metrics.ANSWERS: lowered}
        cleaned.append(dataclasses.replace(record, prefix=prefix, suffix=suffix, extra=extra))
    return cleaned


def check_rows(chosen: task.Task, examples: Records, *, name: str) -> None:
    """Raises a ValueError that lists the records that a task cannot score for want of keys."""
    problems = [
        f"{record.source}: {problem}"
        for record in examples
        if (problem := chosen.check_row(record.extra))
    ]
    if problems:
        shown = "\n  ".join(problems[:MAX_LISTED])
        raise ValueError(
            f"{name}: {len(problems)} of {len(examples)} rows cannot be scored:\n  {shown}"
        )


def check_lengths(
    settings: schema.Settings, examples: Records, tokenizer: tokens.Tokenizer, *, name: str
) -> prefix_lm.LengthReport:
    """Says how long the texts are; records that would lose their eos are an error.

    Raises:
      ValueError: lists them, unless `input.allow_truncation` is set; then says how many.
    """
    lengths = _measure(examples, tokenizer, lowercase=settings.input.lowercase, name=name)
    report = prefix_lm.report(examples, lengths, text_len=settings.input.text_len)
    say.info(f"{name}: {report.describe()}")
    if not settings.input.allow_truncation:
        report.require_fit()
    return report


def _measure(
    examples: Records, tokenizer: tokens.Tokenizer, *, lowercase: bool, name: str
) -> prefix_lm.Lengths:
    """Returns the lengths of the texts; of many, those that an earlier start kept."""
    entry = None
    if len(examples) >= MIN_ROWS:
        texts = "\0".join(f"{e.prefix}\0{e.suffix or ''}" for e in examples)
        parts = [tokenizer.model, str(lowercase).encode(), texts.encode()]
        entry = name_entry("lengths", parts)
        if kept := load_entry(entry):
            removed = json.loads(bytes(kept.pop("removed")))
            return prefix_lm.Lengths(**kept, removed=removed)
    with say.progress(f"measuring {name}", unit="records") as progress:
        measured = prefix_lm.measure(examples, tokenizer, lowercase=lowercase, progress=progress)
    if entry:
        removed = np.frombuffer(json.dumps(measured.removed).encode(), np.uint8)
        arrays = {"heads": measured.heads, "tails": measured.tails, "removed": removed}
        store_entry(entry, arrays)
    return measured


def open_image(path: str) -> Any:
    """Returns the picture at a path or an address, for reports; says what is waited for."""
    if not locations.is_address(path):
        return drawing.open_rgb(path)
    with say.working(f"fetching {locations.public(path)}"):
        return drawing.open_rgb(io.BytesIO(locations.read(path)))


def resampling(settings: schema.Settings) -> str:
    """Returns how images become squares: as the family's models see them, or without antialias.

    Raises:
      ValueError: the key input.antialias takes away what the family has not.
    """
    usual = model_functions.choose_resampling(settings)
    if settings.input.antialias:
        return usual
    if usual != images.BILINEAR:
        raise ValueError(
            f"config: input.antialias=False: models of the family '{settings.model.family}' see "
            f"images resized by {usual}: leave it out"
        )
    return images.ALIASED


def spec(settings: schema.Settings, **changes: Any) -> pipeline.BatchSpec:
    """Returns the shape of training batches; `changes` replace fields, as for evaluation."""
    fields = {
        "res": settings.res,
        "text_len": settings.input.text_len,
        "batch_size": settings.input.batch_size,
        "max_images": settings.input.max_images,
        "lowercase": settings.input.lowercase,
        "allow_truncation": settings.input.allow_truncation,
        "draw_answers": settings.input.draw_answers,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "num_workers": settings.input.num_workers,
        "resampling": resampling(settings),
    }
    return pipeline.BatchSpec(**{**fields, **changes})


def text_lens(settings: schema.Settings) -> tuple[int, ...]:
    """Returns the lengths that a training batch may have besides `input.text_len`.

    Raises:
      ValueError: too many, no lengths below it, or answers that noise boxes fill up to it.
    """
    lengths, longest = tuple(settings.input.text_lens or ()), settings.input.text_len
    are_lengths = all(type(x) is int and 0 < x < longest for x in lengths)
    if not are_lengths or len(set(lengths)) < len(lengths) or len(lengths) > MAX_TEXT_LENS:
        raise ValueError(
            f"config: input.text_lens={list(lengths)}: expected up to {MAX_TEXT_LENS} different "
            f"lengths of 1 to {longest - 1}, below input.text_len"
        )
    if lengths and settings.input.noise_piece is not None:
        raise ValueError(
            "config: input.text_lens: with input.noise_piece every answer is filled up to "
            "input.text_len; leave out one of them"
        )
    return lengths


def prompt_len(settings: schema.Settings, examples: Records, tokenizer: tokens.Tokenizer) -> int:
    """Returns the length that all prompts fit in, one of few."""
    return round_length(max(_prompt_lens(settings, examples, tokenizer)))


def round_length(needed: int) -> int:
    """Returns the next of 8, 16, 24, 32, 48, 64, 96, ...: powers of two, and half as much again.

    Evaluations of one run then share compiled programs, and no length grows by more than a half.
    """
    size = PROMPT_MULTIPLE
    while size < needed and size + size // 2 < needed:
        size *= 2
    if size >= needed:
        return size
    half = -(-(size + size // 2) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
    return half if half >= needed else 2 * size


def answer_len(settings: schema.Settings, examples: Records, tokenizer: tokens.Tokenizer) -> int:
    """Returns how many tokens an answer may have: the longest true one with eos, and some more,
    one of few lengths.

    With noise boxes, as many as training answers had.
    """
    if settings.input.noise_piece is not None:
        return settings.input.text_len + 1 - min(_prompt_lens(settings, examples, tokenizer))
    suffixes = [
        prefix_lm.clean("", e.suffix or "", lowercase=settings.input.lowercase)[1] for e in examples
    ]
    longest = max((len(tokenizer.encode_answer(suffix)) + 1 for suffix in suffixes), default=1)
    return round_length(longest + EXTRA_NEW_TOKENS)


def _prompt_lens(
    settings: schema.Settings, examples: Records, tokenizer: tokens.Tokenizer
) -> list[int]:
    """Returns the lengths of prompts with what the tokenizer puts around them."""
    cleaned = (
        prefix_lm.clean(e.prefix, "", lowercase=settings.input.lowercase)[0] for e in examples
    )
    return [len(tokenizer.encode_prompt(prefix)) for prefix in cleaned]


def on_mesh(
    batches: Iterator[pipeline.Batch], mesh: jax.sharding.Mesh
) -> Iterator[Mapping[str, jax.Array]]:
    """Yields batches on their devices."""
    for batch in batches:
        yield sharding.place_batch(batch, mesh)


def digest(records: Records, tokenizer: tokens.Tokenizer) -> dict[str, Any]:
    """Returns what an equal sequence of batches needs besides the settings, in short."""
    texts = [
        ([pathlib.Path(image).name for image in one.images], one.prefix, one.suffix)
        for one in records
    ]
    return {
        "examples": len(records),
        "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16],
        "tokenizer": hashlib.sha256(tokenizer.model).hexdigest()[:16],
    }


# Results of the checks of a large data set, kept for the next start.
#
# An entry's name is a hash of all that it depends on (texts, tokenizer, settings), so nothing has
# to be thrown away when one of them changes. Entries are some megabytes in
# $PALIGEMMA_JAX_CACHE/starts, and may be deleted at any time.

# To be raised when a check becomes stricter or lengths are counted in another way.
CHECKS_VERSION = 1
# Smaller data sets are looked at again: that takes a second or less.
MIN_ROWS, MIN_BYTES = 20_000, 2**20
MOST_BYTES_KEPT = 2**24  # of a file whose rows stay in memory too


def name_entry(what: str, parts: Iterable[bytes]) -> str:
    """Returns the name of the entry that depends on these bytes, in this order."""
    digest = hashlib.sha256()
    for part in (f"{what} {CHECKS_VERSION}".encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"{what}-{digest.hexdigest()[:32]}"


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Returns a hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load_entry(entry: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays of an entry; None if there is none, or none that is whole."""
    path = _folder() / f"{entry}.npz"
    try:
        return npz.read(path) if path.exists() else None
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            path.unlink()
        say.info(f"{path}: damaged, removed: the data is checked again")
        return None


def store_entry(entry: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays; a disk that does not take them is no reason to stop a run."""
    path = _folder() / f"{entry}.npz"
    own = path.with_name(f"{entry}-{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path, temporary=own):
            npz.write(own, arrays)
    except OSError:
        pass


def _folder() -> pathlib.Path:
    return sites.own_cache() / "starts"
