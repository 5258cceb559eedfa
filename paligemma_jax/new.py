"""Write a config file to begin with: it refuses arguments and keys that it does not know.

    paligemma-jax new mine.py
    paligemma-jax new mine.py --data data/mine --task segmentation --model paligemma2-3b --res 448

The data are train.jsonl and valid.jsonl in a folder, as `paligemma-jax import_data` writes them.
From a data set to a run without a file: `paligemma-jax train --data FOLDER`.
"""

import argparse
import pathlib
from collections.abc import Sequence

from paligemma_jax.console import arguments, say
from paligemma_jax.settings import presets, template
from paligemma_jax.tasks import task

TASK = template.Config.task


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    config = template.Config(
        title=f"{args.model} on {args.data}.",
        name=args.file.stem,
        start=template.start_from(args.model, args.method, args.res),
        task=args.task,
        data=args.data,
    )
    template.save(args.file, template.write(config, args.file))
    say.info(f"{args.file}: look through it, then: paligemma-jax check --config {args.file}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE.py", type=pathlib.Path, help="to write")
    add("--data", metavar="FOLDER", default="data/mine", help="default: data/mine")
    add("--task", choices=tuple(task.TASKS), default=TASK, help=f"default: {TASK}")
    add("--model", default="paligemma2-3b", help="a released one, or from nothing: tiny, small")
    add("--method", help=f"what trains: {', '.join(presets.METHODS)}")
    add("--res", type=int, help="side of the images in pixels")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments.run(main)
