"""XML of annotations, read without what they do not need: document types, and entities of these."""

import os
from xml.etree import ElementTree

from paligemma_jax.data import locations

MAX_DIGITS = 9  # of a side in pixels


class _Builder(ElementTree.TreeBuilder):
    """Refuses a document type, whatever encoding it is written in."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        del name, pubid, system
        raise ValueError("declares a document type, which annotations do not need")


def parse(path: str | os.PathLike[str]) -> ElementTree.Element:
    """Returns the tree of a file.

    Raises:
      ValueError: what is wrong with it; the file is not named.
    """
    with open(path, "rb") as file:
        raw = file.read()
    if not raw.strip():
        raise ValueError("the file is empty")
    if what := locations.describe_head(raw[: locations.HEAD_BYTES]):
        raise ValueError(f"it is {what}")
    try:
        return ElementTree.fromstring(raw, ElementTree.XMLParser(target=_Builder()))
    except (ElementTree.ParseError, LookupError) as error:  # LookupError: an unknown encoding
        raise ValueError(str(error)) from error


def size(width: str | None, height: str | None) -> tuple[int, int] | None:
    """Returns the size in pixels that two texts give, None where they give none."""
    sides = [(side or "").strip() for side in (width, height)]
    if not all(side.isdecimal() and len(side) <= MAX_DIGITS and int(side) for side in sides):
        return None
    return int(sides[0]), int(sides[1])
