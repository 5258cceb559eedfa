"""The plan of the house, enforced: who may import whom, and which library lives where.

Reads the sources with `ast` and imports nothing of ours. A rule that stands in the way is changed
here, in the same commit, with the reason.
"""

import ast
import dataclasses
import functools
import gc
import pathlib
import sys
from collections.abc import Iterable, Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "paligemma_jax"

# Room -> the other rooms that it may import, low to high.
# At the bottom is what every room needs and what knows nothing of models: how a file is written,
# and how a message words a near miss, a count, a size.
BOTTOM = {"files", "wording"}
ROOMS: dict[str, set[str]] = {room: set() for room in BOTTOM}
ROOMS |= {room: {*BOTTOM} for room in ("settings", "params", "tasks", "console")}
ROOMS |= {
    "reports": {"params", *BOTTOM},
    "models": {"params", *BOTTOM},
    "checkpoints": {"params", *BOTTOM},
    "data": {"params", "tasks", *BOTTOM},
    "training": {"params", "tasks", "data", *BOTTOM},
    "decoding": {"params", "tasks", "data", *BOTTOM},
    "hub": {"params", "checkpoints", *BOTTOM},
    # What a notebook is shown: pages' parts and scores' names are all that it needs.
    "results": {"reports", "tasks", *BOTTOM},
}
# Room -> what else it may import, of a room that it otherwise may not: dotted names.
NARROW = {
    "training": {"models.family"},
    "decoding": {"models.family"},
    # What fine-tuning starts from: the presets name it.
    "settings": {"params.released_models"},
    # What config.json of transformers says is translated from and to dimensions.
    "checkpoints": {"models.paligemma.variants"},
    # A row that was labelled is held to the rules by which check judges it.
    "labelling": {"checks.lint", "checks.findings"},
}
ROOMS["assembly"] = set(ROOMS)
_below = set(ROOMS)
ROOMS |= dict.fromkeys(("evaluation", "export", "importers"), _below)
ROOMS |= {room: {"evaluation", *_below} for room in ("runs", "prediction")}
ROOMS["preparing"] = {"importers", "export", "runs", "evaluation", *_below}
ROOMS["labelling"] = {"importers", "evaluation", "prediction", *_below}
ROOMS["launching"] = {"console", *BOTTOM}  # starts doors as programs: it knows none of them
ROOMS["checks"] = set(ROOMS)
# Whoever comes to train meets what training needs: a door imports these, and its own room.
DOOR_ROOMS = {"console", "settings", "reports", *BOTTOM}
OWN_ROOM = {
    "__init__": {"prediction"},
    "train": {"runs"},
    "sweep": {"runs"},
    "evaluate": {"evaluation"},
    "predict": {"prediction"},
    "import_data": {"importers"},
    "convert": {"export"},
    "check": {"checks"},
    **dict.fromkeys(("__main__", "configs"), frozenset()),
    "new": {"tasks"},
    "finetune": {"preparing"},
    "fetch": {"assembly"},
    "label": {"labelling"},
    "launch": {"launching"},
    # The commands as functions: one door to all that they do, for whoever asks for all of them.
    "api": {*ROOMS} - {"prediction"},
}
DOORS = set(OWN_ROOM)

# Modules that training reaches by import: at most this many, so join what is one idea before more.
MOST_TO_TRAIN = 100

# What config files import by name is offered by the room itself.
FACADES = {"settings/__init__.py"}

# Library -> where it may be imported: rooms and files of the package; "doors" is every door.
HOMES = {
    "numpy": {*ROOMS, "doors"} - {"wording"},
    "jax": {*ROOMS, "doors"} - {*BOTTOM, "settings", "tasks", "data", "reports"},
    "ml_dtypes": {"params", "checkpoints"},
    "scipy": {"params", "models", "checkpoints", "tasks", "importers"},
    "flax": {"models"},
    "einops": {"models", "checkpoints"},
    "optax": {"training"},
    "tensorflow": {"data"},
    "ml_collections": {"settings"},
    "absl": {"settings", "doors"},
    "orbax": {"checkpoints"},
    "packaging": {"checks/environment.py"},
    "safetensors": {"checkpoints"},
    "kagglehub": {"hub"},
    "huggingface_hub": {"hub"},
    "fsspec": {"data", "hub", "files/remote.py"},
    "filelock": {"files/atomic.py"},
    "sentencepiece": {"data/tokens.py"},
    "tokenizers": {"data/tokenizer_json.py"},
    "PIL": {"data", "reports", "importers", "prediction", "labelling"},
    "pycocotools": {"tasks", "data", "importers"},  # outlines of objects, besides scores
    "yaml": {"importers"},
    "pyarrow": {"importers/arrow.py"},
    "jinja2": {"reports/page.py"},
    "av": {"prediction/video.py"},
    "tensorboardX": {"reports/run_log.py"},
    **{name: {"reports/services.py"} for name in ("wandb", "mlflow")},
    # What all doors show progress with.
    "tqdm": {"console/say.py"},
    # What a notebook may ask an answer to become.
    **{name: {"results"} for name in ("pandas", "supervision", "matplotlib")},
    # To compare a conversion with; tests and benchmarks use them too.
    "torch": {"export/parity.py"},
    "transformers": {"export/parity.py"},
}
# Slow or heavy to import, or an extra that may be missing: only where used.
LAZY = {
    "tensorflow",
    "orbax",
    "torch",
    "transformers",
    "pyarrow",
    "av",
    # Decoding knows the names of pieces, and works where no tokenizer is.
    *("sentencepiece", "tokenizers"),
    *("pandas", "supervision", "matplotlib"),
    # A quarter of a second or more each, and no door needs one before it works.
    "kagglehub",
    "scipy",
    "jinja2",
    "tensorboardX",
    *("wandb", "mlflow"),
}

# Names that would fit the result of any search or any message.
EMPTY_NAMES = {"found", "said", "told"}


@dataclasses.dataclass(frozen=True)
class Import:
    """`import module`, or `from module import name` (else name is None)."""

    module: str
    name: str | None
    line: int
    is_relative: bool
    is_in_function: bool


def imports(node: ast.AST, is_in_function: bool = False) -> Iterator[Import]:
    """Yields every import below a node, one for each name, `if TYPE_CHECKING` blocks included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, None, child.lineno, False, is_in_function)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                module, relative = child.module or "", child.level > 0
                yield Import(module, alias.name, child.lineno, relative, is_in_function)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports(child, is_in_function or is_function)


def room_of(path: str) -> str | None:
    """Returns the room of a file of the package: 'data/images.py' -> 'data', a door -> None."""
    return path.split("/")[0] if "/" in path else None


def check_imports(path: str, tree: ast.Module, modules: set[str]) -> list[str]:
    """Returns what is wrong with the imports of one file, as 'path:line: message'.

    Args:
      path: the file, relative to the package.
      tree: its parsed text.
      modules: all modules and packages of ours by dotted name: 'paligemma_jax.data.images'.
    """
    found = []
    for item in imports(tree):
        top = item.module.partition(".")[0]
        if item.is_relative:
            message = "relative import; write the full name"
        elif top == PACKAGE:
            message = _check_own(path, item, modules)
        elif top in sys.stdlib_module_names:
            message = None
        else:
            message = _check_library(path, item, top)
        if message:
            found.append(f"{path}:{item.line}: {message}")
    return found


def _check_own(path: str, item: Import, modules: set[str]) -> str | None:
    target = f"{item.module}.{item.name}" if item.name else item.module
    if target not in modules and path in FACADES:
        target = item.module
    if target not in modules:
        return f"{target} is no module: import the module it is in, and write module.name"
    if target == PACKAGE:
        return "imports the Python door"
    room, target_room = room_of(path), target.split(".")[1]
    if target_room in DOORS:
        return f"imports the door {target_room}: no room and no other door may"
    if target.partition(".")[2] in NARROW.get(room or "", ()):
        return None
    if room is not None and target_room not in {room, *ROOMS[room]}:
        return f"{room} may not import {target_room}, only {sorted(ROOMS[room]) or 'itself'}"
    if room is None and target_room not in DOOR_ROOMS | OWN_ROOM[path.removesuffix(".py")]:
        return f"{path}: a door imports {sorted(DOOR_ROOMS)} and its own room, not {target_room}"
    # The Python door must cost nothing to those who import a room alone.
    if item.is_in_function != (path == "__init__.py"):
        return f"{target}: import at module level (inside the function only in __init__.py)"
    return None


def _check_library(path: str, item: Import, library: str) -> str | None:
    if library not in HOMES:
        return f"{library} has no home: give it one in HOMES, with a reason in the commit"
    homes, room = HOMES[library], room_of(path)
    if not homes & {path, room or "doors", *map(str, pathlib.PurePath(path).parents)}:
        return f"{library} lives in {', '.join(sorted(homes)) or 'the tests'} only"
    if library in LAZY and not item.is_in_function:
        return f"{library}: import inside the function that uses it"
    if library not in LAZY and item.is_in_function:
        return f"{library}: import at module level"
    return None


def check_calls(path: str, tree: ast.Module) -> list[str]:
    """Returns calls that belong elsewhere: print, and defaults read from a config."""
    room = room_of(path)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or room is None:
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "print":
            found.append(f"{path}:{node.lineno}: prints; take a callable from the door instead")
        if isinstance(function, ast.Attribute) and room not in ("assembly", "settings"):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
            if function.attr == "get" and owner in ("c", "cfg", "config"):
                found.append(f"{path}:{node.lineno}: reads a config; take the value as argument")
    return found


def check_names(path: str, tree: ast.Module) -> list[str]:
    """Returns the names given in a file that tell how a value came about, not what it holds."""
    named = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        else:
            continue
        if name in EMPTY_NAMES:
            named.append(f"{path}:{node.lineno}: '{name}': name it for what it holds")
    return named


@functools.cache
def trees(folder: str) -> dict[str, ast.Module]:
    """Returns path relative to the folder -> parsed text, for every Python file below it."""
    files = {str(p.relative_to(ROOT / folder)): p for p in sorted((ROOT / folder).rglob("*.py"))}
    gc.disable()  # It would visit all nodes again and again: parsing then takes thrice as long.
    try:
        return {path: ast.parse(file.read_text()) for path, file in files.items()}
    finally:
        gc.enable()


def own_modules(paths: Iterable[str]) -> set[str]:
    """Returns dotted names: 'data/images.py' -> 'paligemma_jax.data.images'."""
    dotted = (path.removesuffix(".py").replace("/", ".") for path in paths)
    return {f"{PACKAGE}.{name}".removesuffix(".__init__") for name in dotted}


def test_imports_follow_the_layers_and_libraries_stay_at_home():
    files = trees(PACKAGE)
    modules = own_modules(files)
    found = [line for path, tree in files.items() for line in check_imports(path, tree, modules)]
    assert not found, "\n".join(found)


def test_rooms_below_the_doors_print_nothing_and_read_no_config():
    found = [line for path, tree in trees(PACKAGE).items() for line in check_calls(path, tree)]
    assert not found, "\n".join(found)


def test_names_tell_what_a_value_holds():
    named = [line for path, tree in trees(PACKAGE).items() for line in check_names(path, tree)]
    assert not named, "\n".join(named)


def test_every_file_is_a_door_or_stands_in_a_room():
    heads = {path.split("/")[0] for path in trees(PACKAGE)}
    assert heads <= {f"{door}.py" for door in DOORS} | set(ROOMS)
    assert not [path for path in trees(PACKAGE) if pathlib.Path(path).stem == "utils"]


def reachable(start: str) -> set[str]:
    """Returns the files that importing one of them imports, directly or through others."""
    files = trees(PACKAGE)
    path_of = {f"{PACKAGE}.{path[:-3].replace('/', '.')}": path for path in files}
    waiting, seen = [start], set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            targets = (f"{item.module}.{item.name}" for item in imports(files[path]))
            waiting += [path_of[target] for target in targets if target in path_of]
    return seen


def test_whoever_trains_meets_no_importer_and_no_writer_of_other_formats():
    met = {room_of(path) for path in reachable("train.py")}
    assert met >= {"runs", "training", "data"}
    assert not met & {"importers", "export", "checks", "prediction"}


def test_whoever_trains_meets_few_modules():
    assert len(reachable("train.py")) <= MOST_TO_TRAIN


MODULES = {PACKAGE} | {
    f"{PACKAGE}.{name}"
    for name in (
        "params",
        "params.names",
        "models",
        "models.paligemma",
        "models.paligemma.gemma",
        "assembly",
        "assembly.weights",
        "prediction",
        "prediction.predictor",
        "runs",
        "runs.whole_run",
        "train",
    )
}


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        (
            "params/a.py",
            "from paligemma_jax.models.paligemma import gemma",
            "params may not import models",
        ),
        (
            "models/a.py",
            "from paligemma_jax.assembly import weights",
            "models may not import",
        ),
        (
            "models/a.py",
            "import paligemma_jax.assembly.weights",
            "models may not import",
        ),
        (
            "decoding/a.py",
            "from paligemma_jax.models.paligemma import gemma",
            "decoding may not import models",
        ),
        ("models/a.py", "from paligemma_jax.params.names import match", "is no module"),
        ("models/a.py", "from ..params import names", "relative import"),
        ("models/a.py", "def f():\n    from paligemma_jax.params import names", "module level"),
        ("models/a.py", "from paligemma_jax import train", "imports the door train"),
        ("evaluate.py", "from paligemma_jax import train", "imports the door train"),
        ("train.py", "import paligemma_jax", "imports the Python door"),
        ("__init__.py", "from paligemma_jax.prediction import predictor", "only in __init__.py"),
        ("params/a.py", "import flax.linen as nn", "flax lives in models only"),
        ("params/a.py", "try:\n    import flax\nexcept ImportError:\n    pass", "flax lives in"),
        ("checkpoints/npz.py", "import kagglehub", "kagglehub lives in hub"),
        ("data/a.py", "import tensorflow as tf", "inside the function"),
        ("checkpoints/a.py", "import orbax.checkpoint as ocp", "inside the function"),
        ("models/a.py", "def f():\n    import jax", "jax: import at module level"),
        ("models/a.py", "class A:\n  def f(self):\n    if 1:\n      import jax", "module level"),
        ("reports/a.py", "import torch", "torch lives in export/parity.py only"),
        ("data/pipeline.py", "from tqdm import tqdm", "tqdm lives in"),
        ("data/images.py", "import cv2", "cv2 has no home"),
        ("assembly/a.py", "import configs.demo", "configs has no home"),
    ],
)
def test_a_wrong_import_is_found(path, source, message):
    (found,) = check_imports(path, ast.parse(source), MODULES)
    assert message in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/a.py", "import re\nimport jax.numpy\nfrom paligemma_jax.params import names"),
        (
            "assembly/a.py",
            "from paligemma_jax.assembly import weights\nimport paligemma_jax.models",
        ),
        (
            "train.py",
            "from absl import app\nfrom paligemma_jax.runs import whole_run",
        ),
        ("__init__.py", "def load():\n    from paligemma_jax.prediction import predictor"),
        ("data/a.py", "def f():\n    import tensorflow as tf"),
        ("importers/coco.py", "import pycocotools.coco"),
        ("hub/addresses.py", "def f():\n    import kagglehub.config"),
    ],
)
def test_a_right_import_is_left_alone(path, source):
    assert check_imports(path, ast.parse(source), MODULES) == []


def test_a_print_and_a_config_default_are_found_below_the_doors_only():
    tree = ast.parse("def f(config):\n    print(config.get('lr', 1e-5))")
    assert [line.partition(";")[0] for line in check_calls("training/a.py", tree)] == [
        "training/a.py:2: prints",
        "training/a.py:2: reads a config",
    ]
    assert check_calls("train.py", tree) == []


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "for found, x in y: pass",
        "[found for found in x]",
        "if told := f(): pass",
        "x.said = 1",
        "def f(*, said): pass",
        "lambda found: 1",
        "def told(): pass",
    ],
)
def test_a_name_that_fits_any_value_is_found_where_it_is_given(source):
    (line,) = check_names("data/a.py", ast.parse(source))
    assert line.startswith("data/a.py:1: '")


def test_a_name_that_is_used_or_written_in_a_message_is_left_alone():
    assert not check_names("data/a.py", ast.parse("found_ids = x.found + f(found=1, y='said')"))
