"""What is wrong with the images of data sets: the same one twice, empty or broken files.

Every function returns findings; nothing is read from disk here (see `data.image_files`).
"""

import itertools
from collections.abc import Mapping, Sequence

from paligemma_jax.checks import findings, lint
from paligemma_jax.data import image_files
from paligemma_jax.data import records as data_records

Finding = findings.Finding
at = findings.at

Contents = Mapping[str, str]

# A property of a decoded file -> severity, kind, what, remedy.
TRAITS = {
    "is_turned": (
        "warning",
        "image to be turned",
        "EXIF says that viewers turn it; training sees the pixels as they are stored, and boxes "
        "drawn on the upright picture do not fit",
        "turn such files for good, then label them",
    ),
    "is_16_bit": (
        "warning",
        "image of 16 bits",
        "the upper 8 bits are kept: 12-bit scans come out nearly black",
        "rescale such files to 8 bits",
    ),
}


def within(data: lint.DataSet, contents: Contents) -> list[Finding]:
    """Returns rows of one data set with the same image and the same prefix as an earlier row.

    Args:
      data: the data set.
      contents: path of an image -> a name of its bytes (`image_files.find_contents`). Images at
        addresses have none: they are equal where the addresses are.
    """
    first: dict[tuple, data_records.Record] = {}
    same, other = [], []
    for record in data.records:
        earlier = first.setdefault(_question(record, contents), record)
        if earlier is not record:
            places = same if earlier.suffix == record.suffix else other
            places.append(f"{record.source} (as {earlier.source})")
    problems = []
    if same:
        what = "rows with the image, prefix and suffix of an earlier row"
        remedy = "remove them: they count twice"
        problems.append(Finding("warning", "same row twice", what, remedy, data.name, **at(same)))
    if other:
        what = "rows with the image and prefix of an earlier row, and another suffix"
        remedy = "join their objects in one row, or keep one; several captions are fine"
        kind = "two answers to one question"
        problems.append(Finding("warning", kind, what, remedy, data.name, **at(other)))
    return problems


def between(sets: Sequence[lint.DataSet], contents: Contents) -> list[Finding]:
    """Returns images that two data sets share; the same file given twice is one finding."""
    problems = []
    for first, second in itertools.combinations(sets, 2):
        if [r.source for r in second.records] == [r.source for r in first.records]:
            what = f"{second.name} has the rows of {first.name}"
            remedy = "its scores tell what was remembered; use rows that are in no other data set"
            problems.append(Finding("warning", "same data twice", what, remedy, second.name))
        else:
            problems += _shared(first, second, contents)
    return problems


def empty_files(data: lint.DataSet, sizes: Mapping[str, int]) -> list[Finding]:
    """Returns image files without a byte.

    Args:
      data: the data set.
      sizes: bytes of each file (`image_files.read_sizes`); of those elsewhere it is not known.
    """
    empty = [
        f"{r.source} ({path})" for r in data.records for path in r.images if sizes.get(path) == 0
    ]
    if not empty:
        return []
    remedy = "copy these files again, or remove their rows"
    return [
        Finding("error", "empty image file", "image of 0 bytes", remedy, data.name, **at(empty))
    ]


def decoded_files(data: lint.DataSet, files: Mapping[str, image_files.ImageFile]) -> list[Finding]:
    """Returns images that cannot be decoded, or look otherwise than their labels suppose.

    Args:
      data: the data set.
      files: what decoding says of each file (`image_files.decode_all`); empty ones are not there.
    """
    shown = [
        (record, files[path]) for record in data.records for path in record.images if path in files
    ]
    problems = []
    if broken := [(record.source, file.problem) for record, file in shown if file.problem]:
        remedy = "save these files again (JPEG, PNG, GIF, BMP, WebP), or remove their rows"
        what, places = broken[0][1], at(source for source, _ in broken)
        kind = "image that cannot be decoded"
        problems.append(Finding("error", kind, what, remedy, data.name, **places))
    for name, (severity, kind, what, remedy) in TRAITS.items():
        if places := [record.source for record, file in shown if getattr(file, name)]:
            problems.append(Finding(severity, kind, what, remedy, data.name, **at(places)))
    return problems + _other_sizes(data, files)


def _other_sizes(data: lint.DataSet, files: Mapping[str, image_files.ImageFile]) -> list[Finding]:
    """Returns rows whose objects were drawn on a picture of another size."""
    other = []
    for record in data.records:
        file, objects = files.get(record.images[0]) if record.images else None, record.objects
        if objects is None or file is None or file.problem:
            continue
        if (objects.width, objects.height) != (file.width, file.height):
            sizes = f"{objects.width}x{objects.height}, the file {file.width}x{file.height}"
            other.append(f"{record.source} (objects of {sizes})")
    if not other:
        return []
    what = "objects were drawn on a picture of another size than the file has"
    remedy = "convert the data set again with the files that it was labelled on"
    return [Finding("error", "image of another size", what, remedy, data.name, **at(other))]


def _shared(first: lint.DataSet, second: lint.DataSet, contents: Contents) -> list[Finding]:
    known = first.records[::-1]  # the first of equal ones is kept
    questions = {_question(record, contents): record.source for record in known if record.images}
    by_image = {
        contents.get(path, path): record.source for record in known for path in record.images
    }
    leaks, images = [], []
    for record in second.records:
        if not record.images:
            continue
        if source := questions.get(_question(record, contents)):
            leaks.append(f"{record.source} (as {source})")
        elif source := next(
            (by_image[c] for p in record.images if (c := contents.get(p, p)) in by_image), None
        ):
            images.append(f"{record.source} (as {source})")
    problems = []
    if leaks:
        severity = "error" if first.is_training and not second.is_training else "warning"
        what = f"rows with the image and prefix of a row of {first.name}: scores will be too good"
        remedy = "remove them from one of the two; split by image, not by row"
        kind = "same row in two data sets"
        problems.append(Finding(severity, kind, what, remedy, second.name, **at(leaks)))
    if images:
        what = f"rows with an image of {first.name}, and another prefix"
        remedy = "split by image where the answer can be known from the other row"
        kind = "same image in two data sets"
        problems.append(Finding("warning", kind, what, remedy, second.name, **at(images)))
    return problems


def _question(record: data_records.Record, contents: Contents) -> tuple:
    return tuple(contents.get(path, path) for path in record.images), record.prefix
