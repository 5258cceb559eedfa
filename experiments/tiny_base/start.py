"""Make the weights that pretraining starts from: the tower's own, random ones, and <loc> pieces.

    python experiments/tiny_base/start.py --data data/tiny_base --out data/tiny_base/start.npz

A <loc> piece names a number, so its row of the embedding starts as sines of that number, from a
quarter of a wave to 128 waves over the side of a picture, and a part that all of them share.
Neighbours start out alike: what is learnt of one place serves for those beside it. The vision tower
is the one that `tower.py` trained.
"""

import argparse
import pathlib

import jax
import numpy as np
import tower

from paligemma_jax.assembly import assembly
from paligemma_jax.checkpoints import npz
from paligemma_jax.settings import load

CONFIG = pathlib.Path(__file__).with_name("config.py")
EMBEDDING = "llm/embedder/input_embedding"
WAVES = (0.25, 128.0)  # over the side of a picture
SHARED = 0.6  # of a row's length, what all <loc> pieces have in common


def loc_rows(width: int, *, count: int = 1024, seed: int = 0) -> np.ndarray:
    """Returns float32[count, width], rows of length 1."""
    rng = np.random.default_rng(seed)
    waves = np.geomspace(*WAVES, width // 2)
    angles = 2 * np.pi * np.linspace(0, 1, count)[:, None] * waves
    own = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # Turned at random, so that no column is a wave of its own.
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    own = own[:, : width // 2 * 2] @ turn[: width // 2 * 2] / np.sqrt(width // 2)
    shared = rng.normal(size=width)
    shared /= np.linalg.norm(shared)
    rows = SHARED * shared + np.sqrt(1 - SHARED**2) * own
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write(data: pathlib.Path, trained: pathlib.Path, out: pathlib.Path, seed: int = 0) -> int:
    """Writes the weights, unless they are there; returns how many parameters they are."""
    built = assembly.assemble(load.load(f"{CONFIG}:data={data}"))
    shapes = built.model.shapes()
    if not out.exists():
        made = jax.jit(built.model.init)(jax.random.key(seed))
        params = {name: np.array(made[name]) for name in shapes}
        params |= npz.read(trained)
        ids = built.tokenizer.loc_ids
        params[EMBEDDING][ids.start : ids.stop] = loc_rows(params[EMBEDDING].shape[1], seed=seed)
        npz.write(out, params, metadata={"format": "paligemma_jax"})
    return sum(shape.size for shape in shapes.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--tower", type=pathlib.Path, help="default: tower.npz beside the data")
    args = parser.parse_args()
    count = write(args.data, args.tower or args.data / tower.TRAINED, args.out)
    print(f"{args.out}: {count:,} parameters")


if __name__ == "__main__":
    main()
