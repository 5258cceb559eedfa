"""Folders of images and masks: which belong together, `mask_pairs` finds.

A mask is a picture of the image's size. With one class (the usual black and white) everything
brighter than half is it, whatever the file's format. With several, a pixel of value i is the i-th
class, 0 is nothing and 255 is left open; with `first_class` 0 it is the first class that is 0. A
class called "-" is nothing. Such masks must be stored without loss. All pixels of a class are one
object, or with `components` every connected piece is one; pieces below `min_area` are left out, and
with `drop_wedges` triangles at the corners, which a picture that was rotated has in its mask.
"""

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from paligemma_jax.console import say
from paligemma_jax.data import locations
from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import example, mask_pairs, pictures
from paligemma_jax.wording import phrases

NOTHING = "-"  # the name of a class that is none
FIRST = 1  # the value of the first of several classes, unless it is given
SPECK, MANY_SPECKS = 16, 100  # pixels of a piece that is hardly an object, and many of these
# A wedge: a piece with a right angle in a corner of its mask, legs of so many pixels and of such a
# share of the sides, and so much alike (IoU) a triangle: a rectangle has 0.5, a quarter disc 0.64.
WEDGE_PX, WEDGE_SHARE, WEDGE_IOU = 8, 0.05, 0.85
OPEN = 255  # "void" of Pascal VOC
NUMBERS = ("1", "L", "P", "I;16", "I;16B", "I")  # Pillow's modes of one channel of whole numbers
HALF, HALF_OF_16_BITS = 127, 32_767
PROGRESS_IMAGES = 50


def detect(path: str) -> str | None:
    """Returns a mask that shows that a path holds images and masks, or None."""
    if not os.path.isdir(path):
        return None
    return next((mask for _, mask in mask_pairs.find(path)[0] if mask), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set; masks are read while going through it.

    Raises:
      ValueError: no pairs, or no name for the class.
    """
    classes = request.classes
    if not classes:
        raise ValueError(
            f"{request.path}: masks do not name their classes; give them: --classes water, or "
            f"--classes first,second for masks whose pixels are 1, 2, ... (0, 1, ...: "
            f"--first_class 0)"
        )
    if request.masks:
        pairs, alone = mask_pairs.find_in(request.images or request.path, request.masks)
    else:
        pairs, alone = mask_pairs.find(request.path)
    if not any(mask for _, mask in pairs):
        raise ValueError(f"{request.path}: no masks found; expected {mask_pairs.SEARCHED}")
    folder = pictures.open_folder(request.images or request.path)
    mask_folder = pictures.open_folder(request.masks or request.path)
    contents = _Contents()
    for mask in alone:
        tally.read["masks without an image"] += 1
        tally.drop("mask", "without an image", os.path.relpath(mask, request.path))
    examples = []
    for number, (image, mask) in enumerate(pairs, 1):
        name = os.path.relpath(os.path.realpath(image), folder.root)
        if read := _read_pair(name, mask, request, (folder, mask_folder), contents, tally):
            examples.append(read)
        if number % PROGRESS_IMAGES == 0 or number == len(pairs):
            progress(number, len(pairs))
    contents.say(request)
    chosen = tuple(name for name in classes if name != NOTHING)
    pixels = "pixels brighter than half" if len(classes) == 1 else f"pixels {_describe(request)}"
    return example.DataSet(chosen, examples, len(examples), f"{mask_pairs.SEARCHED}; {pixels}")


def _read_pair(
    name: str,
    mask: str | None,
    request: example.Request,
    folders: tuple[locations.ImageFolder, locations.ImageFolder],
    contents: "_Contents",
    tally: example.Tally,
) -> example.Example | None:
    folder, mask_folder = folders
    tally.read["images"] += 1
    if mask is None:
        tally.drop("image", "without a mask", name)
        return None
    picture = pictures.locate(folder, name, name, tally)
    size = pictures.measure(picture, name, tally) if picture else None
    mask_name = os.path.relpath(os.path.realpath(mask), mask_folder.root)
    mask_picture = pictures.locate(mask_folder, mask_name, name, tally) if size else None
    mask_size = _measure(mask_picture, name, tally) if mask_picture else None
    if picture is None or size is None or mask_size is None:
        return None
    if not pictures.is_of_size(picture, size, mask_size, f"{name}, {mask_name}", tally):
        return None
    try:
        parts = _split_mask(mask, request, contents, tally)
    except (OSError, ValueError, SyntaxError) as error:
        tally.drop("image", "mask cannot be used", mask_name, error)
        return None
    annotations = []
    for label, part in parts:
        runs = {"size": [size[1], size[0]], "counts": data_objects.encode_bitmap(part)}
        annotations.append(example.Annotation(label, mask_name, None, runs))
    objects = example.collect_objects(annotations, size, tally)
    return example.Example(picture, name, example.split_name(os.path.dirname(name)), objects)


def _measure(mask: example.Picture, source: str, tally: example.Tally) -> tuple[int, int] | None:
    """As `pictures.measure`; training reads no masks, so they may be TIFF."""
    return pictures.measure(mask, source, tally, readable=(*pictures.READABLE, "TIFF"))


class _Contents:
    """What masks hold, where it may be meant otherwise than it is read.

    Attributes:
      values: the values of all pixels. zeros, pixels: how many are 0, and how many there are.
      specks: pieces of fewer than SPECK pixels. wedges: triangles at corners, see `_wedges`.
    """

    def __init__(self):
        self.values: set[int] = set()
        self.zeros = self.pixels = self.specks = self.wedges = 0

    def add(self, values: np.ndarray) -> None:
        self.values |= set(np.unique(values).tolist())
        self.zeros += int((values == 0).sum())
        self.pixels += values.size

    def say(self, request: example.Request) -> None:
        """Says what an option would change."""
        if self.specks > MANY_SPECKS and not request.min_area:
            say.warning(
                f"{self.specks:,} pieces of masks have fewer than {SPECK} pixels, as lossy files "
                f"have them: --min_area {SPECK} leaves them out"
            )
        if self.wedges and not request.drop_wedges:
            say.warning(
                f"{phrases.count(self.wedges, 'triangles')} at corners of masks, as pictures have "
                f"them that were rotated: --drop_wedges leaves them out"
            )
        if len(request.classes) == 1 or not self.pixels or request.first_class is not None:
            return
        share = f"0 is nothing, and covers {self.zeros / self.pixels:.0%} of all masks"
        if self.zeros and len(request.classes) not in self.values:
            say.warning(
                f"{share}, while no pixel is {len(request.classes)}: if classes are counted from "
                f"0, --first_class 0"
            )
        elif self.zeros:
            say.info(f"{share}; if it is the first class: --first_class 0")


def _describe(request: example.Request) -> str:
    first = FIRST if request.first_class is None else request.first_class
    return f"{first} to {first + len(request.classes) - 1}"


def _split_mask(
    path: str, request: example.Request, contents: _Contents, tally: example.Tally
) -> list[tuple[str, np.ndarray]]:
    """Returns (class name, bool[H, W]) of every object in a mask.

    Raises:
      ValueError: a value that no class stands for.
    """
    from scipy import ndimage

    parts = []
    for label, mask in _classes(path, request, contents):
        if mask.all():
            tally.changed["masks that cover their whole image: look at the sheet"] += 1
        pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
        areas = np.bincount(pieces.reshape(-1), minlength=count + 1)
        contents.specks += int((areas[1:] < SPECK).sum())
        wedges = _wedges(pieces)
        contents.wedges += len(wedges)
        dropped = wedges if request.drop_wedges else set()
        kept = [n for n in range(1, count + 1) if n not in dropped]
        large = [n for n in kept if areas[n] >= request.min_area]
        if dropped:
            tally.changed["triangles at corners of masks left out"] += len(dropped)
        if small := len(kept) - len(large):
            tally.changed[f"pieces of masks below {request.min_area} pixels left out"] += small
        if request.components:
            parts += [(label, pieces == number) for number in large]
        elif large:
            parts.append((label, mask if len(large) == count else np.isin(pieces, large)))
    return parts


def _wedges(pieces: np.ndarray) -> set[int]:
    """Returns the numbers of pieces that are right triangles in a corner.

    `pieces`: int[H, W], connected pieces by number, 0 is nothing.
    """
    wedges = set()
    for corner in (pieces, pieces[:, ::-1], pieces[::-1], pieces[::-1, ::-1]):
        piece = corner == corner[0, 0]
        height, width = int(piece.any(1).sum()), int(piece.any(0).sum())
        is_long = all(
            leg >= max(WEDGE_PX, WEDGE_SHARE * side)
            for leg, side in zip((height, width), piece.shape, strict=True)
        )
        if not corner[0, 0] or not is_long:
            continue
        rows, columns = np.ogrid[:height, :width]
        triangle = (rows + 0.5) / height + (columns + 0.5) / width <= 1
        part = piece[:height, :width]
        if (part & triangle).sum() >= WEDGE_IOU * (part | triangle).sum():
            wedges.add(int(corner[0, 0]))
    return wedges


def _classes(
    path: str, request: example.Request, contents: _Contents
) -> Iterator[tuple[str, np.ndarray]]:
    classes = request.classes
    with Image.open(path) as image:
        if len(classes) == 1:
            values = np.asarray(image if image.mode in NUMBERS else image.convert("L"))
            # Masks of 0 and 1 look black, and a palette's colours say nothing.
            low = values.max() <= 1 or image.mode == "P"
            half = HALF if values.max() <= OPEN else HALF_OF_16_BITS
            yield classes[0], (values > 0) & (values != OPEN) if low else values > half
            return
        if image.mode not in NUMBERS or image.format == "JPEG":
            raise ValueError(
                f"{image.format} of mode {image.mode}: pixels must be class numbers "
                f"{_describe(request)}, one channel, stored without loss (PNG)"
            )
        values = np.asarray(image)
    contents.add(values)
    numbers = dict(enumerate(request.numbered(classes, FIRST)))
    nothing = {OPEN} if request.first_class == 0 else {0, OPEN}
    unknown = sorted(set(np.unique(values).tolist()) - nothing - set(numbers))
    if unknown:
        raise ValueError(
            f"holds the values {unknown[:8]}, but {len(classes)} classes are named, "
            f"{_describe(request)}; a name '{NOTHING}' stands for nothing"
        )
    for number, label in numbers.items():
        if label not in ("", NOTHING):
            yield label, values == number
