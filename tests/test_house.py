"""docs/house.md tells where things are: its table of rooms, and its answers, follow the code."""

import ast
import pathlib
import re
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_layers as layers

PAGE = (layers.ROOT / "docs" / "house.md").read_text()
QUESTIONS = (
    *("the loss", "the learning-rate multiplier", "the LoRA scale", "when evaluations run"),
    *("what is saved when", "`<loc>` written", "a flag declared", "Hugging Face names mapped"),
    *("early stopping decided", "`final.npz` written", "a label kept, and taken back"),
)
TEST = re.compile(r"\btests/[\w/]+\.py\b")
ALL_BELOW = "assembly"  # a room that imports this one may import all above it


def section(title: str) -> list[list[str]]:
    """Returns the cells of the rows of the table in a section of the page."""
    text = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def imports_of(room: str) -> str:
    """Returns what a room may import beside `layers.BOTTOM`, in words."""
    rooms, order = layers.ROOMS[room] - layers.BOTTOM, list(layers.ROOMS)
    below = set(order[: order.index(ALL_BELOW)]) - layers.BOTTOM
    if rooms >= set(order) - {room} - layers.BOTTOM:
        return "all rooms"
    named = [name for name in order if name in rooms - (below if below <= rooms else set())]
    named += sorted(f"`{name}`" for name in layers.NARROW.get(room, ()))
    if below <= rooms:
        named = [
            f"{ALL_BELOW} and all above it" if ALL_BELOW in named else f"all above {ALL_BELOW}"
        ] + [name for name in named if name != ALL_BELOW]
    return ", ".join(named) or "nothing more"


def defined(tree: ast.Module) -> set[str]:
    """Returns the names of functions and classes of a file, methods and fields as Class.name."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                names.add(f"{node.name}.{inner.name}")
            elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                names.add(f"{node.name}.{inner.target.id}")
    return names


def test_every_room_is_in_the_table_with_what_it_may_import():
    rows = {row[0].strip("`/"): row[-1] for row in section("The rooms, low to high")}
    assert rows == {room: imports_of(room) for room in layers.ROOMS}


def test_the_table_of_rooms_says_what_each_room_says_of_itself():
    trees = layers.trees(layers.PACKAGE)
    for name, holds, _ in section("The rooms, low to high"):
        first = ast.get_docstring(trees[f"{name.strip('`/')}/__init__.py"]).splitlines()[0]
        assert holds == first.rstrip("."), name


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_place_that_the_page_names_is_there(question):
    ((_, *places),) = [row for row in section("Where is ...") if row[0] == question]
    trees = layers.trees(layers.PACKAGE)
    answers = re.findall(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", places[0])
    assert answers
    for path, names in answers:
        assert set(re.findall(r"`([\w.]+)`", names)) <= defined(trees[path]), path


def test_pages_of_experiments_name_tests_that_are_there():
    pages = sorted((layers.ROOT / "experiments").rglob("*.md"))
    named = {(page, name) for page in pages for name in TEST.findall(page.read_text())}
    assert named
    missing = [f"{page}: {name}" for page, name in named if not (layers.ROOT / name).exists()]
    assert not missing, "\n".join(missing)
