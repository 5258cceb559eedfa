"""COCO: boxes, polygons, run lengths and captions in one JSON file per split.

Layouts: COCO's own (annotations/instances_train2017.json beside train2017/), Roboflow's
(train/_annotations.coco.json among its images), CVAT's (annotations/*.json, images anywhere below),
FiftyOne's (labels.json), any other JSON file that lists images and annotations in the folder or one
below it, or the JSON file alone. A crowd region (iscrowd) is no object and is
dropped. The format: https://cocodataset.org/#format-data
"""

import collections
import glob
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from paligemma_jax.data import locations
from paligemma_jax.importers import example, json_kinds, pictures, source_files
from paligemma_jax.tasks import definition

PATTERNS = ("*/_annotations.coco.json", "_annotations.coco.json", "annotations/*.json")
LONE_PATTERNS = ("instances*.json", "captions*.json", "labels.json", "*coco*.json", "*/*coco*.json")
# Files of these names count only where their content is COCO's.
OTHER_PATTERNS = ("*.json", "*/*.json")
PROGRESS_IMAGES = 500


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is COCO, or None."""
    if os.path.isfile(path):
        is_other = json_kinds.find(path) is not None
        return path if path.lower().endswith(".json") and not is_other else None
    return next(iter(_annotation_files(path)), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set; every JSON file is a split.

    Raises:
      ValueError: a file that is not COCO's, or images that are nowhere.
    """
    files = [request.path]
    root = os.path.dirname(os.path.abspath(request.path))
    if os.path.isdir(request.path):
        root = request.path
        files = _choose(_annotation_files(root), request)
    elif os.path.basename(root) == "annotations":
        root = os.path.dirname(root)
    parts = [_Part.load(file, root, request) for file in files]
    if len({part.split for part in parts}) < len(parts):
        raise ValueError(
            f"{request.path}: {[os.path.relpath(file, root) for file in files]} would be the same "
            f"split twice; give one of the files as SRC"
        )
    named = tuple(dict.fromkeys(name for part in parts for name in part.classes))
    classes = request.classes or named
    total = sum(len(part.images) for part in parts)
    if not total:
        raise ValueError(f"{files[0]}: no images are listed in it")
    examples: list[example.Example] = []
    for part in parts:
        for read in _read_part(part, request, tally):
            examples.append(read)
            if len(examples) % PROGRESS_IMAGES == 0:
                progress(min(len(examples), total), total)
    names = ", ".join(part.name for part in parts)
    searched = f"the annotations of {names}: by image_id, and category_id in the categories"
    return example.DataSet(classes, examples, len(examples), searched)


class _Part:
    """One JSON file.

    Attributes:
      name: of the file, for messages. split: what it is called, or None.
      what: its annotations are, "object" or "caption".
      images, annotations: its lists. folder: where the images lie; prefix: what names that are
        relative to it start with to be relative to the source.
      names: category id -> class name. classes: those that a prompt should ask for.
    """

    def __init__(self, path: str, root: str, content: Mapping[str, Any], request: example.Request):
        self.name = os.path.relpath(path, root)
        self.split = example.split_name(self.name)
        self.what = request.rule.source.removesuffix("s")
        near = os.path.dirname(os.path.abspath(path))
        self.images = [_from_root(image, near, root) for image in _list(content, "images", path)]
        self.annotations = _list(content, "annotations", path)
        names = [i["file_name"] for i in self.images if isinstance(i.get("file_name"), str)]
        if not names and self.images:
            raise ValueError(f"{path}: no image has a 'file_name'; is it a COCO file?")
        beside = names and os.path.isfile(os.path.join(near, names[0]))
        folder = request.images or (near if beside else None)
        self.folder = pictures.open_folder(pictures.choose_folder(names, root, folder))
        prefix = os.path.relpath(self.folder.root, os.path.realpath(root))
        self.prefix = "" if prefix.startswith((".", os.sep)) else prefix
        categories = _list(content, "categories", path) if "categories" in content else []
        self.names = {
            _key(category.get("id")): example.clean_name(category.get("name"))
            for category in categories
        }
        used = {_key(annotation.get("category_id")) for annotation in self.annotations}
        # Roboflow writes the project's name as a category that nothing belongs to.
        groups = {
            example.clean_name(category.get("supercategory"))
            for category in categories
            if category.get("supercategory") != category.get("name")
        }
        self.classes = [
            name
            for number, name in self.names.items()
            if name and (number in used or name not in groups)
        ]

    @classmethod
    def load(cls, path: str, root: str, request: example.Request) -> "_Part":
        return cls(path, root, _load(path), request)


def _read_part(
    part: _Part, request: example.Request, tally: example.Tally
) -> Iterator[example.Example]:
    known = {_key(image.get("id")) for image in part.images}
    annotations = collections.defaultdict(list)
    for number, annotation in enumerate(part.annotations, 1):
        where = f"{part.name}: annotation {annotation.get('id', f'number {number}')}"
        if _key(annotation.get("image_id")) not in known:
            detail = f"image_id {annotation.get('image_id')!r:.40}"
            tally.read[f"{part.what}s"] += 1
            tally.drop(part.what, "of an image that is not listed", where, detail)
            continue
        annotations[_key(annotation["image_id"])].append((where, annotation))
    seen = set()
    for image in part.images:
        tally.read["images"] += 1
        where = f"{part.name}: image {image.get('id')!r:.40}"
        if _key(image.get("id")) in seen:
            tally.drop("image", "listed twice", where)
            continue
        seen.add(_key(image.get("id")))
        own = annotations[_key(image.get("id"))]
        picture, size = _open(part, image, where, tally)
        if picture is None or size is None:
            for source, _ in own:
                tally.read[f"{part.what}s"] += 1
                tally.drop(part.what, "of an image that was dropped", source, where)
            continue
        if request.rule.source == definition.CAPTIONS:
            yield from _captions(part, picture, own, where, tally)
            continue
        objects = example.collect_objects(_objects(part, own, tally), size, tally)
        if objects is None:
            tally.drop("image", "none of its objects could be kept", where, picture.name)
            continue
        yield example.Example(picture, where, part.split, objects)


def _open(
    part: _Part, image: Mapping[str, Any], where: str, tally: example.Tally
) -> tuple[example.Picture | None, tuple[int, int] | None]:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        tally.drop("image", "without a file_name", where)
        return None, None
    picture = pictures.locate(part.folder, name.replace("\\", "/"), where, tally)
    size = pictures.measure(picture, where, tally) if picture else None
    if picture is None or size is None:
        return None, None
    width, height = image.get("width"), image.get("height")
    has_size = all(type(side) is int and side > 0 for side in (width, height))
    annotated = (int(width), int(height)) if has_size and width and height else size
    if not pictures.is_of_size(picture, size, annotated, where, tally):
        return None, None
    return example.Picture(os.path.join(part.prefix, picture.name), picture.path), size


def _objects(part: _Part, own: list, tally: example.Tally) -> list[example.Annotation]:
    annotations = []
    for where, annotation in own:
        category = _key(annotation.get("category_id"))
        if annotation.get("iscrowd"):
            tally.read["objects"] += 1
            tally.drop("object", "crowd region", where)
            continue
        if category not in part.names:
            where = f"{where}: category_id {annotation.get('category_id')!r:.40} is in no category"
        box = example.from_size(annotation.get("bbox"))
        label = part.names.get(category, "")
        annotations.append(
            example.Annotation(label, where, box or None, annotation.get("segmentation"))
        )
    return annotations


def _captions(part, picture, own, where: str, tally: example.Tally) -> Iterator[example.Example]:
    """Yields an example per caption: COCO has five of an image."""
    if not own:
        tally.drop("image", "without a caption", where, picture.name)
    for source, annotation in own:
        tally.read["captions"] += 1
        caption = annotation.get("caption")
        if not isinstance(caption, str) or not caption.strip():
            tally.drop("caption", "empty or missing", source, f"{caption!r:.40}")
            continue
        yield example.Example(picture, source, part.split, suffix=" ".join(caption.split()))


def _annotation_files(root: str) -> list[str]:
    """Returns the JSON files of the first layout that fits."""
    for pattern in (*PATTERNS, *LONE_PATTERNS):
        if files := [file for file in _glob(root, pattern) if json_kinds.find(file) is None]:
            return files
    others = [file for pattern in OTHER_PATTERNS for file in _glob(root, pattern)]
    return [file for file in others if _lists_annotations(file)]


def _glob(root: str, pattern: str) -> list[str]:
    paths = sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
    return [path for path in paths if source_files.is_own(path, root)]


def _lists_annotations(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _choose(files: list[str], request: example.Request) -> list[str]:
    """Returns those of COCO's own files that the task needs; of other names all."""
    names_of = {definition.OBJECTS: "instances", definition.CAPTIONS: "captions"}
    wanted = names_of.pop(request.rule.source)
    (others,) = names_of.values()
    names = {file: os.path.basename(file) for file in files}
    chosen = [file for file in files if names[file].startswith(wanted)]
    rest = [f for f in files if not names[f].startswith((others, "person_keypoints", "image_info"))]
    if fitting := chosen or rest:
        return fitting
    if not files:
        raise ValueError(
            f"{request.path}: no JSON file with 'images' and 'annotations' here or one folder below"
        )
    raise ValueError(f"{request.path}: task {request.task} needs {wanted}*.json, found {files}")


def _load(path: str) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        raw = file.read()
    try:
        content = json.loads(raw)  # UTF-8 or 16, as it finds
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        problem = "the file is empty" if not raw.strip() else f"broken JSON: {error}"
        problem = f"found {what}" if (what := locations.describe_head(raw)) else problem
        raise ValueError(f"{path}: {problem}; expected COCO annotations") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        keys = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected the keys images and annotations, found {keys}")
    return content


def _from_root(image: dict[str, Any], near: str, root: str) -> dict[str, Any]:
    name = image.get("file_name")
    if not isinstance(name, str):
        return image
    return {**image, "file_name": pictures.from_root(name, near, root)}


def _key(number: Any) -> str:
    """Returns an id as it can be looked up: 7 is "7", as tools have it that keep ids as text.

    So is 7.0, as ids are that came through a table with gaps.
    """
    if isinstance(number, float) and number.is_integer():
        return str(int(number))
    return str(number) if isinstance(number, int | str) else repr(number)


def _list(content: Mapping[str, Any], key: str, path: str) -> list[dict[str, Any]]:
    items = content[key]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{path}: '{key}' must be a list of objects")
    return items
