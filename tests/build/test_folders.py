"""Who may import whom among the folders of build."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

BUILD = pathlib.Path(__file__).parents[2] / "paligemma_jax" / "build"
# Folder -> the other folders that it may import; "" stands for the files of build itself.
FOLDERS = {
    "process": set(),
    "": {"process"},
    "runs": {"", "process"},
    "checks": {"", "process", "runs"},
    "conversions": {"", "process"},
    "answers": {"", "process"},
}


def imported_folders(source: str) -> Iterator[tuple[str, int]]:
    """Yields (folder of build, line) of every import of a module of build."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            package, room, *folder = f"{node.module}.".split(".")[:3]
            if (package, room) == ("paligemma_jax", "build"):
                yield "".join(folder), node.lineno


def wrong_imports(folder: str, source: str) -> list[int]:
    """Returns the lines of a file in `folder` that import a folder which it may not."""
    allowed = {folder, *FOLDERS[folder]}
    return [line for other, line in imported_folders(source) if other not in allowed]


def test_every_folder_is_in_the_plan():
    found = {path.parent.name for path in BUILD.glob("*/*.py")}
    assert found == FOLDERS.keys() - {""}


def test_folders_import_only_those_below_them():
    found = []
    for path in BUILD.rglob("*.py"):
        folder = path.relative_to(BUILD).parent.name
        found += [f"{path}:{line}" for line in wrong_imports(folder, path.read_text())]
    assert not found


@pytest.mark.parametrize(
    ("folder", "source", "lines"),
    [
        ("", "from paligemma_jax.build.runs import goal", [1]),
        ("answers", "import os\nfrom paligemma_jax.build.runs import goal", [2]),
        ("runs", "from paligemma_jax.build import data\nfrom paligemma_jax.data import order", []),
        ("process", "from paligemma_jax.build import data", [1]),
    ],
)
def test_a_wrong_import_is_found(folder, source, lines):
    assert wrong_imports(folder, source) == lines
