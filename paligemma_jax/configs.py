"""List the configs that come with the package, or copy one to change it.

    paligemma-jax configs
    paligemma-jax configs fracture_224
    paligemma-jax configs fracture_224 configs/mine.py

Every command takes such a name in place of a file: --config fracture_224:res=448.
"""

import argparse
import ast
import pathlib
from collections.abc import Sequence

from paligemma_jax.console import arguments, say
from paligemma_jax.settings import load, template


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    shipped = load.shipped_configs()
    if args.name is None:
        say.result("\n".join(f"{name:28}{_title(file)}" for name, file in shipped.items()) + "\n")
        return
    source = load.find(args.name)
    target = args.target or pathlib.Path(source.name)
    template.save(target, source.read_text("utf-8"))
    say.info(f"{target}: change it, and give it as --config {target}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the one to copy")
    parser.add_argument(
        "target", metavar="FILE", nargs="?", type=pathlib.Path, help="default: NAME.py"
    )
    return parser.parse_args(argv)


def _title(file: pathlib.Path) -> str:
    """Returns the first line of a config's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    arguments.run(main)
