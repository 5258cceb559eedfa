"""Makes big_vision importable from the checkout that BIG_VISION_DIR names."""

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator

import flax.training.checkpoints  # noqa: F401, looks for tensorflow itself: not for what stands in


@contextlib.contextmanager
def importable() -> Iterator[None]:
    """Where tensorflow is not installed, an empty module stands in for it while modules import.

    All that big_vision's model and decoding import of it is tensorflow.io.gfile, which they never
    call here. Standard error says that it was not the real one.
    """
    if "BIG_VISION_DIR" not in os.environ:
        raise SystemExit("BIG_VISION_DIR does not name a checkout of big_vision")
    sys.path.insert(0, os.environ["BIG_VISION_DIR"])
    made = {}
    if importlib.util.find_spec("tensorflow") is None:
        print("big_vision: an empty module stands in for tensorflow.io.gfile", file=sys.stderr)
        names = ("tensorflow", "tensorflow.io", "tensorflow.io.gfile")
        made = {name: types.ModuleType(name) for name in names}
        made["tensorflow"].io = made["tensorflow.io"]
        made["tensorflow.io"].gfile = made["tensorflow.io.gfile"]
    sys.modules.update(made)
    yield
    for name in made:
        del sys.modules[name]
