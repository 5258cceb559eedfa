"""NF4 of one MLP weight of PaliGemma 3B, by this package and by Google's qwix, side by side.

    pip install qwix && python experiments/adapters/compare_qwix.py

Of each way: bytes a number as the format has them and as this device holds them, the error, and the
CPU time to decode the weight to bfloat16, for its product with 256 tokens and for that and its
gradient, the least of some runs. Blocks of qwix lie along the axis that is contracted, as its own
einsum wants them. Prints one line of JSON each; without qwix ours alone, and says so.
"""

import argparse
import importlib.util
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.models.common import projections, quantize

EQN = "BTD,DF->BTF"
REPEATS = 5
BITS = {"uint4": 4}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=(2048, 16384))
    parser.add_argument("--tokens", type=int, default=256)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=args.shape, scale=0.02), jnp.bfloat16)
    x = jnp.asarray(rng.normal(size=(1, args.tokens, args.shape[0])), jnp.bfloat16)

    ours = jax.jit(lambda w: quantize.quantize(w, "nf4", unit=w.shape))(w)
    report(
        "ours",
        w,
        x,
        ours,
        decode=lambda held: held.astype(jnp.bfloat16),
        multiply=lambda x, held: projections.project({"w": held}, EQN, x),
    )
    if importlib.util.find_spec("qwix") is None:
        print("qwix is not installed: ours alone")
        return
    import qwix

    for dtype in (jnp.float32, jnp.bfloat16):
        blocks = {"channelwise_axes": (1,), "tiled_axes": {0: quantize.BLOCK}}
        make = jax.jit(lambda w, d=dtype, b=blocks: qwix.quantize(w.astype(d), "nf4", **b))
        report(
            f"qwix, scales in {dtype.__name__}",
            w,
            x,
            make(w),
            decode=lambda held: qwix.dequantize(held).astype(jnp.bfloat16),
            multiply=lambda x, held: qwix.einsum(EQN, x, held).astype(x.dtype),
        )


def report(name, w, x, held, *, decode, multiply):
    """Prints what one way takes."""

    def step(x, held):
        return jax.grad(lambda x: jnp.sum(multiply(x, held).astype(jnp.float32) ** 2))(x)

    wide = w.astype(jnp.float32)
    error = jnp.linalg.norm(decode(held).astype(jnp.float32) - wide) / jnp.linalg.norm(wide)
    parts = jax.tree.leaves(held)
    bits = sum(part.size * BITS.get(part.dtype.name, 8 * part.dtype.itemsize) for part in parts)
    held_bytes = sum(part.on_device_size_in_bytes() for part in parts)
    row = {
        "name": name,
        "bytes_per_number": round(bits / 8 / w.size, 4),
        "bytes_per_number_on_this_device": round(held_bytes / w.size, 4),
        "relative_error": round(float(error), 5),
        "decode_ms": timed(jax.jit(decode), held),
        "product_ms": timed(jax.jit(multiply), x, held),
        "product_and_gradient_ms": timed(jax.jit(step), x, held),
    }
    print(json.dumps(row), flush=True)


def timed(run, *args):
    """Returns the least CPU time of some runs after the first, in ms."""
    jax.block_until_ready(run(*args))
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        jax.block_until_ready(run(*args))
        found.append(time.process_time() - start)
    return round(1000 * min(found), 1)


if __name__ == "__main__":
    main()
