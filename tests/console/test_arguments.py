"""Arguments that are given in other ways than the doors take them."""

import re

import pytest

from paligemma_jax.console import arguments
from paligemma_jax.settings import schema

GROUPS = {"config": schema.names(), "eval": schema.eval_names()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.lr", "0.1"], r"--config.lr: write --config.lr=VALUE, without a space"),
        (["--lr=0.1"], r"lr is a key of the settings: --config.lr=VALUE"),
        (["--max_new_tokens", "3"], r"--eval.max_new_tokens=VALUE"),
        (["--nothing"], r"unrecognized arguments: --nothing$"),
    ],
)
def test_settings_given_in_another_way_are_explained(words, message, capsys):
    parser = arguments.parser("A door.")
    with pytest.raises(SystemExit, match="2"):
        arguments.parse(parser, words, groups=GROUPS)
    assert re.search(message, capsys.readouterr().err.strip())


def test_overrides_are_kept_apart_by_group():
    parser = arguments.parser("A door.")
    words = ["--config.lr=0.1", "--eval.max_new_tokens=3", "--config.evals.val.fname=a=b"]
    _, overrides = arguments.parse(parser, words, groups=GROUPS)
    assert overrides == {
        "config": ["lr=0.1", "evals.val.fname=a=b"],
        "eval": ["max_new_tokens=3"],
    }
