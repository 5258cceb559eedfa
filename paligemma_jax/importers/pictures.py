"""Image files: found in a source and measured without decoding them, then put under the target."""

import collections
import io
import os
import pathlib
import re
import shutil
import urllib.parse
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from paligemma_jax.data import locations
from paligemma_jax.importers import example, source_files

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
# Formats that `images` decodes, by Pillow's names.
READABLE = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF")
EXIF_ORIENTATION = 0x0112
MAX_DEPTH = 4  # subfolders that are searched for images


def measure(
    picture: example.Picture,
    source: str,
    tally: example.Tally,
    *,
    readable: Sequence[str] = READABLE,
) -> tuple[int, int] | None:
    """Returns (width, height) of an image as it is stored, or drops it with the reason."""
    where = picture.path or io.BytesIO(picture.data or b"")
    if not example.is_text(picture.name):
        tally.drop("image", "file name is not UTF-8", ascii(source), ascii(picture.name))
        return None
    if (num_bytes := _num_bytes(picture)) == 0:
        tally.drop("image", "image file is empty", source, f"{picture.name} has 0 bytes")
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(where) as image:
                size, kind = image.size, image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).partition(", could be")[
            0
        ]  # not an attack, as Pillow goes on to suspect
        detail = f"{picture.name}: {reason}; scale it down"
        tally.drop("image", "image too large", source, detail)
        return None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
        what = _describe(picture)
        is_unknown = isinstance(error, UnidentifiedImageError)  # its text names a place in memory
        problem = f"it is {what}" if what else "no known format" if is_unknown else error
        detail = f"{picture.name}, {num_bytes} byte{'s' * (num_bytes != 1)}: {problem}"
        tally.drop("image", "not an image", source, detail)
        return None
    if kind not in readable:
        detail = f"{picture.name} is {kind}; save it as one of {', '.join(readable)}"
        tally.drop("image", "image format that training cannot read", source, detail)
        return None
    return size


def is_of_size(
    picture: example.Picture,
    size: tuple[int, int],
    annotated: tuple[int, int],
    source: str,
    tally: example.Tally,
) -> bool:
    """Whether an image has the size that its annotations give; if not, it is dropped."""
    if size == annotated:
        return True
    (width, height), (annotated_width, annotated_height) = size, annotated
    detail = (
        f"{picture.name} has {width}x{height} pixels, its annotations "
        f"{annotated_width}x{annotated_height}"
    )
    if size == annotated[::-1] and _orientation(picture) > 4:
        detail += " (turned by its EXIF orientation: rotate the file for good)"
    tally.drop("image", "image of another size than its annotations", source, detail)
    return False


def locate(
    folder: locations.ImageFolder, name: str, source: str, tally: example.Tally
) -> example.Picture | None:
    """Returns the picture of this name, or drops the image with the reason.

    A name may be a path of another machine or system, or an address that the image came from: then
    the longest end of it that lies in the folder is meant, in upper or lower case, unless that is
    another name's image.
    """
    path, problem = folder.locate(name)
    is_address = locations.is_address(path)
    if (problem or is_address) and (end := _locate_end(folder, name)):
        (path, how), problem, is_address = end, None, False
        if tally.located.get(path, name) == name:
            tally.changed[how] += 1
        else:
            other = _shown(tally.located[path])
            detail = f"image '{_shown(name)}': only its end is there, which is {other}"
            problem = "image not found", detail
    if is_address:
        detail = (
            f"{locations.public(path)}: download the images and give their folder: --images FOLDER"
        )
        tally.drop("image", "at an address; an import takes images of this machine", source, detail)
        return None
    if problem:
        tally.drop("image", problem[0], source, problem[1])
        return None
    tally.located.setdefault(path, name)
    return example.Picture(os.path.relpath(path, folder.root), path)


def find_folder(names: Iterable[Any], root: str) -> locations.ImageFolder:
    """Returns a finder of images in root, or below it where most of the named images lie."""
    named = [name for name in names if isinstance(name, str) and name]
    if any(os.path.isfile(os.path.join(root, name)) for name in named):
        return open_folder(root)
    try:
        return open_folder(choose_folder(named, root, None))
    except ValueError:  # nowhere: each row is dropped, with the nearest name that there is
        return open_folder(root)


def _locate_end(folder: locations.ImageFolder, name: str) -> tuple[str, str] | None:
    """Returns (the image in the folder that a path's longest end is, how it was found), or None.

    No folder of another split is cut off: train/1.png is not the 1.png that is there. The file of
    an address may have another ending, as servers choose it.
    """
    is_address = locations.is_address(name)
    ends = list(_ends(folder, name))
    for end in ends:
        path, problem = folder.locate(end)
        if not problem:
            how = "address" if is_address else "path"
            return path, f"images found by the end of their {how}"
    for end in ends:
        alike = folder.look_alikes(end) or folder.look_alikes(end, is_ending_free=is_address)
        if len(alike) == 1:
            how = "the name in their address" if is_address else "a name in other letters"
            return alike[0], f"images found by {how}"
    return None


def _ends(folder: locations.ImageFolder, name: str) -> Iterator[str]:
    """Yields the ends of a path, the longest first, as long as no other split is cut off."""
    parts = _parts(name)
    for start in range(len(parts)):
        split = example.split_name("/".join(parts[:start]))
        if split is not None and split != example.split_name(os.path.basename(folder.root)):
            return
        yield "/".join(parts[start:])


def from_root(name: str, near: str, root: str) -> str:
    """Returns a name that leads out of the folder `near` (../images/1.png) as relative to root.

    Any other name, and one of no file in root, is returned as it is.
    """
    parts = re.split(r"[\\/]", name)
    if ".." not in parts or locations.is_address(name):
        return name
    path = os.path.normpath(os.path.join(os.path.realpath(near), "/".join(parts)))
    relative = os.path.relpath(path, os.path.realpath(root))
    return relative if os.path.isfile(path) and not relative.startswith(os.pardir) else name


def _shown(name: str) -> str:
    """Returns a name for messages: an address without what may be a secret."""
    return locations.public(name) if locations.is_address(name) else name


def last_part(name: str) -> str:
    """Returns the file's name of a path of any system, or of an address."""
    return next(reversed(_parts(name)), "")


def _parts(name: str) -> list[str]:
    """Returns the parts of a path of any system, without drive and dots; an address's last one."""
    if locations.is_address(name):
        last = urllib.parse.unquote(urllib.parse.urlsplit(name).path.rpartition("/")[2])
        return [] if last in ("", ".", "..") or "/" in last else [last]
    parts = re.split(r"[\\/]", name)
    if ".." in parts:  # it leads out of the folder, and nothing outside is meant
        return []
    return [part for part in parts if part not in ("", ".") and not part.endswith(":")]


def open_folder(root: str) -> locations.ImageFolder:
    """Returns a finder of the images below a folder; nothing outside it is opened."""
    return locations.ImageFolder(root, setting="--images")


def choose_folder(names: Sequence[str], root: str, given: str | None) -> str:
    """Returns the folder in which most of the named images lie: `given`, or found below root.

    Raises:
      ValueError: none of the images lies there.
    """
    sample = list(names[:: max(1, len(names) // 20)])[:40]
    candidates = [given] if given else list(_folders(root))
    if not sample:
        return candidates[0]
    ends = [["/".join(_parts(name)[start:]) for name in sample] for start in range(MAX_DEPTH + 2)]
    for count in (_count_files, _count_look_alikes):
        for names_there in (sample, *ends):
            counts = [count(c, list(filter(None, names_there))) for c in candidates]
            if max(counts) > 0:
                return candidates[counts.index(max(counts))]
    where = given or f"{root} and its subfolders"
    shown = ", ".join(repr(_shown(name)) for name in sample[:3])
    raise ValueError(
        f"none of the images is in {where}; looked for {shown}. "
        f"Name the folder that they are relative to: --images FOLDER"
    )


def _count_files(folder: str, names: Iterable[str]) -> int:
    return sum(os.path.isfile(os.path.join(folder, name)) for name in names)


def _count_look_alikes(folder: str, names: Iterable[str]) -> int:
    finder = open_folder(folder)
    return sum(
        len(finder.look_alikes(name)) == 1
        or len(finder.look_alikes(name, is_ending_free=True)) == 1
        for name in names
        if not locations.is_address(name)
    )


def list_images(folder: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """Returns the paths of image files in a folder, by their endings, in order."""
    names = sorted(filter(source_files.is_data, os.listdir(folder)))
    return [os.path.join(folder, name) for name in names if name.lower().endswith(suffixes)]


class PlacedImages:
    """Puts images into a folder: linked where the disk is the same, else copied, each once."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.names: dict[str, str] = {}
        self.taken: set[str] = set()
        self.ways: collections.Counter[str] = collections.Counter()

    def put(self, picture: example.Picture) -> str:
        """Returns the name of the image in the folder."""
        if picture.path in self.names:
            return self.names[picture.path]
        name = self._free_name(picture.name.removeprefix(f"{self.folder.name}{os.sep}"))
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if picture.path is None:
            place.write_bytes(picture.data or b"")
            self.ways["written"] += 1
        else:
            self.names[picture.path] = name
            self._link(os.path.realpath(picture.path), place)
        return name

    def _free_name(self, name: str) -> str:
        stem, ending = os.path.splitext(name)
        number = 1
        while name in self.taken:
            number += 1
            name = f"{stem}-{number}{ending}"
        self.taken.add(name)
        return name

    def _link(self, path: str, place: pathlib.Path) -> None:
        try:
            os.link(path, place)
            self.ways["hard-linked"] += 1
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(path, place)
            self.ways["copied"] += 1


def _folders(root: str, depth: int = 0) -> Iterator[str]:
    """Yields a folder and those below it, the near ones first as far as one level goes."""
    yield root
    if depth == MAX_DEPTH:
        return
    with os.scandir(root) as entries:
        inside = sorted(e.path for e in entries if e.is_dir(follow_symlinks=False))
    for path in inside:
        yield from _folders(path, depth + 1)


def _num_bytes(picture: example.Picture) -> int:
    return os.path.getsize(picture.path) if picture.path else len(picture.data or b"")


def _describe(picture: example.Picture) -> str | None:
    if picture.path:
        return locations.describe_file(picture.path)
    return locations.describe_head((picture.data or b"")[: locations.HEAD_BYTES])


def _orientation(picture: example.Picture) -> int:
    with Image.open(picture.path or io.BytesIO(picture.data or b"")) as image:
        return image.getexif().get(EXIF_ORIENTATION, 1)
