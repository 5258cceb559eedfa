"""Write random weights of a released model's size, in its names and types, as one npz file.

    python experiments/real_size/make_weights.py --out data/real_size/random.npz

5.8 GB for PaliGemma 1 3B in float16. Norm scales and biases are as at initialization, matrices are
normal with the variance of their fan-in, so that activations have the size they have in training.
"""

import argparse
import functools
import math
import pathlib
import sys
import time

import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import lazy_array, npz
from paligemma_jax.models.paligemma import paligemma, variants

TINY = "tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        default="paligemma1-3b",
        choices=(*variants.RELEASED, TINY),
        help=f"{TINY}: a few million numbers, to try it out",
    )
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def report(done: int, total: int) -> None:
        seconds = time.monotonic() - start
        sys.stderr.write(f"\r{done / 1e9:.2f} of {total / 1e9:.2f} GB, {seconds:.0f} s ")

    params = make(args.model, args.res, jnp.dtype(args.dtype), args.seed)
    npz.write(args.out, params, metadata={"random": True, "seed": args.seed}, progress=report)
    sys.stderr.write("\n")


def make(model: str, res: int, dtype: np.dtype, seed: int) -> dict[str, lazy_array.Deferred]:
    """Returns arrays that are drawn when they are written, one at a time."""
    params = {}
    tiny = model == TINY
    sizes = variants.make("tiny/14", "tiny", res=res) if tiny else variants.released(model, res=res)
    for number, (name, leaf) in enumerate(paligemma.shapes(sizes).items(), start=1):
        drawn = functools.partial(draw, (seed, number), name, leaf.shape, dtype)
        params[name] = lazy_array.Deferred(leaf.shape, dtype, drawn)
    return params


def draw(seed: tuple[int, int], name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Returns one random array; a layer at a time, so that float32 copies stay small."""
    rng = np.random.default_rng(seed)
    leaf = name.rpartition("/")[2]
    if leaf == "bias" or (leaf == "scale" and name.startswith("llm/")):
        return np.zeros(shape, dtype)
    if leaf == "scale":
        return np.ones(shape, dtype)
    std = 1 / math.sqrt(fan_in(name, shape))
    array = np.empty(shape, dtype)
    for part in np.array_split(array.reshape(-1), max(1, array.size >> 24)):
        part[:] = (std * rng.standard_normal(part.shape, np.float32)).astype(dtype)
    return array


def fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Returns how many inputs a matrix sums over."""
    if name.endswith(("attn_vec_einsum/w", "out/kernel")):
        return shape[1] * shape[2]
    if name.endswith(("q_einsum/w", "kv_einsum/w", "gating_einsum")):
        return shape[-2]
    if name.endswith("embedding/kernel"):
        return math.prod(shape[:-1])
    if name.endswith(("input_embedding", "pos_embedding")):
        return shape[-1]
    return shape[1] if len(shape) > 2 else shape[0]


if __name__ == "__main__":
    main()
