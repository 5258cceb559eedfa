"""Draw a small data set for each of the five systems' configs, in the layout that its users have.

    python experiments/systems/make_data.py --out data/systems

writes a folder for each: fracture (Roboflow's JSONL), water (images and masks of equal names),
counting (Roboflow's COCO, a folder per split), structured_vqa (labels.jsonl), vqa (parquet, as
Hugging Face gives VQAv2) and caption (a CSV). Pictures are simple shapes on grey; what is asked can
be seen in them. A picture depends on (data set, index) alone: every run writes the same bytes.
"""

import argparse
import csv
import io
import json
import pathlib

import numpy as np
from PIL import Image, ImageDraw

SIDE = 112  # pixels
COUNT = 16
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230)}
COINS = {"dime": (9, (200, 200, 210)), "penny": (12, (190, 110, 60)), "euro": (16, (230, 200, 90))}
EVENTS = ("fall", "jump", "sit")
PHASES = ("start", "middle", "end")
PLACES = ("left", "right")


def rng_of(name: str, index: int) -> np.random.Generator:
    """Returns the source of randomness of one picture of a data set."""
    return np.random.default_rng((sum(map(ord, name)), index))


def background(rng: np.random.Generator) -> Image.Image:
    """Returns a grey picture with grain."""
    grain = rng.normal(rng.integers(90, 160), 6, (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8).repeat(3, axis=2))


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_fracture(folder: pathlib.Path) -> None:
    """Roboflow's JSONL for PaliGemma: `_annotations.SPLIT.jsonl`, images beside it."""
    for split, first in (("train", 0), ("valid", COUNT), ("test", 2 * COUNT)):
        rows = []
        for index in range(first, first + COUNT):
            rng = rng_of("fracture", index)
            image = background(rng)
            draw = ImageDraw.Draw(image)
            y = int(rng.integers(30, 80))
            draw.rectangle((5, y - 8, SIDE - 5, y + 8), fill=(225, 225, 220))  # a bone
            x = int(rng.integers(20, 90))
            draw.line((x - 4, y - 9, x + 4, y + 9), fill=(20, 20, 20), width=4)
            name = f"{split}_{index:03d}_jpg.rf.{index:08x}.jpg"
            image.save(folder / name, quality=90)
            box = np.array([y - 12, x - 10, y + 12, x + 10]) / SIDE
            text = "".join(f"<loc{round(v * 1023):04d}>" for v in box)
            suffix = f"{text} fracture"
            rows.append({"image": name, "prefix": "detect fracture", "suffix": suffix})
        write_lines(folder / f"_annotations.{split}.jsonl", rows)


def write_water(folder: pathlib.Path) -> None:
    """Images and black and white masks, both JPEG, by the same names in two folders."""
    (folder / "Images").mkdir()
    (folder / "Masks").mkdir()
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for index in range(COUNT):
        rng = rng_of("water", index)
        cy, cx = rng.uniform(0.4, 0.6, size=2) * SIDE
        angle = np.arctan2(y - cy, x - cx)
        radius = rng.uniform(24, 34) + sum(
            rng.uniform(1, 7) / wave * np.cos(wave * angle + rng.uniform(0, 6)) for wave in (2, 3)
        )
        is_water = np.hypot(y - cy, x - cx) < radius
        pixels = np.asarray(background(rng)).copy()
        pixels[is_water] = (30, 60, 110)
        name = f"water_body_{index}.jpg"
        Image.fromarray(pixels).save(folder / "Images" / name, quality=90)
        Image.fromarray(is_water.astype(np.uint8) * 255).save(folder / "Masks" / name, quality=90)


def write_counting(folder: pathlib.Path) -> None:
    """COCO as Roboflow writes it: SPLIT/_annotations.coco.json, images beside it."""
    names = list(COINS)
    categories = [{"id": 0, "name": "coins", "supercategory": "none"}]
    categories += [{"id": i, "name": n, "supercategory": "coins"} for i, n in enumerate(names, 1)]
    for split, first in (("train", 0), ("valid", COUNT)):
        (folder / split).mkdir()
        images, annotations = [], []
        for index in range(first, first + COUNT):
            rng = rng_of("counting", index)
            image = background(rng)
            draw = ImageDraw.Draw(image)
            places = rng.permutation(9)[: rng.integers(1, 7)]
            for place in places:
                coin = int(rng.integers(len(names)))
                radius, colour = COINS[names[coin]]
                cy, cx = (20 + 36 * int(v) for v in divmod(place, 3))
                box = (cx - radius, cy - radius, cx + radius, cy + radius)
                draw.ellipse(box, fill=colour, outline=(30, 30, 30))
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": index,
                        "category_id": coin + 1,
                        "bbox": [box[0], box[1], 2 * radius, 2 * radius],
                    }
                )
            name = f"coins_{index:03d}.jpg"
            image.save(folder / split / name, quality=90)
            images.append({"id": index, "file_name": name, "width": SIDE, "height": SIDE})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def write_structured_vqa(folder: pathlib.Path) -> None:
    """labels.jsonl with image, question and answer, images in a folder beside it."""
    (folder / "images").mkdir()
    rows = []
    for index in range(COUNT):
        rng = rng_of("structured_vqa", index)
        image, said = background(rng), []
        for place, event in enumerate(rng.permutation(EVENTS)[: rng.integers(1, 3)].tolist()):
            phase = str(rng.choice(PHASES))
            colour = list(COLOURS.values())[EVENTS.index(event)]
            size = 12 + 10 * PHASES.index(phase)
            corner = 8 + 56 * place
            box = (corner, corner, corner + size, corner + size)
            ImageDraw.Draw(image).rectangle(box, fill=colour)
            said.append(f"{event}: {phase}")
        image.save(folder / "images" / f"{index:03d}.png")
        question = "which events are there, and in which phase?"
        answer = "; ".join(said)
        rows.append({"image": f"images/{index:03d}.png", "question": question, "answer": answer})
    write_lines(folder / "labels.jsonl", rows)


def write_vqa(folder: pathlib.Path) -> None:
    """Parquet with pictures inside, as Hugging Face's data sets have them."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for index in range(COUNT):
        rng = rng_of("vqa", index)
        image, colour = background(rng), str(rng.choice(list(COLOURS)))
        side = int(rng.integers(2))
        draw = ImageDraw.Draw(image)
        draw.ellipse((8 + 56 * side, 40, 48 + 56 * side, 80), fill=COLOURS[colour])
        asked = ("what color is the ball?", colour), ("where is the ball?", PLACES[side])
        question, answer = asked[index % 2]
        file = io.BytesIO()
        image.save(file, "PNG")
        rows.append(
            {
                "image": {"bytes": file.getvalue(), "path": f"{index:03d}.png"},
                "question": question,
                "multiple_choice_answer": answer,
            }
        )
    parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "validation-00000-of-00001.parquet"
    )


def write_caption(folder: pathlib.Path) -> None:
    """photos.csv with the columns image and caption, images beside it."""
    with open(folder / "photos.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for index in range(COUNT):
            rng = rng_of("caption", index)
            image, (left, right) = background(rng), rng.choice(list(COLOURS), size=2).tolist()
            draw = ImageDraw.Draw(image)
            draw.ellipse((8, 40, 48, 80), fill=COLOURS[left])
            draw.rectangle((64, 40, 104, 80), fill=COLOURS[right])
            image.save(folder / f"{index:03d}.png")
            writer.writerow([f"{index:03d}.png", f"a {left} ball to the left of a {right} box"])


WRITE = {
    "fracture": write_fracture,
    "water": write_water,
    "counting": write_counting,
    "structured_vqa": write_structured_vqa,
    "vqa": write_vqa,
    "caption": write_caption,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    args = parser.parse_args()
    for name, write in WRITE.items():
        folder = args.out / name
        folder.mkdir(parents=True)
        write(folder)
        print(f"{folder}: {sum(path.is_file() for path in folder.rglob('*'))} files")


if __name__ == "__main__":
    main()
