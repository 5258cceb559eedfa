"""Near misses of names."""

import json

import pytest

from paligemma_jax.wording import phrases

KEYS = ("lr", "input.batch_size", "input.data.fname", "total_epochs")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("lrr", "Did you mean 'lr'? "),
        ("input.batchsize", "Did you mean 'input.batch_size'? "),
        # By the last part alone, where the folder is wrong too.
        ("optimizer.total_epoch", "Did you mean 'total_epochs'? "),
        ("learning_rate", "Did you mean 'lr'? "),  # an alias
        ("zzz", ""),
        ("momentum", ""),  # an alias of a name that is not among these
    ],
)
def test_the_guess_is_the_nearest_name_or_the_one_that_others_use(name, hint):
    aliases = {"learning_rate": "lr", "momentum": "beta"}
    assert phrases.did_you_mean(name, KEYS, aliases=aliases) == hint


def test_the_guess_is_shown_with_its_prefix():
    assert phrases.did_you_mean("epocs", ["epochs"], prefix="input.") == (
        "Did you mean 'input.epochs'? "
    )


def test_a_list_holds_looser_matches_best_first():
    assert phrases.nearest("adan", ["sgd", "adamw", "adam", "lion"]) == ["adam", "adamw"]
    assert phrases.nearest("adan", iter(["adamw", "adam"]), count=1) == ["adam"]


# Counts and sizes as people write them.


@pytest.mark.parametrize(
    ("number", "things", "text"),
    [
        (1, "rows", "1 row"),
        (0, "rows", "0 rows"),
        (1200, "rows of train", "1,200 rows of train"),
        (1, "rows of tests", "1 row of tests"),
        (1, "bad lines", "1 bad line"),
        (1, "boxes clipped to their image", "1 box clipped to their image"),
        (1, "masks without an image", "1 mask without an image"),
        (1, "hard-linked", "1 hard-linked"),
    ],
)
def test_one_thing_is_no_plural(number, things, text):
    assert phrases.count(number, things) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (5_846_670_816, "5.45 GiB"),
        (2**41, "2048.00 GiB"),
    ],
)
def test_a_size_has_its_binary_unit(num_bytes, text):
    assert phrases.size(num_bytes) == text


def test_what_nobody_sees_is_escaped():
    hidden = "a\x1b[31mb\u202ec\u2066\x9b\ud800\uffff\u2028d\r"
    shown = r"a\u001b[31mb\u202ec\u2066\u009b\ud800\uffff\u2028d\u000d"
    assert phrases.visible(hidden) == shown
    plain = "é\t日本 \N{FAMILY}\u200d\n\U0001f600"
    assert phrases.visible(plain) == plain
    text = json.dumps("\x7f\u202e", ensure_ascii=False)
    assert json.loads(phrases.visible(text)) == "\x7f\u202e"
