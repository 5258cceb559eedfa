"""Draw tasks that the small base never saw, to measure what it brings to them.

    python experiments/tiny_base/new_tasks.py --out data/new_tasks

writes a folder for each, with `_annotations.{train,test}.jsonl` and pictures of 224 px:

    words     detect shapes that are known, by invented words: "detect dax"
    counting  count chess pieces, which no picture of the mixture shows: "count rook"
    fonts     read words in fonts that are not among the mixture's: "ocr"

A picture depends on (task, split, index) alone.
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import drawn
import make_data
import numpy as np
import rows
import scenes
import sources
from PIL import Image, ImageFont

from paligemma_jax.console import say
from paligemma_jax.files import atomic

SPLITS = {"train": (31, 1000), "test": (32, 200)}  # name: (seed, pictures)
WORDS = {"dax": "heart", "blicket": "gear", "wug": "crescent", "toma": "arrow", "fep": "star"}
PIECES = {"king": "\u265a", "queen": "\u265b", "rook": "\u265c", "bishop": "\u265d"}
PIECES |= {"knight": "\u265e", "pawn": "\u265f"}
FONTS = ("DejaVuSerif-BoldItalic", "DejaVuSansMono-BoldOblique", "DejaVuSans-BoldOblique")
FONTS = (*FONTS, "STIXGeneralBolIta")
BLANK = scenes.Thing("", "", (0, 0, 0, 0), Image.new("L", (1, 1)))


def place(rng, canvas, things, mask, noun, *, is_grey, plain=False):
    """Puts a mask somewhere where nothing else is and returns all things, one more if it fitted."""
    spot = scenes.find_place(rng, mask.size, things)
    if spot is None:
        return things
    _, fill = scenes.make_fill(rng, mask.size, is_grey=is_grey, canvas=canvas, plain=plain)
    box = (*spot, spot[0] + mask.width, spot[1] + mask.height)
    thing = dataclasses.replace(BLANK, noun=noun, box=box, mask=mask)
    scenes.put(rng, canvas, thing, fill)
    return [*things, thing]


def draw_words(rng, canvas, is_grey):
    """Returns (prompt, answer) of one or two shapes of one invented word, and others."""
    asked = str(rng.choice(list(WORDS)))
    nouns = [asked] * int(rng.integers(1, 3))
    nouns += [str(rng.choice([word for word in WORDS if word != asked]))] * int(rng.integers(0, 3))
    things = []
    for noun in nouns:
        side = int(rng.uniform(0.18, 0.4) * scenes.SIDE)
        mask = drawn.make_mask(rng, WORDS[noun], side)
        things = place(rng, canvas, things, mask, noun, is_grey=is_grey, plain=True)
    found = rows.in_order([thing for thing in things if thing.noun == asked])
    answer = " ; ".join(f"{rows.locs(thing)} {asked}" for thing in found)
    return f"detect {asked}", answer


def draw_counting(rng, canvas, is_grey):
    """Returns (prompt, answer) of one to six chess pieces of a kind, and some of another."""
    asked, other = (str(name) for name in rng.choice(list(PIECES), size=2, replace=False))
    nouns = [asked] * int(rng.integers(1, 7)) + [other] * int(rng.integers(0, 3))
    things = []
    for noun in nouns:
        mask = glyph(PIECES[noun], "DejaVuSans", int(rng.integers(32, 56)))
        things = place(rng, canvas, things, mask, noun, is_grey=is_grey, plain=True)
    return f"count {asked}", str(sum(thing.noun == asked for thing in things))


def draw_fonts(rng, canvas, is_grey):
    """Returns (prompt, answer) of a word."""
    text = str(rng.choice(make_data.words()))
    mask = glyph(text, str(rng.choice(FONTS)), int(rng.integers(28, 44)))
    if mask.width > scenes.SIDE - 10:
        mask = mask.resize((scenes.SIDE - 10, mask.height))
    place(rng, canvas, [], mask, text, is_grey=is_grey, plain=True)
    return "ocr", text


TASKS = {"words": draw_words, "counting": draw_counting, "fonts": draw_fonts}


@functools.cache
def _font(name):
    return ImageFont.truetype(sources.MATPLOTLIB / f"fonts/ttf/{name}.ttf", 64)


def glyph(text, font, height):
    """Returns the mask of a text, cut to its ink, `height` px high."""
    mask = _font(font).getmask(text, mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    cut = image.crop(image.getbbox())
    size = (max(4, round(cut.width * height / cut.height)), height)
    return cut.resize(size, Image.Resampling.BOX)


def write(out: pathlib.Path, sizes: dict[str, int]) -> None:
    """Draws the pictures and writes their rows, of all tasks."""
    for number, (task, draw) in enumerate(TASKS.items()):
        (out / task / "images").mkdir(parents=True, exist_ok=True)
        for split, (seed, _) in SPLITS.items():
            made = []
            with say.progress(f"drawing {task}, {split}", unit="pictures") as report:
                for index in range(sizes[split]):
                    rng = np.random.default_rng((seed, number, index))
                    is_grey = bool(rng.random() < 0.4)
                    canvas, _ = scenes.make_background(rng, is_grey)
                    prefix, suffix = draw(rng, canvas, is_grey)
                    image = f"images/{split}_{index:04d}.png"
                    scenes.finish(rng, canvas, is_grey).save(out / task / image)
                    made.append(json.dumps({"image": image, "prefix": prefix, "suffix": suffix}))
                    report(index + 1, sizes[split])
            path = out / task / f"_annotations.{split}.jsonl"
            atomic.write_bytes(path, ("\n".join(made) + "\n").encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    for name, (_, count) in SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"pictures of {name}")
    args = parser.parse_args()
    say.show_on_stderr()
    write(args.out, {name: getattr(args, name) for name in SPLITS})


if __name__ == "__main__":
    main()
