"""Files and functions stay short enough to be read at one go, or say why not."""

import ast
import pathlib

from paligemma_jax.settings import load

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("paligemma_jax", "configs", "experiments", "tests")
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 50
# "file" or "file::function" that is longer -> why it is one thing.
LONG = {}


def too_long(path: str, source: str) -> dict[str, int]:
    """Returns 'path' and 'path::function' -> number of lines, for what is over the limits.

    A function's docstring does not count: it may take the room that a shape or a mask needs.
    """
    found = {path: len(source.splitlines())}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            found[f"{path}::{node.name}"] = lines
    limits = {name: MAX_FUNCTION_LINES if "::" in name else MAX_FILE_LINES for name in found}
    return {name: lines for name, lines in found.items() if lines > limits[name]}


def test_files_and_functions_are_short_unless_a_reason_is_given():
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT / folder).with_suffix("").as_posix()
            if folder == "configs" and name not in load.SHIPPED:
                continue  # a user's own
            found |= too_long(path.relative_to(ROOT).as_posix(), path.read_text())
    unexplained = {name: lines for name, lines in found.items() if name not in LONG}
    assert not unexplained, f"split, or give the reason in LONG: {unexplained}"
    assert not LONG.keys() - found.keys(), "no longer long: remove the reason"


def test_a_long_file_and_a_long_function_are_found():
    body = "    x = 1\n" * 49
    assert too_long("a.py", "def f():\n" + body) == {}
    assert too_long("a.py", "def f():\n" + body + "    y = 1\n") == {"a.py::f": 51}
    assert too_long("a.py", 'def f():\n    """One.\n\n    Two."""\n' + body) == {}
    assert too_long("a.py", "x = 1\n" * 451) == {"a.py": 451}
