"""Take each system from its own raw data to a report, with a tiny model in place of 3B.

    python experiments/systems/run.py --workdir runs/systems

For each config: raw data as its users have it (make_data.py), import, check, train with `overfit`
(8 examples until the model repeats them), evaluate; the commands are printed as one would type
them. The model is a random one of 0.3 million parameters, put there by overrides alone. Writes
results.json and the table of README.md, unless --only names a system.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

import make_data

from paligemma_jax import check, evaluate, import_data, train
from paligemma_jax.data import tokens

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CODEC = ROOT / "experiments" / "mask_codec" / "codec.npz"

# What stands in for released weights: random ones, small, in float32, of few pieces.
TINY = (
    "model_init=None",
    "model.img.variant=tiny/14",
    "model.llm.variant=tiny",
    "model.llm.vocab_size=None",
    "compute_dtype=float32",
    "res=56",
)


@dataclasses.dataclass(frozen=True)
class System:
    """How one system's data become a run.

    Attributes:
      config: file in configs/, without its ending.
      options: of the import after SRC and DST; None: the raw layout is ours already.
      source: of the raw folder, what is imported.
      overrides: settings that random weights need besides TINY.
      scores: of metrics.json, with the least that shows that the examples are known by heart.
    """

    config: str
    options: tuple[str, ...] | None
    scores: dict[str, float]
    source: str = "."
    overrides: tuple[str, ...] = ()


SPLIT = "--split=train=0.75,valid=0.25"
SYSTEMS = {
    "fracture": System(
        "fracture_224",
        None,
        {"map50": 1.0, "mean_iou": 0.9},
        overrides=("lr=1.0", "input.text_len=32"),
    ),
    "water": System(
        "water_segmentation_224",
        ("--task=segmentation", "--classes=water", f"--mask_codec={CODEC}", SPLIT),
        {"miou": 0.9},
        overrides=("lr=1.0", f"mask_codec={CODEC}"),
    ),
    "counting": System(
        "counting_224", ("--task=counting",), {"json_exact": 1.0}, overrides=("lr=3e-3",)
    ),
    "structured_vqa": System(
        "structured_vqa_448",
        ("--task=vqa", SPLIT),
        {"exact_match": 1.0},
        source="labels.jsonl",
        overrides=("lr=1e-2", "input.text_len=64"),
    ),
    "vqa": System(
        "vqa_448",
        ("--task=vqa", "--columns=answer=multiple_choice_answer", SPLIT),
        {"exact_match": 1.0},
        overrides=("lr=3e-3",),
    ),
    "caption": System(
        "caption_224",
        ("--task=caption", SPLIT),
        {"exact_match": 1.0},
        source="photos.csv",
        overrides=("lr=3e-3",),
    ),
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Where a run begins.

    Attributes:
      config: as --config takes it, with its arguments.
      overrides: KEY=VALUE that put the tiny model in the place of released weights.
    """

    config: str
    overrides: tuple[str, ...]


def prepare(name: str, folder: pathlib.Path, *, say: Callable[[str], None]) -> Prepared:
    """Writes one system's raw data, and imports them where they are not JSONL of ours already."""
    system = SYSTEMS[name]
    raw, data = folder / "raw" / name, folder / "data" / name
    raw.mkdir(parents=True)
    make_data.WRITE[name](raw)
    if system.options is None:
        data = raw
    else:
        call(import_data.main, str(raw / system.source), str(data), *system.options, say=say)
    overrides = (*TINY, f"tokenizer={train_tokenizer(data)}", *system.overrides)
    return Prepared(f"{ROOT}/configs/{system.config}.py:data={data},overfit", overrides)


def run(name: str, folder: pathlib.Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Takes one system from raw data to a report and returns the row of the table."""
    start, workdir = time.monotonic(), folder / name
    prepared = prepare(name, folder, say=say)
    changes = [f"--config.{override}" for override in prepared.overrides]
    call(check.main, f"--config={prepared.config}", *changes, say=say)
    call(train.main, f"--config={prepared.config}", f"--workdir={workdir}", *changes, say=say)
    call(evaluate.main, f"--run={workdir}", "--data=input", say=say)
    evaluated = workdir / "evaluation-input"
    scores = json.loads((evaluated / "metrics.json").read_text())
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    return {
        "config": SYSTEMS[name].config,
        "records": len((evaluated / "predictions.jsonl").read_text().splitlines()),
        "steps": json.loads(rows[-1])["step"],
        "verbatim": scores["verbatim"],
        "scores": {key: scores[key] for key in SYSTEMS[name].scores},
        "seconds": round(time.monotonic() - start, 1),
    }


def call(door: Callable[[list[str]], None], *arguments: str, say: Callable[[str], None]) -> None:
    """Calls the main function of a door, as the command that is said would."""
    say(shlex.join(["python", "-m", door.__module__, *arguments]))
    door(list(arguments))


def train_tokenizer(data: pathlib.Path) -> pathlib.Path:
    """Writes a tokenizer of the texts of a data set's training rows, and returns its path."""
    (path,) = (p for p in data.glob("*.jsonl") if "train" in p.name)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    made = data / "tokenizer.model"
    tokens.train_tokenizer([text for row in rows for text in (row["prefix"], row["suffix"])], made)
    return made


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the table of README.md."""
    lines = [
        "| system | config | records | steps | repeated letter by letter | scores | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        scores = ", ".join(f"{key} {value:.3g}" for key, value in row["scores"].items())
        lines.append(
            f"| {name} | [{row['config']}](../../configs/{row['config']}.py) | {row['records']} "
            f"| {row['steps']} | {row['verbatim']:.0%} | {scores} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--only", choices=SYSTEMS, help="one system; writes no table")
    args = parser.parse_args(argv)
    rows = {name: run(name, args.workdir) for name in ([args.only] if args.only else SYSTEMS)}
    print(table(rows))
    if args.only:
        return
    (HERE / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    readme = HERE / "README.md"
    marked = re.compile(r"(<!-- table -->\n).*(<!-- /table -->)", re.DOTALL)
    readme.write_text(marked.sub(lambda m: f"{m[1]}{table(rows)}\n{m[2]}", readme.read_text()))


if __name__ == "__main__":
    main()
