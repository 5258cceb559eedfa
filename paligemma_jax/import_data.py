"""Import a data set of another tool: JSONL files, images, and a look at both.

    python -m paligemma_jax.import_data data/coco data/mine --task detection
    python -m paligemma_jax.import_data photos.csv data/mine --task caption
    python -m paligemma_jax.import_data q.jsonl data/mine --task vqa --split train=0.9,valid=0.1
    python -m paligemma_jax.import_data roboflow://workspace/project/3 data/mine --task detection
    python -m paligemma_jax.import_data hf://HuggingFaceM4/VQAv2 data/vqa --task vqa --split train
    python -m paligemma_jax.import_data gs://longcap100 data/longcap100 --task caption

SRC is COCO, YOLO, Pascal VOC, labelme, CVAT for images, images with masks, JSONL (conversations of
LLaVA, OpenAI and ms-swift too), CSV with boxes or texts, parquet or Arrow (detected from its
files), a version of a Roboflow project, or the address of a data set: hf://OWNER/NAME,
gs://BUCKET, kaggle://OWNER/NAME. DST is a folder that gets a JSONL file per split, the images (hard
links where the disk is the same, else copies), a contact sheet, dropped.jsonl, which lists
everything that was left out, and for segmentation mask_round_trip.jsonl, which tells how much of
every mask its tokens keep.
"""

import argparse
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.importers import importing, options


def main(argv: Sequence[str] | None = None) -> None:
    chosen = options.read(parse_args(argv))
    summary = importing.import_data(chosen)
    importing.say_what_next(chosen, summary)
    arguments.print_result(summary)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    options.add(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments.run(main)
