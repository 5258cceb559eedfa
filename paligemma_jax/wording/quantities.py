"""Counts and sizes as people write them."""

import re

PLURAL = re.compile(r"(?<=x)es\b|s\b")  # rows of train -> row of train, boxes -> box


def count(number: int, things: str) -> str:
    """Returns "1,200 rows" or "1 row". `things`: a phrase whose first plural is what is counted."""
    return f"{number:,} {PLURAL.sub('', things, count=1) if number == 1 else things}"


def size(num_bytes: float) -> str:
    """Returns a number of bytes in its binary unit: "12 B", "1.5 MiB", "5.45 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
