"""Dividing examples: deterministic, near the shares, and never a group in two splits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.importers import splits

RATIOS = {"train": 0.8, "valid": 0.2}
KEYS = st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1)


def test_shares_are_met_and_the_order_does_not_matter():
    groups = [f"image {n}" for n in range(100)]
    chosen = splits.assign(groups, ratios=RATIOS, seed=0)
    assert chosen.count("train") == 80 and chosen.count("valid") == 20
    again = splits.assign(groups[::-1], ratios=RATIOS, seed=0)[::-1]
    assert again == chosen
    assert splits.assign(groups, ratios=RATIOS, seed=1) != chosen


def test_the_same_on_every_machine():
    chosen = splits.assign(list("abcdefghij"), ratios=RATIOS, seed=0)
    assert [g for g, s in zip("abcdefghij", chosen, strict=True) if s == "valid"] == ["c", "f"]


@given(KEYS)
def test_examples_that_share_a_key_are_in_one_group(keys):
    groups = splits.join(keys)
    for own, group in zip(keys, groups, strict=True):
        for other, other_group in zip(keys, groups, strict=True):
            if set(own) & set(other):
                assert group == other_group
    # Nothing else is joined: a group's keys and the other groups' are apart.
    for group in set(groups):
        inside = {k for own, g in zip(keys, groups, strict=True) if g == group for k in own}
        outside = {k for own, g in zip(keys, groups, strict=True) if g != group for k in own}
        assert not inside & outside


def test_a_large_group_stays_together():
    groups = ["patient"] * 50 + [f"image {n}" for n in range(50)]
    chosen = splits.assign(groups, ratios=RATIOS, seed=3)
    assert len(set(chosen[:50])) == 1 and set(chosen) == {"train", "valid"}


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"train": 0.8, "valid": 0.1}, "sum to 1"),
        ({"train": 1.5, "valid": -0.5}, "above 0"),
        ({}, "above 0"),
        (
            {"train": 0.5, "valid": 0.3, "test": 0.2},
            "would be empty: 3 examples make only 2 groups",
        ),
    ],
)
def test_shares_that_cannot_be_met_are_errors(ratios, message):
    with pytest.raises(ValueError, match=message):
        splits.assign(["a", "a", "b"], ratios=ratios, seed=0)


@pytest.mark.parametrize(
    ("name", "pattern", "key"),
    [
        ("a/p12_3.png", r"^(.*)_\d+", "a/p12"),
        ("a/p12_3.png", r"p\d+", "p12"),
        ("a/other.png", r"p\d+", "a/other.png"),
        ("train/dog_jpg.rf.0123456789abcdef.jpg", None, "train/dog_jpg.jpg"),
        ("train/dog.rf.jpg", None, "train/dog.rf.jpg"),
    ],
)
def test_a_groups_key_is_part_of_the_name(name, pattern, key):
    assert splits.group_key(name, pattern) == key
