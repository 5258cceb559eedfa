"""Check a run before it costs anything: machine, keys, data, settings, one example explained.

    python -m paligemma_jax.check --config configs/fracture_224.py --out runs/check
    python -m paligemma_jax.check --config configs/fracture_224.py --full --example 12
    python -m paligemma_jax.check --config configs/fracture_224.py --augment sheet.png
    python -m paligemma_jax.check --config configs/fracture_224.py --device h100x8
    python -m paligemma_jax.check --config configs/fracture_224.py --device all
    python -m paligemma_jax.check

Loads no weights. Without --config it looks at the machine only. --out writes check.html, which
opens without network, and check.json; --augment draws what the config's augmentation does to its
first examples, if no errors were found. --device plans the run, data aside, for a machine that is
not here: memory, a step's time, what would make it fit; by the machine's own compiler where that is
installed (extras tpu and cuda12; PALIGEMMA_JAX_COMPILER_PYTHON names the Python of another
environment), else from shapes. Exit status: 0 nothing that must be mended, 1 errors were
found, 2 it could not check. Settings can be changed: --config.input.text_len=64.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from paligemma_jax.checks import checking
from paligemma_jax.console import arguments, say
from paligemma_jax.settings import schema
from paligemma_jax.wording import phrases

# Another program may be training on this GPU: take no more of its memory than is used.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    report = checking.check(
        checking.CheckOptions(**vars(args), config_overrides=overrides["config"])
    )
    encoding = sys.stdout.encoding or "utf-8"  # a terminal may lack the letters of a piece
    shown = phrases.visible(checking.to_text(report))
    text = shown.encode(encoding, "replace").decode(encoding)
    with say.results():
        sys.stdout.write(f"{text}\n")
    if report.num_errors:
        sys.exit(1)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a Python file")
    parser.add_argument("--out", metavar="FOLDER", help="write check.html and check.json there")
    parser.add_argument("--full", action="store_true", help="decode every image")
    parser.add_argument("--augment", metavar="FILE", help="draw what augmentation does, as PNG")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="plan for this machine: t4, h100x8, tpu-v5e-64, ...; all: for all that are known",
    )
    parser.add_argument(
        "--example",
        type=int,
        metavar="LINE",
        help="of the first training set; default: has an answer",
    )
    return arguments.parse(parser, argv, groups={"config": schema.names()})


if __name__ == "__main__":
    arguments.run(main)
