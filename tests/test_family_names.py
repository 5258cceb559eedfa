"""Outside its folder nothing names PaliGemma, its towers or its parameters: rooms serve families.

Reads the code with `ast`: names, and text that is not a docstring. Comments and docstrings may give
examples.
"""

import ast
import pathlib
import re
from collections.abc import Iterator

PACKAGE = pathlib.Path(__file__).parents[1] / "paligemma_jax"
NAMED = re.compile(r"paligemma(?![-_]jax)|(?<!pali)gemma|siglip|(?<!\w)(llm|img)/", re.IGNORECASE)
EXCEPTIONS = {
    "models/paligemma/": "the family itself",
    "models/moondream/": "the second one, whose image part is called img too",
    "assembly/model_functions.py": "the table of families",
    "settings/": "presets, and the defaults of keys",
    "checkpoints/moondream_names.py": "a table of names",
    "checkpoints/huggingface": "tables of names, and config.json of transformers",
    "checkpoints/peft.py": "what PEFT calls the same weights",
    "export/": "writes the formats of PaliGemma that others read",
    "hub/addresses.py": "a variable of the environment that big_vision reads",
    "params/released_models.py": "the table of released models, and of their files",
    "data/tokens.py": "reads the sentencepiece files of Gemma",
    "data/noise_boxes.py": "advises a piece of Gemma's vocabulary",
    "__main__.py": "what the program is for",
    "new.py": "help on --model, a released one",
    "preparing/model_search.py": "which released model weights are, to write a config for them",
    "convert.py": "help on --variant, of PaliGemma's other formats",
}


def named(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields (line, what is named) of a file."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        words = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = [] if id(node) in docstrings else [node.value]
        elif isinstance(node, ast.Name):
            words = [node.id]
        elif isinstance(node, ast.Attribute):
            words = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            words = [node.module or "", *(alias.name for alias in node.names)]
        for word in words:
            if match := NAMED.search(word):
                yield node.lineno, f"{match[0]!r} in {word[:60]!r}"


def test_rooms_name_no_family():
    found = [
        f"{path}:{line}: {what}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if not (path := str(file.relative_to(PACKAGE))).startswith(tuple(EXCEPTIONS))
        for line, what in named(ast.parse(file.read_text()))
    ]
    assert not found, "\n".join(found)


def test_a_name_in_code_is_found_and_one_in_a_docstring_is_not():
    source = (
        '"""As llm/layers."""\nfrom a.paligemma import gemma\nx = "img/head"\ny = paligemma_jax'
    )
    assert [line for line, _ in named(ast.parse(source))] == [2, 2, 3]
