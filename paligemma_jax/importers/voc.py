"""Pascal VOC: an XML file per image, with boxes and maybe polygons.

Layouts: VOCdevkit's (Annotations/ and JPEGImages/, splits in ImageSets/Main/*.txt), Roboflow's
(train/*.xml among the images), supervision's and CVAT's (XML in one folder, images in another).
Corners are numbers of pixels, counted from 1 and both inside the box, so a box that covers an
image of width W goes from 1 to W: here it is 0 to W. Tools that count otherwise are off by one
pixel at most.
"""

import os
from collections.abc import Iterator
from xml.etree import ElementTree

from paligemma_jax.importers import cvat, example, pictures, source_files, xml_files

CORNERS = ("xmin", "ymin", "xmax", "ymax")
SETS = os.path.join("ImageSets", "Main")
# Lists that hold the others.
JOINT_SETS = ("trainval",)
PROGRESS_FILES = 500


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is VOC, or None."""
    if not os.path.isdir(path):
        return None
    return next((file for file in _xml_files(path) if not cvat.is_cvat(file)), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set.

    Raises:
      ValueError: no XML files, or images that are nowhere.
    """
    root = request.path
    files = list(_xml_files(root))
    if not files:
        raise ValueError(f"{root}: no annotations *.xml below it")
    images = _Images(root, request.images)
    splits = _read_sets(root)
    for stem in sorted(set(splits) - {_stem(path) for path in files}):
        tally.read["images"] += 1
        tally.drop("image", "listed without an annotation file", f"{SETS}: {stem}")
    examples = []
    for number, path in enumerate(files, 1):
        name = os.path.relpath(path, root)
        split = splits.get(_stem(path))
        split = split or example.split_name(os.path.dirname(name))
        if read := _read_file(path, name, split, images, tally):
            examples.append(read)
        if number % PROGRESS_FILES == 0 or number == len(files):
            progress(number, len(files))
    searched = f"the <object> elements right below <annotation>, of {len(files)} XML files"
    return example.of_objects(request, examples, searched=searched)


class _Images:
    """Finds an XML file's image: beside it, or by its stem anywhere below the folder."""

    def __init__(self, root: str, given: str | None):
        self.folder = pictures.open_folder(given or root)
        self.by_stem: dict[str, list[str]] = {}
        for folder, _ in source_files.walk(self.folder.root):
            for path in pictures.list_images(folder):
                self.by_stem.setdefault(source_files.stem_key(path), []).append(path)

    def find(
        self, xml: str, filename: str, source: str, tally: example.Tally
    ) -> example.Picture | None:
        near = os.path.dirname(os.path.realpath(xml))
        # Masks of VOCdevkit have their image's stem too.
        for stem in dict.fromkeys(map(source_files.stem_key, (filename, xml))):
            paths = [p for p in self.by_stem.get(stem, []) if "Segmentation" not in p]
            paths = [p for p in paths if os.path.dirname(p) == near] or paths
            if len(paths) > 1:
                detail = f"'{filename}' could be {', '.join(paths[:3])}"
                tally.drop("image", "several images of this name", source, detail)
                return None
            if paths:
                name = os.path.relpath(paths[0], self.folder.root)
                return pictures.locate(self.folder, name, source, tally)
        detail = f"'{filename}': no such file below {self.folder.root}"
        tally.drop("image", "image not found", source, detail)
        return None


def _read_file(
    path: str, name: str, split: str | None, images: _Images, tally: example.Tally
) -> example.Example | None:
    tally.read["images"] += 1
    try:
        tree = xml_files.parse(path)
        if tree.tag != "annotation":
            raise ValueError(f"expected <annotation>, found <{tree.tag}>")
    except (ValueError, OSError) as error:
        tally.drop("image", "broken XML", name, error)
        return None
    filename = os.path.basename((tree.findtext("filename") or "").strip().replace("\\", "/"))
    picture = images.find(path, filename, name, tally)
    size = pictures.measure(picture, name, tally) if picture else None
    if picture is None or size is None:
        return None
    annotated = xml_files.size(tree.findtext("size/width"), tree.findtext("size/height"))
    if annotated and not pictures.is_of_size(picture, size, annotated, name, tally):
        return None
    annotations = [_annotation(item, name) for item in tree.findall("object")]
    objects = example.collect_objects(annotations, size, tally)
    if objects is None:
        tally.drop("image", "none of its objects could be kept", name)
        return None
    return example.Example(picture, name, split, objects)


def _annotation(item: ElementTree.Element, name: str) -> example.Annotation:
    label = example.clean_name(item.findtext("name"))
    source = f"{name}: object '{label}'"
    x0, y0, x1, y1 = (_number(item.findtext(f"bndbox/{corner}")) for corner in CORNERS)
    box = None
    if x0 is not None and y0 is not None and x1 is not None and y1 is not None:
        box = [x0 - 1, y0 - 1, x1, y1]
    elif item.find("bndbox") is not None:
        source = f"{source}: corners {CORNERS} are not all numbers"
    return example.Annotation(label, source, box, _polygon(item.find("polygon")))


def _polygon(item: ElementTree.Element | None) -> list[list[float]] | None:
    """Returns <polygon><x1/><y1/><x2/>... as supervision and Roboflow write it."""
    if item is None:
        return None
    flat = []
    for number in range(1, len(item) // 2 + 1):
        flat += [_number(item.findtext(f"{axis}{number}")) for axis in "xy"]
    return [[value - 1 if value is not None else float("nan") for value in flat]]


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _xml_files(root: str) -> Iterator[str]:
    """Yields the XML files below a folder, in order."""
    for folder, names in source_files.walk(root):
        for name in names:
            if name.lower().endswith(".xml"):
                yield os.path.join(folder, name)


def _read_sets(root: str) -> dict[str, str]:
    """Returns stem -> split of VOCdevkit's lists; lists of one class ("cat_train") do not count."""
    folders = [folder for folder, _ in source_files.walk(root) if folder.endswith(SETS)]
    splits: dict[str, str] = {}
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            stem, ending = os.path.splitext(name)
            if not source_files.is_own(os.path.join(folder, name), root):
                continue
            if ending != ".txt" or stem in JOINT_SETS or stem not in example.SPLITS:
                continue
            lines = example.read_lines(os.path.join(folder, name))
            splits |= {line.split()[0]: example.SPLITS[stem] for line in lines if line.strip()}
    return splits
