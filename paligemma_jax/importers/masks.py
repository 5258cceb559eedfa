"""Folders of images and masks: a mask has its image's stem, in another folder or with a suffix.

A mask is a picture of the image's size. With one class (the usual black and white) everything
brighter than half is it, whatever the file's format. With several, a pixel of value i is the i-th
class, 0 is nothing and 255 is left open; such masks must be stored without loss. All pixels of a
class are one object, or with `components` every connected piece is one.
"""

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from paligemma_jax.data import image_folder
from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import example, pictures

MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "segmentationclass")
MASK_ENDINGS = ("_mask", "-mask", "_seg", "_label", "_gt")
OPEN = 255  # "void" of Pascal VOC
HALF = 127
PROGRESS_IMAGES = 50


def detect(path: str) -> str | None:
    """Returns a mask that shows that a path holds images and masks, or None."""
    if not os.path.isdir(path):
        return None
    return next((mask for _, mask in _pair(path)[0] if mask), None)


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
            f"--classes first,second for masks whose pixels are 1, 2, ..."
        )
    pairs, alone = _pair(request.path)
    if not any(mask for _, mask in pairs):
        raise ValueError(
            f"{request.path}: no masks found; expected a folder called masks with the stems of the "
            f"images, or files ending in {MASK_ENDINGS} beside them"
        )
    folder = pictures.open_folder(request.path)
    for mask in alone:
        tally.read["masks without an image"] += 1
        tally.drop("mask", "without an image", os.path.relpath(mask, request.path))
    examples = []
    for number, (image, mask) in enumerate(pairs, 1):
        name = os.path.relpath(image, request.path)
        if read := _read_pair(name, mask, request, folder, tally):
            examples.append(read)
        if number % PROGRESS_IMAGES == 0 or number == len(pairs):
            progress(number, len(pairs))
    searched = (
        f"masks of the images' names, in folders called {', '.join(MASK_FOLDERS)} or ending in "
        f"{', '.join(MASK_ENDINGS)}; "
        + ("pixels brighter than half" if len(classes) == 1 else f"pixels 1 to {len(classes)}")
    )
    return example.DataSet(classes, examples, len(examples), searched)


def _read_pair(
    name: str,
    mask: str | None,
    request: example.Request,
    folder: image_folder.ImageFolder,
    tally: example.Tally,
) -> example.Example | None:
    tally.read["images"] += 1
    if mask is None:
        tally.drop("image", "without a mask", name)
        return None
    picture = pictures.locate(folder, name, name, tally)
    size = pictures.measure(picture, name, tally) if picture else None
    mask_name = os.path.relpath(mask, request.path)
    mask_picture = pictures.locate(folder, mask_name, name, tally) if size else None
    mask_size = pictures.measure(mask_picture, name, tally) if mask_picture else None
    if picture is None or size is None or mask_size is None:
        return None
    if not pictures.is_of_size(picture, size, mask_size, f"{name}, {mask_name}", tally):
        return None
    try:
        parts = _split_mask(mask, request)
    except (OSError, ValueError, SyntaxError) as error:
        tally.drop("image", "mask cannot be used", mask_name, error)
        return None
    annotations = []
    for label, part in parts:
        runs = {"size": [size[1], size[0]], "counts": data_objects.encode_bitmap(part)}
        annotations.append(example.Annotation(label, mask_name, None, runs))
    objects = example.collect_objects(annotations, size, tally)
    return example.Example(picture, name, example.split_name(os.path.dirname(name)), objects)


def _split_mask(path: str, request: example.Request) -> list[tuple[str, np.ndarray]]:
    """Returns (class name, bool[H, W]) of every object in a mask.

    Raises:
      ValueError: a value that no class stands for.
    """
    from scipy import ndimage

    parts = []
    for label, mask in _classes(path, request.classes):
        if request.components:
            pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
            parts += [(label, pieces == number) for number in range(1, count + 1)]
        elif mask.any():
            parts.append((label, mask))
    return parts


def _classes(path: str, classes: tuple[str, ...]) -> Iterator[tuple[str, np.ndarray]]:
    with Image.open(path) as image:
        if len(classes) == 1:
            values = np.asarray(image if image.mode in "1LP" else image.convert("L"))
            # Masks of 0 and 1 look black, and a palette's colours say nothing.
            low = values.max() <= 1 or image.mode == "P"
            yield classes[0], (values > 0) & (values != OPEN) if low else values > HALF
            return
        if image.mode not in "1LP" or image.format == "JPEG":
            raise ValueError(
                f"{image.format} of mode {image.mode}: pixels must be class numbers 0.."
                f"{len(classes)}, one channel, stored without loss (PNG)"
            )
        values = np.asarray(image)
    unknown = sorted(set(np.unique(values).tolist()) - {0, OPEN, *range(1, len(classes) + 1)})
    if unknown:
        raise ValueError(f"holds the values {unknown[:8]}, but {len(classes)} classes are named")
    for number, label in enumerate(classes, 1):
        yield label, values == number


def _pair(root: str) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Returns (image, its mask or None) of every image in order, and the masks of no image."""
    images, masks = [], {}
    for folder, _, _ in sorted(os.walk(root)):
        is_masks = folder != root and os.path.basename(folder).lower() in MASK_FOLDERS
        for path in pictures.list_images(folder):
            stem = os.path.splitext(os.path.basename(path))[0]
            ending = next((e for e in MASK_ENDINGS if stem.lower().endswith(e)), "")
            key = stem[: len(stem) - len(ending)] if ending else stem
            if is_masks or ending:
                # The folder beside the images': train/masks belongs to train/images.
                place = os.path.dirname(folder) if is_masks else folder
                masks[place, key] = path
            else:
                images.append((folder, stem, path))
    pairs = [
        (path, masks.get((folder, stem)) or masks.get((os.path.dirname(folder), stem)))
        for folder, stem, path in images
    ]
    return pairs, sorted(set(masks.values()) - {mask for _, mask in pairs})
