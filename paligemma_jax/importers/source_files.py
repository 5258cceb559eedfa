"""The files of a data set, without what a system puts beside them.

Archives that were packed on a Mac hold a folder __MACOSX and files ._NAME, which are no data.
"""

import os
from collections.abc import Iterator

from paligemma_jax.data import locations

NO_DATA = "__MACOSX"


def walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields (folder, the names of its files in order) of a folder and all below it, in order."""
    for folder, _, names in sorted(os.walk(root)):
        if NO_DATA not in os.path.relpath(folder, root).split(os.sep):
            yield folder, sorted(filter(is_data, names))


def is_data(name: str) -> bool:
    """Whether a file's name is not that of what a Mac keeps beside it."""
    return not name.startswith("._")


def folders(root: str) -> list[str]:
    """Returns the paths of the folders right in a folder, in order, hidden ones left out."""
    with os.scandir(root) as entries:
        shown = [e for e in entries if not e.name.startswith(".") and e.name != NO_DATA]
        return sorted(e.path for e in shown if e.is_dir(follow_symlinks=False))


def innermost(root: str) -> str:
    """Returns the folder that all of a folder lies in: itself, but for a folder in a folder."""
    while os.path.isdir(root):
        inside = folders(root)
        names = [name for name in os.listdir(root) if is_data(name) and not name.startswith(".")]
        if len(inside) != 1 or len(set(names) - {NO_DATA}) != 1:
            return root
        root = inside[0]
    return root


def stem_key(path: str) -> str:
    """Returns the `locations.key` of a file's name without its ending."""
    return locations.key(os.path.splitext(os.path.basename(path))[0])
