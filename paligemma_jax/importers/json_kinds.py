"""Which format a JSON file is, told by how it begins: these files may be large."""

import re

NUM_BYTES = 65536
ROWS, LABELME = "rows", "labelme"
IS_ROWS = re.compile(rb"\s*\[\s*\{")
IS_LABELME = re.compile(rb'\s*\{.*"shapes"\s*:\s*\[', re.DOTALL)
IS_COCO = re.compile(rb'"(annotations|images)"\s*:')


def find(path: str) -> str | None:
    """Returns ROWS (a list of objects), LABELME, or None for anything else."""
    try:
        with open(path, "rb") as file:
            head = file.read(NUM_BYTES)
    except OSError:
        return None
    # Of UTF-16 the ASCII is left, which is all that is looked for.
    head = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")
    if IS_ROWS.match(head):
        return ROWS
    return LABELME if IS_LABELME.match(head) and not IS_COCO.search(head) else None
