"""Images put under the folder of a data set: linked where the disk is the same, else copied."""

import collections
import os
import pathlib
import shutil

from paligemma_jax.importers import example


class Images:
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
