"""Writes small data sets with the tools that users have them from, for the importers' tests.

    pip install supervision==0.31.2 datasets==5.2.0
    python tests/reference/make_datasets.py tests/reference/datasets

Four images of 64x48 px with coins as coloured rectangles, the last one empty: as COCO, YOLO and
Pascal VOC by supervision, and with questions as save_to_disk and parquet by datasets.
"""

import os
import pathlib
import sys

import datasets
import numpy as np
import supervision
from PIL import Image

CLASSES = ["dime", "half dollar"]
# (class, x0, y0, x1, y1) in pixels, per image.
COINS = [
    [(0, 25, 12, 44, 24)],
    [(1, 5, 16, 27, 39), (0, 18, 10, 38, 33)],
    [(0, 11, 17, 31, 25), (0, 2, 17, 10, 34), (1, 12, 0, 20, 10)],
    [],
]


def draw(coins):
    pixels = np.full((48, 64, 3), 60, np.uint8)
    masks = np.zeros((len(coins), 48, 64), bool)
    for number, (coin, x0, y0, x1, y1) in enumerate(coins):
        masks[number, y0:y1, x0:x1] = True
        pixels[masks[number]] = (200, 60 + 130 * coin, 40 * number)
    return pixels, masks


def main(folder):
    os.chdir(folder)  # paths in the files are relative
    annotations = {}
    for number, coins in enumerate(COINS):
        pixels, masks = draw(coins)
        Image.fromarray(pixels).save(f"{number}.png")
        if coins:
            boxes = np.array([coin[1:] for coin in coins], np.float32)
            ids = np.array([coin[0] for coin in coins])
            found = supervision.Detections(xyxy=boxes, class_id=ids, mask=masks)
        else:
            found = supervision.Detections.empty()
        annotations[f"{number}.png"] = found
    data = supervision.DetectionDataset(CLASSES, list(annotations), annotations)
    data.as_coco(
        images_directory_path="coco/images", annotations_path="coco/annotations/train.json"
    )
    data.as_yolo("yolo/train/images", "yolo/train/labels", "yolo/data.yaml")
    data.as_pascal_voc("voc/images", "voc/annotations")
    rows = {
        "image": [{"bytes": pathlib.Path(path).read_bytes(), "path": None} for path in annotations],
        "question": ["how many coins?"] * 4,
        "answer": [str(len(coins)) for coins in COINS],
        "label": [len(coins) % 2 for coins in COINS],
    }
    features = datasets.Features(
        image=datasets.Image(),
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        label=datasets.ClassLabel(names=["even", "odd"]),
    )
    rows = datasets.Dataset.from_dict(rows, features=features)
    train, test = rows.select([0, 1, 2]), rows.select([3])
    datasets.DatasetDict(train=train, test=test).save_to_disk("arrow")
    pathlib.Path("parquet").mkdir(exist_ok=True)
    for name, part in {"train": train, "test": test}.items():
        part.to_parquet(f"parquet/{name}-00000-of-00001.parquet")
    for path in annotations:
        pathlib.Path(path).unlink()


if __name__ == "__main__":
    main(sys.argv[1])
