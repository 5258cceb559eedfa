"""Which mask belongs to which image: it has its stem, in another folder or with a word more.

Folders of masks are known by their names: masks, labels, GT, Masks_cleaned, train_masks,
trainannot, Training_GroundTruth, gtFine, ... What else is in the name, and the folders below, must
be those of the images' folder: masks/train belongs to images/train, Training_GroundTruth to
Training_Input. Files of masks end or begin with such a word (1_mask.png, mask_1.png), or are called
as their images.
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from paligemma_jax.importers import example, pictures, source_files

# Words in the names of folders: of masks, and of images.
MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "gt", "seg"}
MASK_WORDS |= {"segmentation", "segmentations"}
IMAGE_WORDS = {"image", "images", "img", "imgs", "input", "inputs", "jpeg", "photo", "photos"}
IMAGE_WORDS |= {"picture", "pictures", "rgb", "sat"}
SYNONYMS = (("ground[ _-]?truth", "gt"), ("segmentation[ _-]?class", "segmentation"))
SYNONYMS += (("gt(fine|coarse)", "gt"), ("leftimg8bit", "img"))  # of Cityscapes
# Pascal VOC's masks of instances, beside those of classes.
INSTANCES = {"segmentation", "object"}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
GLUED = re.compile(r"(train|training|val|valid|validation|test)(annot|masks?|labels?|gt)")
MASK_ENDINGS = ("_gtfine_labelids", "_gtcoarse_labelids", "_gtfine_labeltrainids")
MASK_ENDINGS += ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_label", "_labels", "_gt")
MASK_ENDINGS += ("_matte",)
MASK_BEGINNINGS = ("mask_", "mask-", "masks_", "seg_", "label_", "labels_", "gt_")
IMAGE_ENDINGS = ("_leftimg8bit", "_sat", "_image", "_img", "_rgb")
IMAGE_BEGINNINGS = ("image_", "image-", "img_", "img-", "sat_", "rgb_")
# Cityscapes' other pictures of the same marks.
OTHER_MARKS = ("_gtfine_color", "_gtfine_instanceids", "_gtfine_instancetrainids")
OTHER_MARKS += ("_gtcoarse_color", "_gtcoarse_instanceids")
SEARCHED = (
    f"files with the stems of the images, in folders with one of the words "
    f"{', '.join(sorted(MASK_WORDS))} in their name, or ending in "
    f"{', '.join(MASK_ENDINGS)}, or beginning with {', '.join(MASK_BEGINNINGS)}"
)

# (image, its mask or None) of every image, and the masks of no image.
Pairs = tuple[list[tuple[str, str | None]], list[str]]


def find(root: str) -> Pairs:
    """Returns (image, its mask or None) of every image in order, and the masks of no image."""
    images, masks = [], {}
    for folder, _ in source_files.walk(root):
        parts = pathlib.Path(os.path.relpath(folder, root)).parts
        words = [_words(part) for part in parts]
        if any(set(own) >= INSTANCES for own in words):
            continue
        depth = _mask_depth(words)
        for path in _list(folder):
            stem = source_files.stem_key(path)
            key = _of_mask(stem)
            if depth is not None:
                masks[_place(parts, words, depth), key] = path
            elif key != stem:
                masks[_Place(parts), key] = path
            else:
                images.append((path, _places(parts, words)))
    pairs = [(path, _find_mask(path, places, masks)) for path, places in images]
    pairs = _pair_rest(root, pairs, masks.values())
    return pairs, sorted(set(masks.values()) - {mask for _, mask in pairs})


def _pair_rest(
    root: str, pairs: Sequence[tuple[str, str | None]], masks: Iterable[str]
) -> list[tuple[str, str | None]]:
    """Returns pairs with masks that lie elsewhere, where their stems are those of one image alone.

    Not those of another split.
    """
    free = set(masks) - {mask for _, mask in pairs}
    waiting = [image for image, mask in pairs if mask is None]
    by_stem: dict[str, list[str]] = {}
    for mask in sorted(free) if waiting else ():
        by_stem.setdefault(_of_mask(source_files.stem_key(mask)), []).append(mask)
    keys = {image: _of_image(source_files.stem_key(image)) for image in waiting}
    counts = collections.Counter(key for several in keys.values() for key in several)
    masks_of = {
        image: by_stem[key][0]
        for image, several in keys.items()
        for key in reversed(several)
        if counts[key] == len(by_stem.get(key, ())) == 1
        and _split(root, image) in (None, _split(root, by_stem[key][0]))
    }
    return [(image, mask or masks_of.get(image)) for image, mask in pairs]


def _split(root: str, path: str) -> str | None:
    return example.split_name(os.path.dirname(os.path.relpath(path, root)))


def find_in(images: str, masks: str) -> Pairs:
    """As `find`, with masks from the folder that is named.

    A mask has its image's stem, or that and more (1_lab.png for 1.png); of several of one stem, the
    one that lies at the image's place below its folder.
    """
    mask_root, image_root = os.path.realpath(masks), os.path.realpath(images)
    if not os.path.isdir(mask_root):
        raise ValueError(f"--masks {masks}: no such folder")
    placed = [
        (os.path.relpath(folder, image_root), path)
        for folder, _ in source_files.walk(image_root)
        if folder != mask_root and not folder.startswith(mask_root + os.sep)
        for path in _list(folder)
    ]
    stems = {key for _, path in placed for key in _of_image(source_files.stem_key(path))}
    by_stem: dict[str, list[tuple[str, str]]] = {}
    for folder, _ in source_files.walk(mask_root):
        for path in _list(folder):
            key = _longest_of(source_files.stem_key(path), stems)
            by_stem.setdefault(key, []).append((os.path.relpath(folder, mask_root), path))
    pairs = [(path, _nearest(path, place, by_stem)) for place, path in placed]
    everything = {path for several in by_stem.values() for _, path in several}
    return pairs, sorted(everything - {mask for _, mask in pairs})


def _nearest(
    image: str, place: str, by_stem: Mapping[str, Sequence[tuple[str, str]]]
) -> str | None:
    """Returns the mask of an image: the one of its stem, at its place where there are several."""
    for key in _of_image(source_files.stem_key(image)):
        if several := by_stem.get(key):
            same = [path for folder, path in several if folder == place]
            chosen = same if len(same) == 1 else [path for _, path in several]
            return chosen[0] if len(chosen) == 1 else None
    return None


def _longest_of(stem: str, stems: Collection[str]) -> str:
    """Returns the stem of an image that a mask's begins or ends with, else what it is without
    words of masks."""
    for own in (stem, _of_mask(stem)):
        if own in stems:
            return own
    cuts = [m.span() for m in re.finditer(r"[^0-9a-z]+", stem)]
    parts = [stem[:start] for start, _ in cuts] + [stem[end:] for _, end in cuts]
    fitting = [part for part in parts if part in stems]
    return max(fitting, key=len, default=_of_mask(stem))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where masks lie, as their images' folder tells it too.

    Attributes:
      above: the folders above the one of masks.
      name: the words of its name that say neither mask nor image.
      below: the folders below it.
    """

    above: tuple[str, ...]
    name: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


def _mask_depth(words: Sequence[Sequence[str]]) -> int | None:
    """Returns which folder of a path makes its files masks: the last that names either kind."""
    known = [n for n, own in enumerate(words) if (MASK_WORDS | IMAGE_WORDS) & set(own)]
    return known[-1] if known and MASK_WORDS & set(words[known[-1]]) else None


def _place(parts: tuple[str, ...], words: Sequence[Sequence[str]], depth: int) -> _Place:
    name = tuple(word for word in words[depth] if word not in MASK_WORDS | IMAGE_WORDS)
    return _Place(parts[:depth], name, parts[depth + 1 :])


def _places(parts: tuple[str, ...], words: Sequence[Sequence[str]]) -> list[_Place]:
    """Returns where the masks of the images in a folder may lie, the nearest first."""
    places = [_Place(parts)]
    for depth in reversed(range(len(parts))):
        near = _place(parts, words, depth)
        places += [near, dataclasses.replace(near, name=())]
    return places


def _find_mask(
    image: str, places: Sequence[_Place], masks: Mapping[tuple[_Place, str], str]
) -> str | None:
    stems = _of_image(source_files.stem_key(image))
    tries = ((place, stem) for stem in stems for place in places)
    return next((masks[key] for key in tries if key in masks), None)


def _words(name: str) -> list[str]:
    """Returns the words of a folder's name in lower case: "trainGroundTruth" -> ["train", "gt"]."""
    for pattern, word in SYNONYMS:
        name = re.sub(pattern, f" {word} ", name, flags=re.IGNORECASE)
    lowered = [word.lower() for word in WORD.findall(name)]
    glued = (GLUED.fullmatch(word) for word in lowered)
    split = (m.groups() if m else (word,) for word, m in zip(lowered, glued, strict=True))
    return [part for parts in split for part in parts]


def _of_mask(stem: str) -> str:
    """Returns a stem without the word that says that it is a mask's."""
    return _bare(stem, MASK_BEGINNINGS, MASK_ENDINGS)


def _of_image(stem: str) -> list[str]:
    """Returns what an image's mask may be called: as the image, or without its words of images."""
    return list(dict.fromkeys((stem, _bare(stem, IMAGE_BEGINNINGS, IMAGE_ENDINGS))))


def _bare(stem: str, beginnings: Sequence[str], endings: Sequence[str]) -> str:
    """Returns a stem without the first of the endings that it has, else of the beginnings."""
    if ending := next((e for e in endings if stem.endswith(e)), ""):
        return stem.removesuffix(ending)
    return stem.removeprefix(next((b for b in beginnings if stem.startswith(b)), ""))


def _list(folder: str) -> list[str]:
    """Returns the pictures in a folder, TIFF among them; those of other marks are left out."""
    paths = pictures.list_images(folder, (*pictures.SUFFIXES, ".tif", ".tiff"))
    return [path for path in paths if not source_files.stem_key(path).endswith(OTHER_MARKS)]
