"""Shorter texts for batches whose rows are short: less padding to compute."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

TEXT_ARRAYS = ("text", "mask_ar", "mask_loss", "mask_input")

Batch = dict[str, np.ndarray]


def fit(
    batches: Iterable[Batch],
    others: Iterable[Sequence[Mapping[str, np.ndarray]]],
    *,
    text_lens: Sequence[int],
    longest: int,
) -> Iterator[Batch]:
    """Yields training batches without the end of their texts, where no row has a token.

    Args:
      batches: with texts of `longest` + 1, padded on the right.
      others: for each batch the rows that it has in other processes: all of them must agree.
      text_lens: lengths T that a text may have besides `longest`.
      longest: T of the texts as they come.
    """
    for batch, rows in zip(batches, others, strict=True):
        used = [int(batch["mask_input"].sum(axis=1).max())]
        used += [int(row["mask_input"].sum()) for row in rows]
        yield batch | cut(batch, choose(max(used), text_lens=text_lens, longest=longest))


def choose(num_tokens: int, *, text_lens: Sequence[int], longest: int) -> int:
    """Returns the smallest length that fits a text of so many tokens, else the longest.

    A text of n tokens needs n - 1: the model reads all of them but the last one.
    """
    return min((T for T in text_lens if num_tokens - 1 <= T), default=longest)


def cut(batch: Mapping[str, np.ndarray], text_len: int) -> Batch:
    """Returns the texts of a training batch, `text_len` + 1 long."""
    return {name: batch[name][:, : text_len + 1] for name in TEXT_ARRAYS}
