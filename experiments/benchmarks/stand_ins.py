"""Makes big_vision importable: where BIG_VISION_DIR says, and without what only its imports need.

Where tensorflow or orbax is not installed, an empty module takes the place of what big_vision's
model and decoding import of them and never call here; standard error says so.
"""

import importlib.util
import os
import sys
import types

MODULES = {"tensorflow": "tensorflow.io.gfile", "orbax": "orbax.checkpoint"}


def stand_in_for(module: str) -> None:
    """Puts empty modules where `import a.b.c` looks for a, a.b and a.b.c."""
    parent = None
    for part in module.split("."):
        made = types.ModuleType(f"{parent.__name__}.{part}" if parent else part)
        sys.modules[made.__name__] = made
        if parent:
            setattr(parent, part, made)
        parent = made


if "BIG_VISION_DIR" not in os.environ:
    raise SystemExit("BIG_VISION_DIR does not name a checkout of big_vision")
sys.path.insert(0, os.environ["BIG_VISION_DIR"])
for library, module in MODULES.items():
    if importlib.util.find_spec(library) is None:
        print(f"big_vision: an empty module stands in for {module}", file=sys.stderr)
        stand_in_for(module)
