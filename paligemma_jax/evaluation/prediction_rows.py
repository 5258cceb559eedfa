"""From batches of prompts to rows of predictions.jsonl, and to a data set's scores.

While the device answers one batch, the host reads the answers to the batch before. Per batch there
is one wait for the device, in which five small arrays come to the host together.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from paligemma_jax.data import images, objects
from paligemma_jax.data import records as data_records
from paligemma_jax.data import tokens as data_tokens
from paligemma_jax.decoding import generate
from paligemma_jax.tasks import task as tasks

T = TypeVar("T")
GenerateFn = Callable[[generate.Params, Mapping[str, Any]], generate.Generation]
Row = dict[str, Any]

INCOMPLETE = "\ufffd"  # What bytes of an unfinished character are decoded to.


def predict(
    generate_fn: GenerateFn,
    params: generate.Params,
    batches: Iterable[Mapping[str, Any]],
    records: Sequence[data_records.Record],
    tokenizer: data_tokens.Tokenizer,
    task: tasks.Task,
    *,
    skipped: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row]:
    """Yields a row for every record, in the order of the batches.

    With several processes each brings the batches of its share, the same number of them, and each
    gets all rows.

    Args:
      generate_fn: (params, batch) -> Generation, compiled; see `generate.generate`.
      params: of the model.
      batches: of prompts, with `index` (place in `records`) and `_mask` (False: only fills).
      records: every one must come up in `batches` exactly once.
      tokenizer: turns answers into text.
      task: reads and scores the text.
      skipped: places of records that no batch has; may grow while batches are made.
      progress: called after each batch with (rows done or skipped, rows in all).

    Yields:
      index, source, images, prefix, suffix (the truth, or None), prediction (text), logp (sum over
      tokens, eos included), tokens (how many, eos included), stopped (False: no eos came within
      the room for new tokens), and what `task.score_example` returns.

    Raises:
      ValueError: a record that is answered twice, or never; an answer that is not a number.
    """
    seen: set[int] = set()
    for generation in _one_behind(generate_fn(params, batch) for batch in batches):
        answers = _to_host(generation)
        for number in np.flatnonzero(answers.is_real):
            index, length = int(answers.index[number]), int(answers.length[number])
            _check_index(index, seen, records)
            seen.add(index)
            ids = np.asarray(answers.tokens[number, :length])
            logp = np.asarray(answers.logp[number, :length])
            row = _make_row(records[index], ids, logp, tokenizer=tokenizer, task=task)
            yield {"index": index, **row}
        if progress:
            progress(len(seen) + len(skipped), len(records))
    if missing := sorted(set(range(len(records))) - seen - set(skipped)):
        sources = ", ".join(records[index].source for index in missing[:5])
        raise ValueError(
            f"{len(missing)} of {len(records)} records were in no batch, the first: {sources}. "
            f"Batches must hold every record once"
        )


def evaluate(
    generate_fn: GenerateFn,
    params: generate.Params,
    batches: Iterable[Mapping[str, Any]],
    records: Sequence[data_records.Record],
    tokenizer: data_tokens.Tokenizer,
    task: tasks.Task,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Returns all rows by index (see `predict`), and the task's scores of them.

    Besides `task.aggregate`'s keys the scores have verbatim, the share of answers that are the
    truth letter by letter (nan where none is known), num_hit_max_new_tokens, the answers that no
    eos ended (if many: the model does not know when to stop, or there was too little room), and
    mean_tokens, the mean length of an answer.
    """
    rows = predict(generate_fn, params, batches, records, tokenizer, task, progress=progress)
    rows = sorted(rows, key=lambda row: row["index"])
    for number, row in enumerate(rows):
        if row.get("detections") and (size := _size(records[row["index"]])):
            rows[number] = in_pixels(row, size)
    return rows, _score(rows, task)


def in_pixels(row: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Returns a row whose boxes have xyxy too: [x1, y1, x2, y2] in px of an image (height, width).

    Pixels are those of the file as it is stored; edges lie between them, from 0 to the width.
    """
    detections = [
        {"box_yxyx": box["box_yxyx"], "xyxy": _to_pixels(box["box_yxyx"], size), **box}
        for box in row.get("detections", ())
    ]
    return {**row, "detections": detections} if "detections" in row else dict(row)


def _to_pixels(box_yxyx: Sequence[float], size: tuple[int, int]) -> list[float]:
    (top, left, bottom, right), (height, width) = box_yxyx, size
    return [round(x, 2) for x in (left * width, top * height, right * width, bottom * height)]


def _size(record: data_records.Record) -> tuple[int, int] | None:
    """Returns (height, width) of a record's first image in px, where its file or row tells it."""
    if record.objects is not None:
        return record.objects.height, record.objects.width
    return images.read_size(record.images[0]) if record.images else None


def score_truths(records: Sequence[data_records.Record], task: tasks.Task) -> dict[str, Any]:
    """Returns the scores of a model whose every answer is the truth: the same keys as `evaluate`.

    Each answer counts as one token.
    """
    rows = [_score_example(record, record.suffix or "", None, task) for record in records]
    return _score([{"index": index, **row} for index, row in enumerate(rows)], task)


def split_text(tokenizer: data_tokens.Tokenizer, ids: Sequence[int], text: str) -> list[str]:
    """Returns each token's part of `text`, the decoded ids; joined, the parts are the text.

    A token without text of its own (a control piece) gets "". Of a character that takes several
    tokens, as bytes do, the one that completes it gets all.
    """
    ends = [0]
    for count in range(1, len(ids)):
        complete = tokenizer.decode(ids[:count]).rstrip(INCOMPLETE)
        ends.append(max(ends[-1], len(complete)))
    ends = [*ends[: len(ids)], len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(ends)]


def _score(rows: Sequence[Row], task: tasks.Task) -> dict[str, Any]:
    known = [row for row in rows if row["suffix"] is not None]
    return {
        **task.aggregate(rows),
        "verbatim": _mean([row["prediction"] == row["suffix"] for row in known]),
        "num_hit_max_new_tokens": sum(not row["stopped"] for row in rows),
        "mean_tokens": _mean([row["tokens"] for row in rows]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yields each item once the next one was made: work begun on the next goes on meanwhile."""
    waiting: list[T] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _to_host(generation: generate.Generation) -> generate.Generation:
    """Returns the answers of all processes as numpy arrays; waits for the device.

    Rows know their own index, so it does not matter in which order processes are joined.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(generation, tiled=True)
    return jax.device_get(generation)


def _check_index(index: int, seen: set[int], records: Sequence[data_records.Record]) -> None:
    if not 0 <= index < len(records):
        raise ValueError(f"a batch holds index {index}, but there are {len(records)} records")
    if index in seen:
        raise ValueError(
            f"{records[index].source}: record {index} was answered twice. Batches must hold every "
            f"record once; rows that only fill a batch have `_mask` False"
        )


def _make_row(
    record: data_records.Record,
    ids: np.ndarray,
    logp: np.ndarray,
    *,
    tokenizer: data_tokens.Tokenizer,
    task: tasks.Task,
) -> Row:
    """Returns a row but for its index. ids: int32[n], logp: float32[n], eos included."""
    if not np.isfinite(logp).all():
        raise ValueError(
            f"{record.source}: the model's log-probabilities are {logp[:5].tolist()}: its weights "
            f"hold nan or inf, or the compute dtype overflows (float16: try float32)"
        )
    stopped = len(ids) > 0 and int(ids[-1]) == tokenizer.eos
    words = ids[:-1].tolist() if stopped else ids.tolist()
    prediction = tokenizer.decode(words)
    pieces = split_text(tokenizer, words, prediction)
    scored = list(zip(pieces, logp[: len(words)].tolist(), strict=True))
    decoded = {"logp": float(logp.sum()), "tokens": len(ids), "stopped": stopped}
    return _score_example(record, prediction, scored, task) | decoded


def _score_example(
    record: data_records.Record,
    prediction: str,
    tokens: Sequence[tuple[str, float]] | None,
    task: tasks.Task,
) -> Row:
    """Returns a row without what decoding knows: it was one token that ended by itself."""
    try:
        scored = task.score_example(
            prediction,
            suffix=record.suffix,
            tokens=tokens,
            extra=record.extra,
            draw_truth=objects.draw_later(record.objects),
        )
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error
    return {
        "source": record.source,
        "images": list(record.images),
        "prefix": record.prefix,
        "suffix": record.suffix,
        "prediction": prediction,
        "logp": 0.0,
        "tokens": 1,
        "stopped": True,
        **scored,
    }
