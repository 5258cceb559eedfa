"""Our attention beside `jax.nn.dot_product_attention(implementation="xla")`, time and memory.

    python experiments/benchmarks/attention_time.py

float32; shapes of both towers of `MID` in work.py at batch 8, and of PaliGemma 1 3B at batch 2,
both at 224 px, the language model's with its mask. The two take turns in one process; a quotient
is that of neighbouring times that the process computed. Prints a table.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import report

from paligemma_jax.console import process, say
from paligemma_jax.models.common import attention
from paligemma_jax.wording import phrases

# B, T, N, K, H, and whether there is a mask.
SHAPES = {
    "vision, mid": (8, 256, 6, 6, 64, False),
    "language, mid": (8, 280, 8, 1, 64, True),
    "vision, 3B": (2, 256, 16, 16, 72, False),
    "language, 3B": (2, 384, 8, 1, 256, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    process.keep_freed_memory()
    rows = [
        row
        for name, shape in SHAPES.items()
        for row in (
            compare_attention(f"{name}, forwards", shape, forwards, args.rounds),
            compare_attention(f"{name}, and backwards", shape, backwards, args.rounds),
        )
    ]
    header = ("what", "ours", "jax.nn", "jax.nn / ours (quartiles)", "memory", "jax.nn / ours")
    print(f"{report.cpu()}\n\n{say.table(rows, header=header)}")


def forwards(attend, mask):
    return lambda *qkv: attend(*qkv, mask)


def backwards(attend, mask):
    return jax.grad(lambda *qkv: jnp.sum(attend(*qkv, mask) ** 2), (0, 1, 2))


def fused(q, k, v, mask):
    return attention.attend_fused(q, k, v, mask, implementation="xla")


def compare_attention(name: str, shape, make, rounds: int) -> tuple[str, ...]:
    """Returns a row of the table."""
    *qkv, mask = make_inputs(*shape)
    sides = (attention.attend, fused)
    programs = [jax.jit(make(attend, mask)).lower(*qkv).compile() for attend in sides]
    seconds = [[run(program, qkv) for program in programs] for _ in range(rounds + 2)][2:]
    ours, theirs = zip(*seconds, strict=True)
    quotients = np.array(theirs) / ours
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs]
    low, high = np.percentile(quotients, (25, 75))
    return (
        name,
        f"{1000 * statistics.median(ours):.1f} ms",
        f"{1000 * statistics.median(theirs):.1f} ms",
        f"{np.median(quotients):.2f} ({low:.2f} to {high:.2f})",
        phrases.size(memory[0]),
        f"{memory[1] / memory[0]:.2f}",
    )


def make_inputs(B: int, T: int, N: int, K: int, H: int, masked: bool):
    """Returns queries, keys, values and the mask of a prompt and an answer of 8."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, T, N, H)) * H**-0.5
    k, v = rng.normal(size=(2, B, K, T, H))
    mask_ar = np.broadcast_to(np.arange(T) >= T - 8, (B, T))
    mask = attention.make_mask(jnp.ones((B, T), bool), jnp.asarray(mask_ar)) if masked else None
    return *(jnp.asarray(x, jnp.float32) for x in (q, k, v)), mask


def run(program, qkv) -> float:
    start = time.process_time()
    jax.block_until_ready(program(*qkv))
    return time.process_time() - start


if __name__ == "__main__":
    main()
