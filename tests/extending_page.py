"""The examples of docs/extending.md, for the tests that run them."""

import pathlib
import re
import textwrap
import types

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending.md").read_text()


def run_example(title: str) -> types.ModuleType:
    """Returns the names that the Python blocks of a section of the page define."""
    (section,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    module = types.ModuleType("example")
    for block in re.findall(r"^ *```python\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL):
        exec(textwrap.dedent(block), module.__dict__)
    return module
