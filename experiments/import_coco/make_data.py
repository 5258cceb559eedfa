"""Write a COCO data set of real size: 7,000 images of 640x480 with 50,000 boxes and polygons.

    python experiments/import_coco/make_data.py --out data/big_coco

writes annotations/instances_train2017.json and train2017/*.jpg. Seed 0: every run writes the same.
"""

import argparse
import json
import pathlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT, CORNERS, CLASSES = 640, 480, 20, 80


def make_annotation(rng, number, image):
    x, y, w, h = rng.uniform([0, 0, 5, 5], [500, 400, 120, 70])
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    outline = np.stack([x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))], axis=1)
    return {
        "id": number,
        "image_id": image,
        "category_id": int(rng.integers(1, CLASSES + 1)),
        "bbox": [round(float(value), 2) for value in (x, y, w, h)],
        "segmentation": [np.round(outline, 2).reshape(-1).tolist()],
        "area": float(w * h),
        "iscrowd": 0,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--images", type=int, default=7000)
    parser.add_argument("--boxes", type=int, default=50_000)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    names = [f"{number:012d}.jpg" for number in range(args.images)]
    for folder in ("train2017", "annotations"):
        (args.out / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        small = np.full((HEIGHT // 16, WIDTH // 16, 3), number % 256, np.uint8)
        small[0, 0] = number // 256
        image = Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
        image.save(args.out / "train2017" / name, quality=40)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(names)
        ],
        "annotations": [
            make_annotation(rng, number + 1, number % args.images) for number in range(args.boxes)
        ],
        "categories": [
            {"id": number, "name": f"class {number}", "supercategory": "thing"}
            for number in range(1, CLASSES + 1)
        ],
    }
    (args.out / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
