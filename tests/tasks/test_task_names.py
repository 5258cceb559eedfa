"""The table is the only place that knows the tasks by name: no other room branches on one."""

import ast
import pathlib

import pytest

from paligemma_jax.tasks import task

PACKAGE = pathlib.Path(task.__file__).parents[1]
# Words that are a task's name too, and mean something else where they stand.
OTHER_MEANINGS = {
    ("data/objects.py", "segmentation"): "COCO's key for an outline",
    ("data/jsonl.py", "caption"): "COCO's key for a caption, and a column",
    ("importers/coco.py", "caption"): "COCO's key for a caption",
    ("importers/coco.py", "segmentation"): "COCO's key for an outline",
    ("importers/columns.py", "caption"): "a column of a table",
    ("importers/conversations.py", "caption"): "a column of a table",
    ("importers/likely_task.py", "caption"): "COCO's key for a caption, and a column",
    ("importers/mask_pairs.py", "segmentation"): "part of a folder's name",
    ("labelling/exports.py", "segmentation"): "COCO's key for an outline",
    ("labelling/page_settings.py", "json"): "how events are written",
    ("labelling/proposals.py", "segmentation"): "a row's key for an outline",
}
# The settings room knows no tasks; assembly checks the name against the table.
DEFAULTS = {("settings/schema.py", "detection"): "the default of the key task"}


def names_of_tasks(tree: ast.AST) -> set[str]:
    """Texts in a file that are a task's name, docstrings and longer texts left out."""
    names = {*task.TASKS, *task.imports()}
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return {text for text in texts if isinstance(text, str) and text in names}


def compares_a_task(node: ast.AST) -> bool:
    """Whether an expression compares something called a task with anything but None."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [node.left, *node.comparators]
    if any(isinstance(side, ast.Constant) and side.value is None for side in sides):
        return False
    called = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
    return any(name in ("task", "task_name") for name in called)


def outside() -> dict[str, ast.Module]:
    files = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {
        name: ast.parse(path.read_text())
        for name, path in files.items()
        if not name.startswith("tasks/")
    }


def test_no_other_room_holds_a_tasks_name():
    found = {(file, name) for file, tree in outside().items() for name in names_of_tasks(tree)}
    assert found == set(OTHER_MEANINGS) | set(DEFAULTS)


def test_no_other_room_compares_tasks():
    found = [
        f"{file}:{node.lineno}"
        for file, tree in outside().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and compares_a_task(node)
    ]
    # Weights say what they were trained on: the same task as that of the settings, or another.
    assert [place.partition(":")[0] for place in found] == ["assembly/weights.py"]


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("if config.task == chosen: pass", True),
        ("x = request.task in OBJECTS", True),
        ("x = task_name != other", True),
        ("x = config.task is None", False),
        ("x = chosen.name == other", False),
    ],
)
def test_a_branch_on_a_task_is_found(source, is_found):
    assert any(map(compares_a_task, ast.walk(ast.parse(source)))) == is_found


def test_a_tasks_name_is_found_in_a_table_and_not_in_a_longer_text():
    assert names_of_tasks(ast.parse("F = {'vqa': 1}\nx = 'vqa and caption'")) == {"vqa"}
