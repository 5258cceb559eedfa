"""Near misses of names."""

import pytest

from paligemma_jax.wording import near_misses

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
    assert near_misses.did_you_mean(name, KEYS, aliases=aliases) == hint


def test_the_guess_is_shown_with_its_prefix():
    assert near_misses.did_you_mean("epocs", ["epochs"], prefix="input.") == (
        "Did you mean 'input.epochs'? "
    )


def test_a_list_holds_looser_matches_best_first():
    assert near_misses.nearest("adan", ["sgd", "adamw", "adam", "lion"]) == ["adam", "adamw"]
    assert near_misses.nearest("adan", iter(["adamw", "adam"]), count=1) == ["adam"]
