"""Scenes: a background of real pixels, and things on it whose names, boxes and masks are known.

A scene depends on (seed, index) alone. Things do not overlap, but for flaws (a hole, a notch, a
scratch, a stain), which lie on one of them. Two of five scenes are grey, as scans are.
"""

import dataclasses

import drawn
import numpy as np
import sources
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 224
COLORS = {
    "red": (205, 40, 40),
    "green": (45, 150, 60),
    "blue": (45, 75, 205),
    "yellow": (235, 210, 50),
    "orange": (240, 135, 30),
    "purple": (125, 50, 160),
    "pink": (245, 150, 185),
    "cyan": (70, 205, 215),
    "brown": (120, 75, 40),
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "black": (20, 20, 20),
}
GREYS = ("white", "gray", "black")
SURFACES = ("brick", "grass", "gravel")
FLAWS = ("hole", "notch", "scratch", "stain")
MIN_CONTRAST = 45  # between a thing's fill and what is behind it, in levels
MARGIN = 6  # px between things
TRIES = 12  # to find a place for a thing
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
DIGITS = "0123456789"


@dataclasses.dataclass(frozen=True, eq=False)
class Thing:
    """Something in a scene.

    Attributes:
      noun: what it is; group: what else it may be called ("shape", "digit"); adjective: its colour
        or surface; text: what it says.
      box: x1, y1, x2, y2 in px.
      mask: mode L, of the size of the box.
    """

    noun: str
    group: str
    box: tuple[int, int, int, int]
    mask: Image.Image
    adjective: str = ""
    text: str = ""

    @property
    def phrases(self) -> set[str]:
        """What can be asked for to get this one."""
        names = {self.noun, self.group} - {""}
        return names | {f"{self.adjective} {name}" for name in names if self.adjective}


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    picture: Image.Image
    things: list[Thing]
    background: str


def make(seed: int, index: int, *, part: sources.Part, words: list[str]) -> Scene:
    """Returns a scene."""
    rng = np.random.default_rng((seed, index))
    is_grey = rng.random() < 0.4
    canvas, background = make_background(rng, is_grey)
    under, things = canvas.copy(), []
    for name in choose_nouns(rng):
        thing, mask, fill = dress(rng, name, part, words, is_grey=is_grey, canvas=canvas)
        place = find_place(rng, mask.size, things)
        if place is None:
            continue
        x, y = place
        thing = dataclasses.replace(thing, box=(x, y, x + mask.width, y + mask.height))
        put(rng, canvas, thing, fill)
        things.append(thing)
    if rng.random() < 0.3:
        things += add_flaws(rng, canvas, under, things)
    return Scene(finish(rng, canvas, is_grey), things, background)


def choose_nouns(rng: np.random.Generator) -> list[str]:
    """Returns what to put in: different things, many of a kind, or things to read."""
    kind = rng.choice(["mixed", "many", "text"], p=[0.55, 0.27, 0.18])
    if kind == "text":
        return ["word"] * int(rng.integers(1, 4)) + random_nouns(rng, int(rng.integers(0, 2)))
    if kind == "many":
        kinds = random_nouns(rng, int(rng.integers(1, 3)))
        return [str(rng.choice(kinds)) for _ in range(rng.integers(2, 8))]
    return random_nouns(rng, int(rng.choice(6, p=[0.05, 0.23, 0.2, 0.2, 0.18, 0.14])))


def random_nouns(rng: np.random.Generator, count: int) -> list[str]:
    groups = rng.choice(
        ["shape", "digit", "letter", "coin", "face", "horse", "photo"],
        size=count,
        p=[0.6, 0.12, 0.08, 0.06, 0.05, 0.02, 0.07],
    )
    nouns = {"shape": list(drawn.SHAPES), "photo": list(sources.PORTRAITS)}
    return [str(rng.choice(nouns[group])) if group in nouns else str(group) for group in groups]


def dress(rng, name, part, words, *, is_grey, canvas):
    """Returns a thing without its place, its mask, and an RGB picture to fill it with."""
    side = int(SIDE * np.exp(rng.uniform(np.log(0.11), np.log(0.5))))
    if name in sources.PORTRAITS or name in ("face", "coin"):
        return dress_picture(rng, name, part, side)
    group, text = "", ""
    if name in drawn.SHAPES:
        noun, group, mask = name, "shape", drawn.make_mask(rng, name, side)
    elif name == "digit":
        (noun, mask), group = sources.digit(rng, part, max(side, 36)), "digit"
    elif name == "letter":
        noun, group = str(rng.choice(list(LETTERS))), "letter"
        mask = sources.text_mask(rng, noun, max(side, 32))
    elif name == "horse":
        noun, mask = name, sources.horse(rng, max(side, 48))
    else:
        noun, text = "word", random_text(rng, words)
        mask = sources.text_mask(rng, text, int(rng.integers(20, 44)))
        if mask.width > SIDE - 10:
            mask = mask.resize((SIDE - 10, max(12, mask.height * (SIDE - 10) // mask.width)))
    adjective, fill = make_fill(rng, mask.size, is_grey=is_grey, canvas=canvas, plain=bool(text))
    if adjective == "outlined" and group == "shape" and min(mask.size) > 24:
        inner = mask.filter(ImageFilter.MinFilter(2 * int(rng.integers(1, 3)) + 3))
        framed = Image.new("L", mask.size)  # the filter does not reach the border
        framed.paste(inner.crop((3, 3, mask.width - 3, mask.height - 3)), (3, 3))
        inner = framed
        drawn_mask = ImageChops.subtract(mask, inner)
    else:
        adjective = "" if adjective == "outlined" else adjective
        drawn_mask = mask
    return Thing(noun, group, (0, 0, 0, 0), drawn_mask, adjective, text), mask, fill


def dress_picture(rng, name, part, side):
    """As `dress`, of what brings its own pixels."""
    if name == "coin":
        fill, group = sources.coin(rng), ""
    elif name == "face":
        fill, group, side = sources.face(rng, part), "", max(side, 40)
    else:
        fill, group, side = sources.portrait(rng, name), "photo", max(side, 56)
    scale = side / max(fill.size)
    fill = fill.resize([max(8, round(n * scale)) for n in fill.size], Image.Resampling.BILINEAR)
    mask = Image.new("L", fill.size, 255)
    if name == "coin" or (name != "face" and rng.random() < 0.25):
        mask = Image.new("L", [4 * n for n in fill.size])
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=255)
        mask = mask.resize(fill.size, Image.Resampling.BOX)
    return Thing(name, group, (0, 0, 0, 0), mask), mask, fill


def random_text(rng: np.random.Generator, words: list[str]) -> str:
    """Returns a word in some case, or a few letters and digits."""
    kind = rng.random()
    if kind < 0.5:
        word = str(rng.choice(words))
        return [word, word.upper(), word.capitalize()][rng.integers(3)]
    pool = DIGITS if kind < 0.75 else LETTERS + LETTERS.lower() if kind < 0.85 else LETTERS + DIGITS
    return "".join(rng.choice(list(pool), size=rng.integers(1, 6)))


def make_fill(rng, size, *, is_grey, canvas, plain):
    """Returns (adjective, RGB picture of this size) that stands out from the canvas."""
    kind = rng.random() * (0.6 if plain else 1.0)
    if kind > 0.9:
        name = str(rng.choice(list(sources.PHOTOGRAPHS)))
        return "", sources.random_crop(rng, name, size)
    if kind > 0.8:
        name = str(rng.choice(SURFACES))
        return name, tint(rng, sources.random_crop(rng, name, size))
    behind = np.array(canvas.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)), np.float32)
    for _ in range(8):
        name = str(rng.choice(GREYS if is_grey else list(COLORS)))
        color = np.array(COLORS[name]) + rng.normal(0, 12, 3)
        if np.abs(color - behind).max() > MIN_CONTRAST:
            break
    color = tuple(int(c) for c in color.clip(0, 255))
    fill = Image.new("RGB", size, color)
    if kind > 0.72:
        return "outlined", fill
    if kind > 0.62:
        other = tuple(int(c) for c in np.clip(np.array(color) + rng.choice([-90, 90]), 0, 255))
        return ("striped", stripes(rng, fill, other))
    if rng.random() < 0.4:
        shade = Image.linear_gradient("L").rotate(int(rng.integers(4)) * 90).resize(size)
        dark = fill.point(lambda level: int(level * 0.55))
        fill = Image.composite(fill, dark, shade)
    return name, fill


def stripes(rng, fill, other):
    step, draw = int(rng.integers(6, 14)), ImageDraw.Draw(fill)
    slant = int(rng.choice([0, fill.height, -fill.height]))
    if rng.random() < 0.5:
        for x in range(-abs(slant), fill.width + abs(slant), step):
            draw.line((x, 0, x + slant, fill.height), fill=other, width=step // 2)
    else:
        for y in range(0, fill.height, step):
            draw.rectangle((0, y, fill.width, y + step // 2), fill=other)
    return fill


def tint(rng, image):
    gain = rng.uniform(0.6, 1.4, 3) if rng.random() < 0.5 else np.ones(3)
    return Image.fromarray((np.asarray(image) * gain).clip(0, 255).astype(np.uint8))


def make_background(rng, is_grey):
    """Returns (RGB canvas, what it is called)."""
    kind = rng.random()
    if kind < 0.25:
        name = str(rng.choice(GREYS if is_grey else list(COLORS)))
        color = tuple(int(c) for c in (np.array(COLORS[name]) + rng.normal(0, 10, 3)).clip(0, 255))
        return Image.new("RGB", (SIDE, SIDE), color), name
    if kind < 0.45:
        ends = rng.uniform(20, 235, (2, 3))
        ends = np.repeat(ends.mean(axis=1, keepdims=True), 3, 1) if is_grey else ends
        low, high = (Image.new("RGB", (SIDE, SIDE), tuple(int(c) for c in end)) for end in ends)
        gradient = [Image.linear_gradient, Image.radial_gradient][rng.integers(2)]("L")
        gradient = gradient.rotate(int(rng.integers(4)) * 90).resize((SIDE, SIDE))
        return Image.composite(low, high, gradient), "a gradient"
    surface = kind < 0.62
    name = str(rng.choice(SURFACES if surface else list(sources.PHOTOGRAPHS)))
    piece = sources.random_crop(rng, name, (SIDE, SIDE))
    if rng.random() < 0.4:
        piece = piece.filter(ImageFilter.BoxBlur(int(rng.integers(1, 6))))
    if rng.random() < 0.7:  # things stand out of what is pale
        mean = piece.resize((1, 1), Image.Resampling.BOX).resize((SIDE, SIDE))
        piece = Image.blend(piece, mean, rng.uniform(0.2, 0.75))
    return tint(rng, piece), name if surface else "a photo"


def find_place(rng, size, things):
    """Returns x, y where a box of this size touches no other; None after some tries."""
    width, height = size
    if max(width, height) >= SIDE:
        return None
    for _ in range(TRIES):
        x, y = int(rng.integers(0, SIDE - width + 1)), int(rng.integers(0, SIDE - height + 1))
        if all(
            x + width + MARGIN <= x1
            or x2 + MARGIN <= x
            or y + height + MARGIN <= y1
            or y2 + MARGIN <= y
            for x1, y1, x2, y2 in (thing.box for thing in things)
        ):
            return x, y
    return None


def put(rng, canvas, thing, fill):
    """Pastes a thing's fill through its mask."""
    mask = thing.mask
    if rng.random() < 0.3:
        opacity = rng.uniform(0.65, 1.0)
        mask = mask.point(lambda level: int(level * opacity))
    canvas.paste(fill, thing.box[:2], mask)


def add_flaws(rng, canvas, under, things):
    """Returns one or two flaws, drawn on things that are large enough."""
    found = []
    for thing in things:
        x1, y1, x2, y2 = thing.box
        if min(x2 - x1, y2 - y1) < 50 or thing.text or thing.adjective == "outlined":
            continue
        if len(found) < 2 and (flaw := make_flaw(rng, canvas, under, thing)):
            found.append(flaw)
    return found


def make_flaw(rng, canvas, under, thing):
    """Draws a flaw on a thing and returns it; None where it would be hardly seen."""
    noun = str(rng.choice(FLAWS))
    shape = {"hole": "ellipse", "notch": "circle", "scratch": "wave", "stain": "blob"}[noun]
    if noun == "scratch" and rng.random() < 0.5:
        shape = "zigzag"
    mask = drawn.make_mask(rng, shape, int(rng.uniform(0.25, 0.5) * min(thing.mask.size)))
    if min(mask.size) < 5:
        return None
    inside = np.asarray(thing.mask) > 128
    edge = inside & (np.asarray(thing.mask.filter(ImageFilter.MinFilter(5))) <= 128)
    spots = np.argwhere(edge if noun == "notch" else inside)
    if not len(spots):
        return None
    y, x = spots[rng.integers(len(spots))]
    left, top = int(x) - mask.width // 2, int(y) - mask.height // 2
    seen = Image.new("L", thing.mask.size)
    seen.paste(mask, (left, top))
    seen = ImageChops.multiply(seen, thing.mask)
    box = seen.point(lambda level: 255 * (level > 100)).getbbox()
    whole = np.asarray(mask).sum()
    if box is None or np.asarray(seen).sum() < (0.35 if noun == "notch" else 0.95) * whole:
        return None
    x1, y1 = thing.box[:2]
    place = (x1 + box[0], y1 + box[1], x1 + box[2], y1 + box[3])
    seen = seen.crop(box)
    if noun in ("hole", "notch"):
        fill = under.crop(place)
    else:
        level = np.asarray(canvas.crop(place), np.float32).mean()
        shade = level + rng.uniform(60, 100) * (-1 if level > 128 else 1)
        fill = Image.new("RGB", seen.size, (int(shade),) * 3)
    canvas.paste(fill, place[:2], seen)
    return Thing(noun, "flaw", place, seen)


def finish(rng, canvas, is_grey):
    """Returns the picture as a camera or a scanner would have it: grain, blur, exposure."""
    if rng.random() < 0.3:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    pixels = np.asarray(canvas.convert("L") if is_grey else canvas, np.float32)
    if rng.random() < 0.5:
        gain, middle = rng.uniform(0.5, 1.1), rng.uniform(90, 165)
        pixels = (pixels - 128) * gain + middle
    if rng.random() < 0.4:
        coarse = rng.random() < 0.4
        side = SIDE // 2 if coarse else SIDE
        grain = rng.standard_normal((side, side), dtype=np.float32) * rng.uniform(3, 22)
        grain = np.repeat(np.repeat(grain, 2, 0), 2, 1) if coarse else grain
        pixels = pixels + (grain if pixels.ndim == 2 else grain[..., None])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB")
