"""Dividing examples into train, valid and test: the same every time, and without a leak.

Examples that share a key (a patient, a video, an image, the bytes of an image) always come into the
same split. Which one is decided by a hash of the group and the seed, so neither the order of the
examples nor the machine matters.
"""

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

# What Roboflow puts into the names of its augmented copies of one photo.
ROBOFLOW_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{8,}(?=\.[^.]+$)")


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
    found = re.search(pattern, name)
    if not found:
        return name
    return found[1] if found.re.groups and found[1] is not None else found[0]


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{group}".encode("utf-8", "surrogateescape")).digest()
