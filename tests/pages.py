"""The pages of the repository, and the commands that stand in them."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = r"(?:python -m paligemma_jax\.|\bpaligemma-jax )([a-z_]+)\b(?![.-])([^\n`]*)"


def names() -> list[str]:
    """Returns the pages, relative to the repository: the README, and those of its folders."""
    found = [ROOT / "README.md"]
    for folder in ("docs", "experiments", "third_party", "notebooks"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def commands(name: str) -> list[list[str]]:
    """Returns the commands of a page, as [door, word, ...], in their order.

    Left out are those that need what the page does not hold: a variable of a shell, `...`.
    """
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = []
    for door, rest in re.findall(COMMAND, text):
        before = re.split(r" [|>] |; \[", rest)[0]
        if before.count('"') % 2:
            before = before.rstrip('"')  # the last word of a command within quotes
        words = shlex.split(before, comments=True)
        if words and not any("$" in word or word == "..." for word in words):
            found.append([door, *words])
    return found
