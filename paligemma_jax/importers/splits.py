"""Dividing examples into train, valid and test: the same every time, and without a leak.

Examples that share a key (a patient, a video, an image, the bytes of an image) always come into the
same split. Which one is decided by a hash of the group and the seed, so neither the order of the
examples nor the machine matters.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.data import image_files
from paligemma_jax.importers import example
from paligemma_jax.wording import phrases

# What Roboflow puts into the names of its augmented copies of one photo.
ROBOFLOW_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{8,}(?=\.[^.]+$)")


ALL = "train"  # the split of everything where there are none
NUM_SHOWN = 3  # leaks that are named


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A line to write.

    Attributes:
      line: its JSON.
      image: relative to the folder of the data set.
      name: of the image in the source.
      split: that the source assigns it to, or None.
    """

    line: dict[str, Any]
    image: str
    name: str
    split: str | None


def divide(
    rows: Sequence[Row],
    folder: pathlib.Path,
    *,
    ratios: Mapping[str, float],
    group: str | None,
    seed: int,
) -> dict[str, list[Row]]:
    """Returns split -> rows: the source's splits, or new ones without a leak.

    Args:
      rows: of the data set.
      folder: that the images lie in.
      ratios: {split: share} where the source has no splits; {} leaves all rows together.
      group: regular expression, see `group_key`.
      seed: decides the new splits.

    Raises:
      ValueError: ratios for a source that has splits, or ratios that cannot be met.
    """
    given = {row.split for row in rows}
    if given != {None} and len(given) > 1:
        if ratios:
            names = ", ".join(sorted(map(str, given)))
            raise ValueError(f"--split is for sources without splits; this one has {names}")
        parts: dict[str, list[Row]] = {
            name: [] for name in example.SPLITS.values() if name in given
        }
        for row in rows:
            parts.setdefault(row.split or ALL, []).append(row)
        _warn_of_leaks(parts, folder)
        return parts
    if not ratios:
        say.info("no splits: one file. --split train=0.8,valid=0.2 divides it without a leak")
        return {next(iter(given)) or ALL: list(rows)}
    keys = [
        (f"group {group_key(row.name, group)}", f"image {row.image}", f"same {content}")
        for row, content in zip(rows, _content_keys(rows, folder), strict=True)
    ]
    parts = {name: [] for name in ratios}
    for row, split in zip(rows, assign(join(keys), ratios=ratios, seed=seed), strict=True):
        parts[split].append(row)
    return parts


def assign(groups: Sequence[str], *, ratios: Mapping[str, float], seed: int) -> list[str]:
    """Returns the split of every example; those of one group are together.

    Groups go, in the order of their hashes, to the split that lacks most: as near to the ratios as
    the groups' sizes allow.

    Raises:
      ValueError: ratios that are not positive or do not sum to 1, or a split that would be empty.
    """
    if not ratios or min(ratios.values()) <= 0 or abs(sum(ratios.values()) - 1) > 1e-6:
        raise ValueError(f"shares of splits must be above 0 and sum to 1; found {dict(ratios)}")
    sizes = collections.Counter(groups)
    lacking = {name: ratio * len(groups) for name, ratio in ratios.items()}
    chosen = {}
    for group in sorted(sizes, key=lambda group: _hash(seed, group)):
        name = max(lacking, key=lambda name: lacking[name])
        lacking[name] -= sizes[group]
        chosen[group] = name
    if empty := set(ratios) - set(chosen.values()):
        raise ValueError(
            f"{sorted(empty)} would be empty: {len(groups)} examples make only {len(sizes)} groups"
        )
    return [chosen[group] for group in groups]


def join(keys: Sequence[Iterable[str]]) -> list[str]:
    """Returns one group name per example: those that share any key, also by way of others, agree.

    The name is the first of the group's keys in alphabetical order.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    firsts = []
    for own in keys:
        first, *others = own
        firsts.append(first)
        for other in others:
            low, high = sorted((root(first), root(other)))
            parent[high] = low
    return [root(first) for first in firsts]


def group_key(name: str, pattern: str | None) -> str:
    """Returns the part of an image's name that says what it belongs to.

    Args:
      name: relative path of the image.
      pattern: a regular expression; its first group, or all that it matches, is the key. A name
        that it does not match stands alone. None: only Roboflow's copies of one photo are together.
    """
    if pattern is None:
        return ROBOFLOW_COPY.sub("", name)
    match = re.search(pattern, name)
    if not match:
        return name
    return match[1] if match.re.groups and match[1] is not None else match[0]


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{group}".encode("utf-8", "surrogateescape")).digest()


def _content_keys(rows: Sequence[Row], folder: pathlib.Path) -> list[str]:
    """Returns a key per row that says which bytes its image has."""
    paths = [str(folder / row.image) for row in rows]
    with say.progress("comparing images", unit="B", unit_scale=True) as report:
        contents = image_files.find_contents(
            image_files.read_sizes(paths), num_workers=os.cpu_count() or 1, progress=report
        )
    return [contents[path] for path in paths]


def _warn_of_leaks(parts: Mapping[str, Sequence[Row]], folder: pathlib.Path) -> None:
    """Says which images of equal bytes stand in several of the source's splits."""
    rows = [(split, row) for split, lines in parts.items() for row in lines]
    first: dict[str, tuple[str, str]] = {}
    leaks: dict[str, str] = {}
    for (split, row), key in zip(
        rows, _content_keys([row for _, row in rows], folder), strict=True
    ):
        there, name = first.setdefault(key, (split, row.name))
        if there != split:
            leaks[key] = f"{name} ({there}) = {row.name} ({split})"
    if leaks:
        shown = ", ".join(list(leaks.values())[:NUM_SHOWN])
        images = phrases.count(len(leaks), "images")
        say.warning(f"in several splits of the source: {images}: {shown}")
