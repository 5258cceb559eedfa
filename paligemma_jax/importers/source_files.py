"""The files of a data set, without what a system puts beside them.

Archives that were packed on a Mac hold a folder __MACOSX and files ._NAME, notebooks leave copies
in .ipynb_checkpoints, storage servers previews in @eaDir: these are no data. Nor are devices and
pipes, which may have no end. A link of an annotation that leads out of the data set is refused.
"""

import os
import stat
from collections.abc import Iterator

from paligemma_jax.data import locations

NO_DATA = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")
# Of files whose text an import may show.
ANNOTATIONS = (".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".names")
ANNOTATIONS += (".labels", ".parquet", ".arrow")


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, the names of its files in order) of a folder and all below it, in order.

    Raises:
      ValueError: a link that leads out of root.
    """
    for folder, _, names in sorted(os.walk(root)):
        parts = os.path.relpath(folder, root).split(os.sep)
        if folder == root or all(map(_is_data_folder, parts)):
            paths = (os.path.join(folder, name) for name in sorted(names))
            yield folder, [os.path.basename(path) for path in paths if is_own(path, root)]


def is_own(path: str, root: str) -> bool:
    """Whether a path is that of a file with data.

    Raises:
      ValueError: a link of an annotation that leads out of root.
    """
    if not is_data(os.path.basename(path)):
        return False
    mode = os.lstat(path).st_mode
    if not stat.S_ISLNK(mode) or not os.path.isfile(path):
        return stat.S_ISREG(mode)
    top, target = os.path.realpath(root), os.path.realpath(path)
    if path.lower().endswith(ANNOTATIONS) and not target.startswith(top.rstrip(os.sep) + os.sep):
        raise ValueError(f"{path} is a link that leads out of {root}: put the file itself there")
    return True


def is_data(name: str) -> bool:
    """Whether a file's name is not that of what a Mac keeps beside it."""
    return not name.startswith("._")


def folders(root: str) -> list[str]:
    """Returns the paths of the folders right in a folder, in order."""
    with os.scandir(root) as entries:
        shown = [entry for entry in entries if _is_data_folder(entry.name)]
        return sorted(e.path for e in shown if e.is_dir(follow_symlinks=False))


def innermost(root: str) -> str:
    """Returns the folder that all of a folder lies in: itself, but for a folder in a folder."""
    while os.path.isdir(root):
        inside = folders(root)
        names = [name for name in os.listdir(root) if _is_data_folder(name)]
        if len(inside) != 1 or len(names) != 1:
            return root
        root = inside[0]
    return root


def stem_key(path: str) -> str:
    """Returns the `locations.key` of a file's name without its ending."""
    return locations.key(os.path.splitext(os.path.basename(path))[0])


def _is_data_folder(name: str) -> bool:
    return not name.startswith(".") and name not in NO_DATA
