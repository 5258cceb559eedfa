"""Makes moondream/published_shapes.json: names and shapes of the authors' tensors, by revision.

    python tests/reference/make_moondream_shapes.py 2024-04-02=DIR ...    # transformers 4.40

DIR is a checkout of github.com/vikhyat/moondream at that revision's release: 8fa2f2c, 3f7e3cb (of
2024-05-20), 211cc2f (of 2024-08-26). Modules are made at full size on torch's meta device. A number
of a layer is written {}, and how many layers there are stands behind the shape.
"""

import json
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
LAYER = re.compile(r"[.](blocks|h)[.]\d+[.]")
MAKE = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from moondream.configuration_moondream import MoondreamConfig
from moondream.moondream import Moondream
with torch.device("meta"):
    model = Moondream(MoondreamConfig())
print(json.dumps({name: list(x.shape) for name, x in model.state_dict().items()}))
"""


def read(folder: str) -> dict[str, list]:
    command = [sys.executable, "-c", MAKE, folder]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    tensors: dict[str, list] = {}
    for name, shape in json.loads(run.stdout.splitlines()[-1]).items():
        entry = tensors.setdefault(LAYER.sub(r".\1.{}.", name), [shape, 0])
        assert entry[0] == shape
        entry[1] += 1
    return tensors


if __name__ == "__main__":
    pairs = [argument.split("=", 1) for argument in sys.argv[1:]]
    made = {revision: read(folder) for revision, folder in pairs}
    lines = ",\n".join(
        f'"{revision}": {{\n'
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(x)}" for name, x in tensors.items())
        + "\n}"
        for revision, tensors in made.items()
    )
    (HERE / "moondream" / "published_shapes.json").write_text(f"{{\n{lines}\n}}\n")
