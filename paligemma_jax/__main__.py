"""Says which commands there are: `python -m paligemma_jax`."""

import sys

DOORS = {
    "check": "look at machine, keys, data and settings before anything costs",
    "train": "fine-tune a model: a config in, a run's folder out",
    "sweep": "train many settings of one config, and compare them in one table",
    "evaluate": "score weights on a data set",
    "predict": "answer to images and videos",
    "import_data": "data sets of other tools to JSONL and images",
    "convert": "weights to Hugging Face and back",
}


def main() -> None:
    """Prints one line a command."""
    lines = [f"  python -m paligemma_jax.{name:11} {what}" for name, what in DOORS.items()]
    print("\n".join(["Fine-tune PaliGemma 1 and 2. Each has --help:", *lines]))
    if sys.argv[1:]:
        sys.exit(f"error: '{sys.argv[1]}': write a dot, as python -m paligemma_jax.train")


if __name__ == "__main__":
    main()
