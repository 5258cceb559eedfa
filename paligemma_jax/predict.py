"""Answer a prompt about images: JSON lines on standard output, annotated pictures if wanted.

    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" scan.png
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" \\
        --pictures out/ 'scans/*.png' more_scans/

Images are files, folders, globs or addresses (https:// gs:// s3://). --run and --config as in
paligemma_jax.evaluate; how answers are made: --eval.sampler=beam, --eval.max_new_tokens=64,
--eval.batch_size=8.
"""

import argparse
import glob
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma_jax.build import assembly, command_line, data, predictor, terminal
from paligemma_jax.data import remote
from paligemma_jax.reports import drawing

NOT_DECODING = ("fname", "image_dir", "num_examples", "decode", "scores")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    config, source = assembly.open_run(args.run, args.config, overrides["config"])
    source = assembly.choose_weights(args.weights, source, chosen=args.checkpoint)
    paths = find_images(args.images)
    pictures = pathlib.Path(args.pictures) if args.pictures else None
    if pictures:
        assembly.check_writable(pictures, option="--pictures")
    check_decoding(overrides["eval"])
    chosen = assembly.set_evaluation(config, "predict", "(command line)", overrides["eval"])
    opened = predictor.open_predictor(
        assembly.assemble(config),
        source,
        base=args.base,
        batch_size=chosen.get("batch_size") or min(8, len(paths)),
        settings=chosen,
    )
    with terminal.progress("answering", unit="images") as report:
        for row in opened.iterate(paths, args.prompt, progress=report):
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            if pictures:
                draw(row, paths, pictures)


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = command_line.parser(__doc__)
    command_line.add_source(parser)
    parser.add_argument("--prompt", required=True, help='the prefix, as "detect fracture"')
    parser.add_argument("--pictures", metavar="FOLDER", help="write annotated pictures there")
    parser.add_argument("images", nargs="+", help="files, folders, globs or addresses")
    return command_line.parse(parser, argv, groups=["config", "eval"])


def check_decoding(overrides: Sequence[str]) -> None:
    """Raises a ValueError for keys of evaluations that say nothing about how to answer."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in NOT_DECODING or key.startswith("log_"):
            raise ValueError(f"--eval.{key} has no effect on predictions; it is for evaluations")


def find_images(patterns: Sequence[str]) -> list[str]:
    """Returns what files, addresses, folders (not their subfolders) and globs stand for.

    Raises:
      ValueError: one of them stands for nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        if remote.is_address(pattern):
            files = [pattern]
        elif os.path.isdir(pattern):
            inside = sorted(os.listdir(pattern))
            files = [os.path.join(pattern, f) for f in inside if f.lower().endswith(SUFFIXES)]
        elif os.path.isfile(pattern):
            files = [pattern]
        else:
            files = sorted(glob.glob(pattern, recursive=True))
        if not files:
            raise ValueError(f"'{pattern}': no such file, and no folder or glob with {SUFFIXES}")
        found += files
    return list(dict.fromkeys(found))


def draw(row: dict[str, Any], paths: list[str], folder: pathlib.Path) -> None:
    """Writes the image with its boxes; the name shows where it is from, so that none is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    path = paths[row["index"]]
    detections = row.get("detections", [])
    boxes = np.array([d["box_yxyx"] for d in detections], np.float32).reshape(-1, 4)
    image = drawing.draw_boxes(
        data.open_image(path),
        boxes,
        [d["label"] for d in detections],
        [d["score"] for d in detections],
        masks=[d["mask"] for d in detections] if any("mask" in d for d in detections) else None,
    )
    stem, taken = pathlib.Path(path).stem, [pathlib.Path(p).stem for p in paths]
    name = stem if taken.count(stem) == 1 else f"{stem}-{row['index']:06d}"
    image.save(folder / f"{name}.png")


if __name__ == "__main__":
    command_line.run(main)
