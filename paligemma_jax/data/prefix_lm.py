"""The prefix-LM rows that a model reads, `[bos] prefix "\\n" suffix [eos]`, and their masks.

What stands around a prefix is the tokenizer's; above is PaliGemma's. Everything up to and including
"\\n" is seen in both directions, the suffix causally (a causal model takes no notice); only suffix
and eos are learnt. PaliGemma's rows equal those of `combine_and_keep_train` and
`combine_and_keep_eval` in big_vision's configs/proj/paligemma/transfers/common.py.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from paligemma_jax.data import records as data_records
from paligemma_jax.data import tokens

# What users of other stacks write and we add ourselves.
BEFORE_PREFIX = re.compile(r"\A(?:<(?:bos|image)> *)+")
AFTER_SUFFIX = re.compile(r"(?:<eos>\s*)+\Z")

MAX_LISTED = 20
ROUND_TO = 8  # a suggested text_len is a multiple of this


def encode_training(
    tokenizer: tokens.Tokenizer,
    prefix: str,
    suffix: str,
    *,
    text_len: int,
    lowercase: bool = False,
    allow_truncation: bool = False,
) -> dict[str, np.ndarray]:
    """Returns a training row, one longer than `text_len`: a step reads [:-1] and predicts [1:].

    With prefix "a", suffix "b" and text_len 5:

        text        bos  a "\\n"  b eos pad
        mask_ar       0  0    0  1   1   1    True: hidden from what stands before
        mask_loss     0  0    0  1   1   0    True: learnt
        mask_input    1  1    1  1   1   0    True: no padding

    Returns:
      text int32[text_len + 1]; mask_ar, mask_loss, mask_input bool[text_len + 1].

    Raises:
      ValueError: eos does not fit and `allow_truncation` is False.
    """
    prefix, suffix, _ = clean(prefix, suffix, lowercase=lowercase)
    head, tail = tokenizer.encode_prompt(prefix), tokenizer.encode_answer(suffix)
    tail = [*tail, tokenizer.eos]
    if (needed := len(head) + len(tail) - 1) > text_len and not allow_truncation:
        raise ValueError(
            f"prefix {prefix!r:.60} and suffix {suffix!r:.60} need text_len {needed}, found "
            f"{text_len}: eos would be cut off; {make_room(needed)}"
        )
    row = _pad_row(tokenizer, head, tail, text_len + 1)
    return {**row, "mask_loss": row["mask_ar"] & row["mask_input"]}


def encode_prompt(
    tokenizer: tokens.Tokenizer,
    prefix: str,
    *,
    text_len: int,
    suffix: str = "",
    lowercase: bool = False,
    allow_truncation: bool = False,
) -> dict[str, np.ndarray]:
    """Returns a row to decode from; a `suffix` is the begun answer, which decoding goes on from.

    With prefix "a" and text_len 5:

        text        bos  a "\\n" pad pad
        mask_ar       0  0    0   1   1
        mask_input    1  1    1   0   0

    Returns:
      text int32[text_len]; mask_ar, mask_input bool[text_len].

    Raises:
      ValueError: the prompt does not fit and `allow_truncation` is False.
    """
    prefix, suffix, _ = clean(prefix, suffix, lowercase=lowercase)
    head = tokenizer.encode_prompt(prefix)
    tail = tokenizer.encode_answer(suffix) if suffix else []
    if (needed := len(head) + len(tail)) > text_len and not allow_truncation:
        raise ValueError(
            f"prompt {prefix!r:.60} needs text_len {needed}, found {text_len}; {make_room(needed)}"
        )
    return _pad_row(tokenizer, head, tail, text_len)


def round_up(needed: int) -> int:
    """Returns the text_len to set where so many tokens are needed."""
    return -(-needed // ROUND_TO) * ROUND_TO


def make_room(needed: int) -> str:
    """Returns what to do about texts that need so many tokens and have fewer."""
    return (
        f"set input.text_len={round_up(needed)}, shorten the texts, or set "
        f"input.allow_truncation=True to have them cut"
    )


def clean(prefix: str, suffix: str, *, lowercase: bool = False) -> tuple[str, str, list[str]]:
    """Returns (prefix, suffix, what was removed): a user's own bos, newline and eos.

    bos, the newline after the prefix and eos are added when a row is made; a second one would be
    read as text that the released models never saw.
    """
    stripped = {
        "<bos> or <image> before the prefix": (prefix, prefix := BEFORE_PREFIX.sub("", prefix)),
        "newline after the prefix": (prefix, prefix := prefix.rstrip("\r\n")),
        "<eos> after the suffix": (suffix, suffix := AFTER_SUFFIX.sub("", suffix)),
    }
    if lowercase:
        prefix, suffix = prefix.lower(), suffix.lower()
    return prefix, suffix, [what for what, (before, after) in stripped.items() if before != after]


@dataclasses.dataclass(frozen=True)
class LengthReport:
    """How long a data set's texts are, in the `text_len` that each record needs.

    Attributes:
      num_records: records looked at.
      text_len: what was asked for.
      longest, p50, p95, p99: of the needed text_len (percentiles: the record at that rank).
      suggested_text_len: the smallest multiple of 8 that fits all.
      too_long: (source, needed text_len) of the records that do not fit.
      num_without_target: of these, how many would keep no token to learn if they were cut.
      removed: how many records had a bos, newline or eos of their own (see `clean`).
      counts: how many records need each length, {text_len: records}, shortest first.
    """

    num_records: int
    text_len: int
    longest: int
    p50: int
    p95: int
    p99: int
    suggested_text_len: int
    too_long: tuple[tuple[str, int], ...]
    num_without_target: int
    removed: Mapping[str, int]
    counts: Mapping[int, int]

    def describe(self) -> str:
        """Returns the report as a line or a few, for the log."""
        lines = [
            f"text_len {self.text_len}; needed: {self.p50} (median), {self.p95} (95%), "
            f"{self.p99} (99%), {self.longest} (longest); {len(self.too_long)} of "
            f"{self.num_records} records do not fit"
        ]
        if self.num_without_target:
            lines.append(f"no answer left to learn: in {self.num_without_target} of these")
        total = self.num_records
        lines += [f"removed {what}: in {n} of {total} records" for what, n in self.removed.items()]
        return "\n".join(lines)

    def require_fit(self) -> None:
        """Raises a ValueError that lists the records that would lose their eos."""
        if not self.too_long:
            return
        shown = [f"{source}: needs text_len {n}" for source, n in self.too_long[:MAX_LISTED]]
        if more := len(self.too_long) - len(shown):
            shown.append(f"... and {more} more")
        raise ValueError(
            f"{len(self.too_long)} of {self.num_records} records do not fit text_len "
            f"{self.text_len}: their eos would be cut off, and a model that never sees eos does "
            f"not learn to stop; {make_room(self.longest)}\n  " + "\n  ".join(shown)
        )


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The tokens of each record's texts.

    Attributes:
      heads: int32[n], of bos, prefix and newline.
      tails: int32[n], of the suffix; the eos needs no room (see `encode_training`).
      removed: how many records had a bos, newline or eos of their own (see `clean`).
    """

    heads: np.ndarray
    tails: np.ndarray
    removed: Mapping[str, int]


def measure(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    *,
    lowercase: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Lengths:
    """Returns how long the records' texts are; one without suffix needs room for its prompt only.

    Args:
      records: at least one.
      tokenizer: counts the tokens.
      lowercase: as the rows will be made.
      progress: called now and then with (records done, records).
    """
    if not records:
        raise ValueError("no records: there is no text to measure")
    heads, tails = np.zeros((2, len(records)), np.int32)
    removed: collections.Counter[str] = collections.Counter()
    for i, record in enumerate(records):
        prefix, suffix, removed_here = clean(
            record.prefix, record.suffix or "", lowercase=lowercase
        )
        removed.update(removed_here)
        head = tokenizer.encode_prompt(prefix)
        tail = [] if record.suffix is None else tokenizer.encode_answer(suffix)
        heads[i], tails[i] = len(head), len(tail)
        if progress and ((i + 1) % 1000 == 0 or i + 1 == len(records)):
            progress(i + 1, len(records))
    return Lengths(heads, tails, dict(removed))


def length_report(
    records: Sequence[data_records.Record],
    tokenizer: tokens.Tokenizer,
    *,
    text_len: int,
    lowercase: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LengthReport:
    """Returns what `report` says of what `measure` finds."""
    lengths = measure(records, tokenizer, lowercase=lowercase, progress=progress)
    return report(records, lengths, text_len=text_len)


def report(
    records: Sequence[data_records.Record], lengths: Lengths, *, text_len: int
) -> LengthReport:
    """Returns how records of these lengths fit into `text_len`."""
    needed = (lengths.heads + lengths.tails).astype(np.int64)
    has_no_room = np.flatnonzero(lengths.heads > text_len).tolist()
    num_without_target = sum(records[i].suffix is not None for i in has_no_room)
    p50, p95, p99, longest = np.percentile(needed, [50, 95, 99, 100], method="higher").tolist()
    too_long = np.flatnonzero(needed > text_len).tolist()
    return LengthReport(
        num_records=len(records),
        text_len=text_len,
        longest=longest,
        p50=p50,
        p95=p95,
        p99=p99,
        suggested_text_len=round_up(longest),
        too_long=tuple((records[i].source, int(needed[i])) for i in too_long),
        num_without_target=num_without_target,
        removed=lengths.removed,
        counts=dict(sorted(collections.Counter(needed.tolist()).items())),
    )


def _pad_row(
    tokenizer: tokens.Tokenizer, head: list[int], tail: list[int], length: int
) -> dict[str, np.ndarray]:
    """Returns text, mask_ar and mask_input of `length`: head and tail, cut or padded."""
    ids = (head + tail)[:length]
    text = np.full(length, tokenizer.pad, np.int32)
    text[: len(ids)] = ids
    position = np.arange(length)
    return {"text": text, "mask_ar": position >= len(head), "mask_input": position < len(ids)}


# Shorter texts for batches whose rows are short: less padding to compute.

TEXT_ARRAYS = ("text", "mask_ar", "mask_loss", "mask_input")

Batch = dict[str, np.ndarray]


def fit_lengths(
    batches: Iterable[Batch],
    *,
    text_lens: Sequence[int],
    longest: int,
    largest: Callable[[int], int],
) -> Iterator[Batch]:
    """Yields training batches without the end of their texts, where no row has a token.

    Args:
      batches: with texts of `longest` + 1, padded on the right.
      text_lens: lengths T that a text may have besides `longest`.
      longest: T of the texts as they come.
      largest: (tokens of the longest row here) -> of the longest one in any process: all of them
        must agree, and each has rows of its own.
    """
    for batch in batches:
        used = largest(int(batch["mask_input"].sum(axis=1).max()))
        yield batch | cut_texts(batch, choose_length(used, text_lens=text_lens, longest=longest))


def choose_length(num_tokens: int, *, text_lens: Sequence[int], longest: int) -> int:
    """Returns the smallest length that fits a text of so many tokens, else the longest.

    A text of n tokens needs n - 1: the model reads all of them but the last one.
    """
    return min((T for T in text_lens if num_tokens - 1 <= T), default=longest)


def cut_texts(batch: Mapping[str, np.ndarray], text_len: int) -> Batch:
    """Returns the texts of a training batch, `text_len` + 1 long."""
    return {name: batch[name][:, : text_len + 1] for name in TEXT_ARRAYS}
