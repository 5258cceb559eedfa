"""The console command: `paligemma-jax COMMAND ...`, which `python -m paligemma_jax` is too."""

import importlib
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.wording import phrases

PROGRAM, PACKAGE = arguments.PROGRAM, "paligemma_jax"
# Each is a module too: python -m paligemma_jax.train.
DOORS = {
    "check": "look at machine, keys, data and settings before anything costs",
    "train": "fine-tune a model: a config in, a run's folder out",
    "sweep": "train many settings of one config, and compare them in one table",
    "evaluate": "score weights on a data set",
    "predict": "answer to images and videos",
    "import_data": "data sets of other tools to JSONL and images",
    "label": "label images in the browser, or correct labels",
    "convert": "weights to Hugging Face and back",
    "fetch": "get weights, tokenizer and mask codec before they are needed",
    "launch": "start one of these on a TPU that is made for it, under Slurm, or on hosts",
    "configs": "list the configs that come with it, or copy one",
    "new": "write a config file to begin with",
    "finetune": "what train does with --data in place of --config: no config file is needed",
}
# What other programs call a command.
OTHERS = {"val": "evaluate", "test": "evaluate", "detect": "predict", "infer": "predict"}
OTHERS |= {"generate": "predict", "export": "convert", "fit": "train", "tune": "sweep"}
OTHERS |= {"annotate": "label", "correct": "label"}
OTHERS |= {"download": "fetch", "init": "new", "import": "import_data"}
HELP, VERSION = ("-h", "--help", "help"), ("--version", "version")


def main(argv: Sequence[str] | None = None) -> None:
    """Calls the command that the first word names; prints one line a command without one."""
    words = list(sys.argv[1:] if argv is None else argv)
    command = words[0].replace("-", "_") if words else HELP[0]
    if words and words[0] in VERSION:
        print(f"{PROGRAM} {sys.modules[PACKAGE].__version__}")
    elif not words or words[0] in HELP:
        print(describe())
    elif command not in DOORS:
        hint = phrases.did_you_mean(command, DOORS, aliases=OTHERS)
        sys.exit(f"error: '{words[0]}' is no command. {hint}There are: {', '.join(DOORS)}")
    elif command == "train" and len(words) == 1:
        sys.exit("error: train needs --data FOLDER --model NAME, or --config FILE --workdir FOLDER")
    else:
        call(choose(command, words[1:]), words[1:], name=command)


def describe() -> str:
    """Returns one line a command."""
    lines = [f"  {PROGRAM} {name:11} {what}" for name, what in DOORS.items()]
    last = f"python -m paligemma_jax.train is {PROGRAM} train, and so on"
    return "\n".join(["Fine-tune PaliGemma 1 and 2. Each has --help:", *lines, last])


def choose(command: str, words: Sequence[str]) -> str:
    """Returns the door of a command: `train` has one more, for data without a config."""
    names = {word.partition("=")[0] for word in words}
    has_config = names & {"--config", *HELP}
    return "finetune" if command == "train" and words and not has_config else command


def call(door: str, words: Sequence[str], *, name: str) -> None:
    """Calls a door with its words, as if the command `name` had been called alone."""
    sys.argv = [f"{PROGRAM} {name}", *words]
    arguments.run(importlib.import_module(f"{PACKAGE}.{door}").main)


if __name__ == "__main__":
    main()
