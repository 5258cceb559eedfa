"""Which format a JSON file is, told by how it begins: these files may be large."""

import re

NUM_BYTES = 65536
ROWS, LABELME = "rows", "labelme"
IS_ROWS = re.compile(rb"\s*\[\s*\{")
IS_LABELME = re.compile(rb'\s*\{.*"shapes"\s*:\s*\[', re.DOTALL)


def find(path: str) -> str | None:
    """Returns ROWS (a list of objects), LABELME, or None for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(NUM_BYTES).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return None
    if IS_ROWS.match(head):
        return ROWS
    is_coco = b'"annotations"' in head or b'"images"' in head
    return LABELME if IS_LABELME.match(head) and not is_coco else None
