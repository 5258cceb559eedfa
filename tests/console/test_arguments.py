"""Arguments that are given in other ways than the doors take them."""

import re

import jax
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
        (["--nothing"], r"unrecognized arguments: --nothing\. --help lists what there is$"),
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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("a prompt is missing: give --prompt. Rows", "a prompt is missing: give prompt=. Rows"),
        (
            "--config.accumulation_steps=2 (then it fits); --config.trainable=llm/.* too",
            "changes={'accumulation_steps': 2} (then it fits); changes={'trainable': 'llm/.*'} too",
        ),
        ("--resume_anyway goes on, --weights FILE", "resume_anyway=True goes on, weights= FILE"),
        ("well-known, a--b and -- stay", "well-known, a--b and -- stay"),
    ],
)
def test_functions_name_what_they_are_given_as_python_does(said, shown):
    def fail():
        raise ValueError(said)

    with pytest.raises(ValueError) as caught:
        arguments.once_in_words(fail)()
    assert str(caught.value) == shown


def test_a_device_without_memory_says_what_to_change_in_python_too():
    def fail():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    with pytest.raises(jax.errors.JaxRuntimeError, match=r"^out of device memory\. Raise") as e:
        arguments.once_in_words(fail)()
    assert str(e.value).endswith("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/somewhere/bin/paligemma-jax", ["paligemma-jax", "evaluate"]),
        ("paligemma-jax train", ["paligemma-jax", "evaluate"]),
        (f"{arguments.PACKAGE}/train.py", ["python", "-m", "paligemma_jax.evaluate"]),
        (f"{arguments.PACKAGE}/__main__.py", ["paligemma-jax", "evaluate"]),
        ("ipykernel_launcher.py", ["paligemma-jax", "evaluate"]),
    ],
)
def test_commands_are_named_as_the_program_was_called(program, words, monkeypatch):
    monkeypatch.setattr("sys.argv", [program])
    assert arguments.command("evaluate") == words
