"""Files that are something else than their name says, known by how they begin."""

import os

NUM_BYTES = 512
LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<script")


def describe(head: bytes) -> str | None:
    """Returns "a web page: download ..." for a file that begins so, None where nothing is known."""
    if head.startswith(LFS):
        return "a Git LFS pointer: run 'git lfs pull' where it was cloned"
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begins.startswith(PAGES):
        return "a web page: download the file itself"
    return None


def describe_file(path: str | os.PathLike[str]) -> str | None:
    """Returns `describe` of a file; None for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return describe(file.read(NUM_BYTES))
    except OSError:
        return None
