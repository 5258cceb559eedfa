"""The commands that stand in the pages, run as they stand there, where what they name lies."""

import importlib
import json
import pathlib
import shutil

import numpy as np
import pyarrow
import pytest
from PIL import Image, ImageDraw
from pyarrow import parquet

from paligemma_jax.data import tokens
from paligemma_jax.prediction import video
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets
from tests import pages

pytestmark = pytest.mark.slow
DATASETS = pages.ROOT / "tests" / "reference" / "datasets"
CODEC = pages.ROOT / "experiments" / "mask_codec" / "codec.npz"
DIMS = dict(width=16, depth=1, mlp_dim=16, num_heads=1)
# What a page names that nobody has before: an address, weights of 6 GB, a placeholder.
NOT_HERE = (
    *("roboflow://", "SRC", "paligemma-3b-mix-224", "pt-224.npz", "pt_224", "pt_3b_224"),
    *("hf/my-paligemma", "hf/moondream2", "hf://", "gs://", "kaggle://", "mix_3b_448"),
)
DETECTED = {"prefix": "detect fracture", "suffix": "<loc0100><loc0200><loc0600><loc0700> fracture"}
COUNTED = {"prefix": "How many of each coin? Answer in JSON.", "suffix": '{"dime": 2}'}
ASKED = {"prefix": "what changed?", "suffix": "nothing"}
RUNS = {  # folder below runs/: its task, its row, and settings of its own
    "mine": ("detection", DETECTED, {}),
    "fracture": ("detection", DETECTED, {"model_init": "runs/mine/final.npz"}),
    "lora": (
        "detection",
        DETECTED,
        {"lora.targets": "llm", "model_init": "runs/fracture/final.npz"},
    ),
    "vqa": ("vqa", ASKED, {"input.max_images": 2}),
    "vqav2": ("vqa", {**ASKED, "answers": ["nothing", "a car"]}, {}),
    "counting": ("json", COUNTED, {"input.text_len": 64}),
}


def draw(path, number, size=(64, 48)):
    """Writes a picture with one bright rectangle, and returns its corners x0, y0, x1, y1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((size[1], size[0], 3), 10 * number, np.uint8))
    box = (4 + number, 6, 30 + number, 40)
    ImageDraw.Draw(picture).rectangle(box, fill=(250, 200, 20 * number))
    picture.save(path)
    return box


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sources(here: pathlib.Path) -> None:
    """Writes the data sets of other tools that docs/data.md names."""
    for name in ("coco", "yolo", "voc"):
        shutil.copytree(DATASETS / name, here / "data" / name)
    shutil.copytree(DATASETS / "coco", here / "data" / "coins_coco")
    shutil.copytree(DATASETS / "coco", here / "data" / "big_coco")
    images = [f"{number}.png" for number in range(10)]
    boxes = [draw(here / name, number) for number, name in enumerate(images)]
    for name, header, rows in (
        ("boxes.csv", "image,class,x1,y1,x2,y2", [("cat", *box) for box in boxes]),
        ("photos.csv", "image,caption", [(f"picture {number}",) for number in range(10)]),
    ):
        lines = [",".join(map(str, (image, *row))) for image, row in zip(images, rows, strict=True)]
        (here / name).write_text("\n".join([header, *lines]))
    asked = [{"image": name, "question": "what?", "answer": f"it is {name[0]}"} for name in images]
    write_lines(here / "labels.jsonl", asked)
    of_people = [{"image": f"{number}.png", **ASKED, "answers": ["a"]} for number in range(20)]
    write_lines(here / "vqav2" / "questions.jsonl", of_people)
    for number, row in enumerate(of_people):
        draw(here / "vqav2" / row["image"], number % 12, size=(64 + number, 48))
    (here / "data" / "hf").mkdir()
    rows = [{"image": row["image"], "q": "what?", "answer": row["answer"]} for row in asked]
    for row in rows:
        row["image"] = {"bytes": (here / row["image"]).read_bytes(), "path": None}
    parquet.write_table(pyarrow.Table.from_pylist(rows), here / "data" / "hf" / "train.parquet")
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        water = np.zeros((48, 64), np.uint8)
        water[y0:y1, x0:x1] = 255
        street = np.full((48, 64), 2, np.uint8)  # classes count from 0: sky, road, nothing
        street[:8], street[y0:y1, x0:x1] = 0, 1
        for name, mask in (("water", water), ("street", street)):
            draw(here / "data" / name / "images" / f"{number}.png", number)
            (here / "data" / name / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(here / "data" / name / "masks" / f"{number}.png")
        draw(here / "data" / "labelme" / f"{number}.png", number)
        shape = {"label": "cat", "points": [[x0, y0], [x1, y1]], "shape_type": "rectangle"}
        size = {"imagePath": f"{number}.png", "imageHeight": 48, "imageWidth": 64}
        described = json.dumps({"shapes": [shape], **size})
        (here / "data" / "labelme" / f"{number}.json").write_text(described)


def write_runs(here: pathlib.Path) -> None:
    """Trains two steps of each run that a page names, on one row, and writes what it is asked."""
    texts = [row[key] for _, row, _ in RUNS.values() for key in ("prefix", "suffix")]
    tokens.train_tokenizer(texts, here / "tokenizer.model", vocab_size=1600)
    draw(here / "scan.png", 3)
    for name in ("scans/1.png", "new/1.png", "data/demo/test_00000.png", "before.png", "after.png"):
        draw(here / name, 5)
    with video.VideoFile(here / "clip.mp4", rate=4) as file:
        for _ in range(16):
            file.append(Image.open(here / "scan.png"))
    write_lines(here / "questions.jsonl", [{"image": "scan.png", "prefix": "what changed?"}])
    write_lines(here / "test.jsonl", [{"image": "scan.png", **COUNTED}])
    whole = {"type": "integer", "minimum": 0, "maximum": 9}
    schema = {"type": "object", "properties": {"dime": whole}, "required": ["dime"]}
    (here / "schema.json").write_text(json.dumps(schema))
    for name, (task, row, changes) in RUNS.items():
        config = presets.from_scratch(
            res=14, text_len=48, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
        )
        config.task, config.total_steps, config.input.batch_size = task, 2, 2
        config.tokenizer = "tokenizer.model"
        config.input.data.fname = f"data/{name}/_annotations.test.jsonl"
        config.keep_best = "val/loss"
        config.evals.val = dict(fname=f"data/{name}/valid.jsonl", log_steps=1, decode=False)
        config.update_from_flattened_dict(changes)
        images = ["0.png", "1.png"][: config.input.max_images]
        for number, image in enumerate(images):
            draw(here / "data" / name / image, number)
        for file in ("_annotations.test.jsonl", "valid.jsonl"):
            write_lines(here / "data" / name / file, [{"image": images, **row}])
        whole_run.train(load.typed(config), here / "runs" / name)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder where everything lies that the pages' commands name."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").symlink_to(pages.ROOT / "configs")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_sources(folder)
        write_runs(folder)
        shutil.copytree(folder / "runs" / "fracture", folder / "runs" / "demo")
    return folder


def commands(*doors):
    """Returns the commands of the pages for users, each once, that need nothing from elsewhere."""
    found = []
    for page in pages.names():
        if page.startswith("experiments"):
            continue
        for command in pages.commands(page):
            away = [word for word in command for name in NOT_HERE if name in word]
            if command[0] in doors and len(command) > 2 and not away and command not in found:
                found.append(command)
    return found


@pytest.mark.parametrize(
    "command", commands("import_data", "evaluate", "predict", "convert"), ids=" ".join
)
def test_command_of_a_page_runs(command, here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    door, *words = [str(CODEC) if word == "FILE" else word for word in command]
    if door in ("import_data", "convert"):  # several pages write the same folder
        words = [words[0], f"made/{words[1]}", *words[2:], "--overwrite"]
    importlib.import_module(f"paligemma_jax.{door}").main(words)
    assert capsys.readouterr().out
