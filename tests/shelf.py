"""A store of files for several processes: shelf://NAME is a folder below $SHELF, on a bad line.

Every seventh writing of a file is dropped half-way, and each takes a moment.
"""

import itertools
import os
import pathlib
import time

import fsspec
from fsspec.implementations import local

_calls = itertools.count(1)


class Shelf(local.LocalFileSystem):
    protocol = "shelf"

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path)
        return path.replace("shelf://", os.environ["SHELF"] + "/", 1).rstrip("/")

    def put_file(self, lpath, rpath, **_):
        content, place = pathlib.Path(lpath).read_bytes(), pathlib.Path(rpath)
        half = place.with_name(place.name + ".part")  # a store shows whole files only
        half.write_bytes(content[: len(content) // 2])
        time.sleep(0.01)
        if next(_calls) % 7 == 0:
            half.unlink()
            raise ConnectionResetError("dropped")
        half.write_bytes(content)
        half.rename(place)


fsspec.register_implementation("shelf", Shelf, clobber=True)
