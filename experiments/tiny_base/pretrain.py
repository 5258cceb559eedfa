"""Pretrain the small base with one command, which goes on wherever it was stopped.

    python experiments/tiny_base/pretrain.py --data data/tiny_base --workdir runs/tiny_base

draws the scenes (in parts of 500), trains the vision tower alone (tower.py), makes the weights to
start from (start.py), trains the language model on embedded images, and then everything
(config.py), in WORKDIR/language and WORKDIR/all. With --ship it also writes the files that the
package brings, in 16 bits: paligemma_jax/hub/tiny_base.
"""

import argparse
import pathlib
import shutil
from collections.abc import Sequence

import config
import jax.numpy as jnp
import make_data
import start
import tower

from paligemma_jax import train
from paligemma_jax.assembly import assembly, weights
from paligemma_jax.checkpoints import npz
from paligemma_jax.console import arguments, say
from paligemma_jax.files import run_folder
from paligemma_jax.hub import addresses
from paligemma_jax.params import released_models
from paligemma_jax.settings import load

NAME = "tiny_base"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of the data")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    for stage, (steps, _) in config.STAGES.items():
        parser.add_argument(f"--{stage}", type=int, default=steps, help="steps of this stage")
    parser.add_argument("--no_evals", action="store_true", help="no losses on the way")
    for name, (_, count) in make_data.SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"scenes of {name}")
    parser.add_argument("--tower", type=int, default=tower.SCENES, help="scenes of the tower")
    parser.add_argument("--ship", type=pathlib.Path, nargs="?", const=shipped_folder())
    args = parser.parse_args(argv)

    say.show_on_stderr()
    make_data.write(args.data, args.train, args.valid)
    tower.train(args.data, args.tower, tower.PASSES)
    weights_so_far = args.data / "start.npz"
    start.write(args.data, args.data / tower.TRAINED, weights_so_far)
    for stage in config.STAGES:
        how = f"data={args.data},stage={stage},steps={vars(args)[stage]},start={weights_so_far}"
        how += ",evaluate=False" if args.no_evals else ""
        workdir = args.workdir / stage
        if not (workdir / run_folder.FINAL).exists():
            train.main(["--config", f"{start.CONFIG}:{how}", "--workdir", str(workdir)])
        weights_so_far = workdir / run_folder.FINAL
    if args.ship:
        ship(f"{start.CONFIG}:{how}", workdir, args.data, args.ship)


def shipped_folder() -> pathlib.Path:
    return addresses.find_shipped(released_models.SHIPPED[NAME].init).parent


def ship(how: str, workdir: pathlib.Path, data: pathlib.Path, out: pathlib.Path) -> None:
    """Writes weights in bfloat16, the tokenizer and the mask codec into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    model = assembly.assemble(load.load(how)).model
    trained = npz.read(workdir / run_folder.FINAL)
    params = {name: jnp.asarray(array, jnp.bfloat16) for name, array in trained.items()}
    base = released_models.SHIPPED[NAME]
    about = {"format": "paligemma_jax", "variant": {"img": base.img, "llm": base.llm}}
    about |= weights.model_metadata(model)
    npz.write(out / "weights.npz", params, metadata=about)
    shutil.copyfile(data / "tokenizer.model", out / "tokenizer.model")
    shutil.copyfile(make_data.CODEC, out / "mask_codec.npz")
    sizes = {path.name: path.stat().st_size for path in sorted(out.glob("*.*"))}
    print(f"{out}: {sizes}")


if __name__ == "__main__":
    arguments.run(main)
