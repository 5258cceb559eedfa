"""Texts of a batch are as short as the longest row of any process allows."""

import numpy as np
import pytest

from paligemma_jax.data import length_buckets


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(1, 4), (5, 4), (6, 8), (9, 8), (10, 12), (13, 12), (14, 16)]
)
def test_the_smallest_length_that_holds_all_inputs_is_chosen(num_tokens, expected):
    assert length_buckets.choose(num_tokens, text_lens=[8, 4, 12], longest=16) == expected


def batch(*num_tokens: int) -> dict[str, np.ndarray]:
    """Rows of so many tokens 1, 2, 3, ..., padded to 9."""
    used = np.arange(9) < np.array(num_tokens)[:, None]
    return {
        "text": np.where(used, np.arange(1, 10), 0),
        "mask_input": used,
        "mask_ar": ~used,
        "mask_loss": used,
        "image": np.zeros((len(num_tokens), 1)),
    }


def test_texts_are_cut_where_no_row_here_or_elsewhere_has_a_token():
    elsewhere = [[], [{"mask_input": np.arange(9) < 6}], [{"mask_input": np.arange(9) < 2}]]
    batches = [batch(2, 4), batch(2, 4), batch(9, 1)]
    found = list(length_buckets.fit(batches, elsewhere, text_lens=[3, 5], longest=8))
    assert [one["text"].shape[1] for one in found] == [4, 6, 9]
    for one, whole in zip(found, batches, strict=True):
        for name in length_buckets.TEXT_ARRAYS:
            np.testing.assert_array_equal(one[name], whole[name][:, : one["text"].shape[1]])
        assert one["image"] is whole["image"]
