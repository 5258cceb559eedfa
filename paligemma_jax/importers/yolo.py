"""YOLO: a text file per image with a class number and a box, or a polygon, per line.

A line is `class x_center y_center width height`, or `class x1 y1 x2 y2 x3 y3 ...` for an outline,
all in 0..1 of the image. data.yaml names the classes and where the images of each split lie; their
labels lie where "images" in the path is "labels", else beside the image, else anywhere below under
the image's name. Without data.yaml: a list of class names (classes.txt of Label Studio, LabelImg;
obj.names of CVAT; _darknet.labels of Roboflow) or the names given, all images below. An image
without label file has no objects, as ultralytics reads it. The format:
https://docs.ultralytics.com/datasets/detect/
"""

import collections
import dataclasses
import math
import os
import re
import reprlib
from collections.abc import Iterator
from typing import Any

import yaml

from paligemma_jax.console import say
from paligemma_jax.data import locations
from paligemma_jax.importers import example, pictures, source_files

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml")
YAML = (".yaml", ".yml")
CLASS_FILES = ("classes.txt", "class_names.txt", "_darknet.labels", ".names")  # or their ends
HAS_NAMES = re.compile(r"^[\"']?names[\"']?\s*:", re.MULTILINE)
SPLITS = ("train", "val", "valid", "test")
MAX_ALIASES = 20
MAX_LINE = 10_000  # characters that are read to know a file
MAX_YAML = 2**16  # of them, of a description of another name
PROGRESS_IMAGES = 500


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is YOLO, or None."""
    if os.path.isfile(path):
        return path if path.lower().endswith(YAML) else None
    if shown := next(iter(_descriptions(path)), None):
        return shown
    # Lists of class names lie beside annotations of other formats too.
    has_labels = any(map(_is_label_file, _files_below(path, (".txt",))))
    return next(iter(_class_files(path)), None) if has_labels else None


def detect_likely(path: str) -> str | None:
    """Returns a label file, or a list of class names, that lets a path be taken for YOLO."""
    if not os.path.isdir(path):
        return None
    labels = next(filter(_is_label_file, _files_below(path, (".txt",))), None)
    return labels or next(iter(_class_files(path)), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set.

    Raises:
      ValueError: no class names, or no images.
    """
    root = request.root
    description = _describe(request, root)
    names = request.numbered(request.classes or _class_names(description, root))
    labels = _Labels(root, names, "kpt_shape" in description)
    folder = pictures.open_folder(root)
    images = list(_images(description, root, request, tally))
    if not images:
        raise ValueError(f"{root}: no images found; YOLO has them in folders called images")
    paths = [path for _, path in images]
    files = _find_label_files(paths, root, tally)
    examples = []
    for number, (split, path) in enumerate(images, 1):
        if read := _read_image(path, files.get(path), split, folder, labels, tally):
            examples.append(read)
        if number % PROGRESS_IMAGES == 0 or number == len(images):
            progress(number, len(images))
    _warn_of_first_class(names, examples, tally)
    for file in _labels_alone(paths, set(files.values()), root):
        tally.read["label files without an image"] += 1
        tally.drop("label file", "without an image", os.path.relpath(file, root))
    searched = (
        f"label files (.txt) of the images' names: in folders called labels beside those called "
        f"images, beside the images, and anywhere below {root}"
    )
    return example.DataSet(tuple(filter(None, labels.classes)), examples, len(examples), searched)


@dataclasses.dataclass(frozen=True)
class _Labels:
    """How label files are read: paths are told relative to root; a number is a place in classes."""

    root: str
    classes: tuple[str, ...]
    has_keypoints: bool


def _warn_of_first_class(
    names: tuple[str, ...], examples: list[example.Example], tally: example.Tally
) -> None:
    """Says it where the numbers of dropped objects look as if they were counted from 1."""
    used = {label for one in examples if one.objects for label in one.objects.labels}
    beyond = f"class {len(names)} of {len(names)} names"
    if not names or not names[0] or names[0] in used:
        return
    if any(drop.source.endswith(beyond) for drop in tally.drops):
        say.warning(
            f"no label has class 0, and some have {len(names)}: if classes are counted from 1, "
            f"--first_class 1"
        )


def _describe(request: example.Request, root: str) -> dict[str, Any]:
    paths = [request.path] if os.path.isfile(request.path) else _descriptions(root)
    if not paths:
        return {}
    if len(paths) > 1:
        names = ", ".join(map(os.path.basename, paths))
        raise ValueError(f"{root}: {names} each name classes; give one of them as SRC")
    (path,) = paths
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _FewAliases)
    # Scalars such as `!!int ""` and deep nesting leave yaml as errors of Python's own.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected names: and train: ..., found {reprlib.repr(content)}")
    return content


def _descriptions(root: str) -> list[str]:
    """Returns the paths of data.yaml, or of files of other names that name classes as it does."""
    usual = [os.path.join(root, name) for name in YAML_NAMES]
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    paths = [os.path.join(root, name) for name in names if name.lower().endswith(YAML)]
    paths = [path for path in paths if source_files.is_own(path, root)]
    if path := next((path for path in usual if path in paths), None):
        return [path]
    return [path for path in paths if _names_classes(path)]


def _names_classes(path: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return HAS_NAMES.search(file.read(MAX_YAML)) is not None


class _FewAliases(yaml.SafeLoader):
    """Loads YAML, of which aliases of aliases would fill the memory."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        self.num_aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > MAX_ALIASES:
                raise ValueError(f"more than {MAX_ALIASES} aliases (*name); write values out")
        return super().compose_node(parent, index)


def _class_names(description: dict[str, Any], root: str) -> tuple[str, ...]:
    """Returns the class name of every number; "" where a number has none."""
    names = description.get("names")
    if isinstance(names, list):
        return tuple(example.clean_name(str(name)) for name in names)
    if isinstance(names, dict) and names:
        numbered = {_class_number(str(number)): name for number, name in names.items()}
        if len(numbered) == len(names) and -1 not in numbered:
            every = (numbered.get(number, "") for number in range(max(numbered) + 1))
            return tuple(example.clean_name(str(name)) for name in every)
        raise ValueError(
            f"{root}: data.yaml: names: expected numbers from 0 to {example.MAX_CLASS}, found "
            f"{reprlib.repr(list(names))}; number the classes 0, 1, ..."
        )
    lists = {path: tuple(map(example.clean_name, lines)) for path, lines in _class_lists(root)}
    if len(set(lists.values())) == 1:
        return next(iter(lists.values()))
    problem = (
        f"class names differ between {', '.join(list(lists)[:3])}"
        if lists
        else "no class names: expected 'names' in data.yaml, or classes.txt with one a line"
    )
    raise ValueError(f"{root}: {problem}; give them: --classes first,second,...")


def _class_number(text: str) -> int:
    """Returns the number of a class, -1 where it is none; numpy writes it as 0.0000e+00."""
    try:
        number = float(text)
    except ValueError:
        return -1
    return int(number) if number.is_integer() and 0 <= number <= example.MAX_CLASS else -1


def _class_lists(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the path and the names of the class list at the root, else of all below it."""
    for path in _class_files(root):
        lines = example.read_lines(path)
        while lines and not lines[-1].strip():
            lines.pop()
        yield path, lines
        if os.path.dirname(path) == root:
            return


def _class_files(root: str) -> Iterator[str]:
    """Yields the paths of class lists, those nearest to the root first."""
    paths = [path for path in _files_below(root, CLASS_FILES) if _is_class_file(path)]
    yield from sorted(paths, key=lambda path: (path.count(os.sep), path))


def _is_class_file(path: str) -> bool:
    name = os.path.basename(path).lower()
    return name in CLASS_FILES or name.endswith(".names")


def _files_below(root: str, endings: tuple[str, ...]) -> Iterator[str]:
    for folder, names in source_files.walk(root):
        fitting = (name for name in names if name.lower().endswith(endings))
        yield from (os.path.join(folder, name) for name in fitting)


def _images(
    description: dict[str, Any], root: str, request: example.Request, tally: example.Tally
) -> Iterator[tuple[str | None, str]]:
    """Yields (split, path) of every image; a split that data.yaml names in vain is dropped.

    Raises:
      ValueError: the training images, or all splits, are not where data.yaml says.
    """
    seen: set[str] = set()
    missing: dict[str, str] = {}
    for key in SPLITS:
        for place in _places(description, key, root):
            if (paths := _list_place(place, description, root)) is None:
                missing.setdefault(key, place)
                continue
            for path in paths:
                if path not in seen:
                    seen.add(path)
                    yield example.split_name(key), path
    if missing and (not seen or "train" in missing):
        raise ValueError(
            f"{root}: data.yaml names '{next(iter(missing.values()))}', which is no folder or list "
            f"inside this folder; correct the entry (relative to data.yaml), or remove it"
        )
    for key, place in missing.items():
        tally.drop("split", "not there", f"data.yaml: {key}", f"'{place}'")
    if seen:
        return
    for folder, _ in source_files.walk(request.images or root):
        for path in pictures.list_images(folder):
            yield example.split_name(os.path.relpath(folder, root)), path


def _places(description: dict[str, Any], key: str, root: str) -> list[str]:
    """Returns the folders and lists that data.yaml names for a split."""
    value = description.get(key) or []
    places = value if isinstance(value, list) else [value]
    if not all(isinstance(place, str) for place in places):
        raise ValueError(
            f"{root}: data.yaml: {key}: expected a path or a list, found {reprlib.repr(value)}"
        )
    return places


def _list_place(place: str, description: dict[str, Any], root: str) -> list[str] | None:
    """Returns the images of one entry of data.yaml, a folder or a text file of paths."""
    base = os.path.join(root, str(description.get("path") or ""))
    inside = pictures.open_folder(root)
    path = _resolve(place, (base, root), root, inside)
    if path is None or not (os.path.isdir(path) or path.endswith(".txt")):
        return None
    if os.path.isdir(path):
        return [p for folder, _ in source_files.walk(path) for p in pictures.list_images(folder)]
    lines = [line.strip() for line in example.read_lines(path) if line.strip()]
    near = os.path.dirname(path)
    return [
        _resolve(line, (near,), root, inside) or os.path.normpath(os.path.join(near, line))
        for line in lines
    ]


def _resolve(
    place: str, bases: tuple[str, ...], root: str, inside: locations.ImageFolder
) -> str | None:
    """Returns the path inside root that an entry means, None if there is none.

    An entry may be relative to another folder than data.yaml (Roboflow writes ../train/images, or
    the project's folder before it), or a path of another machine: then the longest end of it that
    exists below root is meant.
    """
    parts = [part for part in re.split(r"[\\/]", place) if part not in ("", ".", "..")]
    tries = [os.path.join(base, place) for base in bases]
    tries += [os.path.join(root, *parts[start:]) for start in range(len(parts))]
    for path in map(os.path.normpath, tries):
        # "images" alone is the end of every split's path: it would give all splits one folder.
        if path == os.path.join(root, "images") and len(parts) > 1:
            continue
        if inside.contains(os.path.realpath(path)) and os.path.exists(path):
            return path
    return None


def _read_image(
    path: str,
    file: str | None,
    split: str | None,
    folder: locations.ImageFolder,
    labels: _Labels,
    tally: example.Tally,
) -> example.Example | None:
    tally.read["images"] += 1
    name = os.path.relpath(path, labels.root)
    picture = pictures.locate(folder, name, name, tally)
    size = pictures.measure(picture, name, tally) if picture else None
    if picture is None or size is None:
        return None
    annotations: list[example.Annotation] = []
    if file is None:
        tally.changed["images without label file taken as without objects"] += 1
    else:
        where = os.path.relpath(file, labels.root)
        if what := locations.describe_file(file):
            tally.drop("image", "label file cannot be read", where, f"it is {what}")
            return None
        try:
            with open(file, encoding="utf-8-sig") as opened:
                lines = opened.read().splitlines()
        except UnicodeDecodeError as error:
            tally.drop("image", "label file is not UTF-8", where, f"byte {error.start}")
            return None
        annotations = [
            _parse(line, f"{where}:{number}", size, labels)
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
    objects = example.collect_objects(annotations, size, tally)
    if objects is None:
        tally.drop("image", "none of its objects could be kept", name)
        return None
    return example.Example(picture, name, split, objects)


def _label_places(image: str) -> list[str]:
    """Returns where an image's label file may be: in "labels" instead of "images", beside it."""
    head, folder, tail = image.rpartition(f"{os.sep}images{os.sep}")
    moved = f"{head}{os.sep}labels{os.sep}{tail}" if folder else image
    return [os.path.splitext(path)[0] + ".txt" for path in (moved, image)]


def _find_label_files(images: list[str], root: str, tally: example.Tally) -> dict[str, str]:
    """Returns {image: its label file}: where YOLO has it, else the one of its name below root."""
    files: dict[str, str] = {}
    for image in images:
        file = next(filter(os.path.isfile, _label_places(image)), None)
        if file and source_files.is_own(file, root):
            files[image] = file
    missing = [image for image in images if image not in files]
    if not missing:
        return files
    free: dict[str, list[str]] = {}
    for path in set(_files_below(root, (".txt",))) - set(files.values()):
        free.setdefault(source_files.stem_key(path), []).append(path)
    nearest = {
        image: _nearest(image, free.get(source_files.stem_key(image), [])) for image in missing
    }
    counts = collections.Counter(filter(None, nearest.values()))
    for image, file in nearest.items():
        if file and counts[file] == 1 and _is_label_file(file):
            files[image] = file
            tally.changed["label files found by name alone"] += 1
    return files


def _nearest(image: str, files: list[str]) -> str | None:
    """Returns the file that shares most folders with an image, None where several do."""
    depths = {file: len(os.path.commonpath([image, file])) for file in files}
    nearest = [file for file, depth in depths.items() if depth == max(depths.values())]
    return nearest[0] if len(nearest) == 1 else None


def _labels_alone(images: list[str], used: set[str], root: str) -> list[str]:
    """Returns the label files of no image: in the folders of labels, else anywhere below root.

    A folder called labels holds nothing else; elsewhere the first line must look like a label.
    """
    expected = {os.path.dirname(_label_places(image)[0]) for image in images}
    expected = {folder for folder in expected if "labels" in folder.split(os.sep)}
    paths: set[str] = set()
    for folder in expected | {os.path.dirname(file) for file in used}:
        names = os.listdir(folder) if os.path.isdir(folder) else ()
        texts = {os.path.join(folder, name) for name in names if name.endswith(".txt")}
        texts = {path for path in texts if source_files.is_own(path, root)}
        paths |= texts if folder in expected else set(filter(_is_label_file, texts))
    if not used:
        paths |= set(filter(_is_label_file, _files_below(root, (".txt",))))
    return sorted(path for path in paths - used if not _is_class_file(path))


def _is_label_file(path: str) -> bool:
    """Whether the first line of a file that is no list of classes is a class number and a box."""
    if _is_class_file(path):
        return False
    try:
        with open(path, encoding="utf-8-sig") as file:
            words = file.readline(MAX_LINE).split()
            return len(words) >= 5 and all(math.isfinite(float(word)) for word in words[:5])
    except ValueError:
        return False


def _parse(line: str, where: str, size: tuple[int, int], labels: _Labels) -> example.Annotation:
    """Returns the annotation of a line; what is wrong with it is found when it is collected."""
    (width, height), classes = size, labels.classes
    words = line.split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        return example.Annotation("?", f"{where}: '{line:.60}' is not numbers")
    number, values = _class_number(words[0]), values[1:]
    label = classes[number] if 0 <= number < len(classes) else ""
    if not label:
        where = f"{where}: class {words[0]:.20} of {len(classes)} names"
    if len(values) == 4 or (labels.has_keypoints and len(values) > 4):
        x, y, w, h = values[:4]
        box = [(x - w / 2) * width, (y - h / 2) * height]
        return example.Annotation(label, where, [*box, box[0] + w * width, box[1] + h * height])
    if len(values) >= 6 and len(values) % 2 == 0:
        sides = [width, height] * (len(values) // 2)
        flat = [value * side for value, side in zip(values, sides, strict=True)]
        return example.Annotation(label, where, None, [flat])
    return example.Annotation(label, f"{where}: {len(words)} numbers, expected 5 or an outline")
