"""Fine-tune without a config file: data and a model in, a run's folder out.

    paligemma-jax train --data data/coco --model paligemma2-3b
    paligemma-jax train --data data/mine --model paligemma2-3b --method lora --res 448 --epochs 10
    paligemma-jax train --data data/coco --model tiny

--data is a folder or file of JSONL with image, prefix and suffix, or a data set of another tool
(COCO, YOLO, Pascal VOC, labelme, CVAT, masks, CSV, parquet) or the address of one (hf:// gs://
kaggle:// roboflow://), which is imported first. Task and classes are seen from the data; without a
validation set, one is kept out of the training data. --model is a released model (paligemma1-3b,
paligemma2-3b, -10b, -28b), or one from nothing (tiny, small), of a million parameters or two, which
learns on a CPU.

The run's folder, runs/NAME of the data unless --workdir names another, gets config.py, which says
all that was chosen: change a copy and give it as --config. The same command goes on after a stop.
Any config key may be set: --config.lr=0.03. With a config file: paligemma-jax train --config FILE.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.preparing import data_search, starting
from paligemma_jax.settings import presets, schema

# Options that `import_data` has too.
OF_IMPORT = ("classes", "columns", "prompt", "mask_codec", "split", "only", "first", "group")


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    args, overrides = parse_args(words)
    of_import = {f"--{name}": getattr(args, name) for name in OF_IMPORT}
    further = [word for name, value in of_import.items() if value for word in (name, value)]
    starting.train(
        starting.StartOptions(
            wanted=data_search.Wanted(
                data=args.data, task=args.task, words=further, images=args.images
            ),
            model=args.model,
            method=args.method,
            res=args.res,
            epochs=args.epochs,
            batch_size=args.batch_size,
            workdir=args.workdir,
            command=describe(words, args.data),
            overrides=overrides["config"],
            resume_anyway=args.resume_anyway,
        )
    )


def describe(words: Sequence[str], data: str) -> str:
    """Returns the line that the config will tell: what it asks for, wherever it is given."""
    is_path = os.path.exists(data)
    whole = [os.path.abspath(data) if is_path and word == data else word for word in words]
    left_out = starting.saving.ANYWAY
    return shlex.join(["paligemma-jax", "train", *(word for word in whole if word != left_out)])


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--data", metavar="FOLDER", required=True, help="data set: folder, file, or address")
    add("--model", metavar="NAME", required=True, help="what to start from")
    add("--method", help=f"what trains: {', '.join(presets.METHODS)}; default: attention")
    add("--task", help="what answers are; default: as the data are")
    add("--res", type=int, metavar="PX", help="side of the images; default: 224, from nothing 112")
    add("--epochs", type=float, help="passes over the data; default: 10, from nothing more")
    add("--batch_size", type=int, help="default: 8, from nothing 16")
    add("--workdir", metavar="FOLDER", type=pathlib.Path, help="default: runs/NAME of the data")
    add("--images", metavar="FOLDER", help="of the images; default: that of the data")
    for name in OF_IMPORT:
        add(f"--{name}", help="as of paligemma-jax import_data")
    add("--resume_anyway", action="store_true", help="as of paligemma-jax train --config")
    return arguments.parse(parser, argv, groups={"config": schema.names()})


if __name__ == "__main__":
    arguments.run(main)
