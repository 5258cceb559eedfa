"""Writes what all sides of `compare` read: weights in both formats, and a batch.

A process of its own, so that the device is free again when the sides start.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import work

from paligemma_jax.checkpoints import huggingface, huggingface_files, npz, partial_weights
from paligemma_jax.models.paligemma import paligemma

WEIGHTS, HUGGINGFACE, BATCH, WORK = "weights.npz", "hf", "batch.npz", "work.json"


def main() -> None:
    folder, told = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    size = work.SIZES[told["size"]]
    folder.mkdir(parents=True, exist_ok=True)
    write_batch(folder, size, rows=told["rows"], seed=told["seed"])
    write_weights(folder, size, seed=told["seed"])
    described = {"model": dataclasses.asdict(size.model), "dtype": size.dtype}
    described |= {"new_tokens": size.new_tokens, "lora_rank": work.LORA.rank, "lr": 1e-3}
    # Last: where it is, the others are whole.
    (folder / WORK).write_text(json.dumps(told | described))


def write_batch(folder: pathlib.Path, size: work.Size, *, rows: int, seed: int) -> None:
    """Writes images, text and which tokens of it are learnt, [rows, ...]."""
    rng = np.random.default_rng(seed)
    model, length = size.model, size.prompt_len + size.supervised
    np.savez(
        folder / BATCH,
        image=rng.integers(0, 256, (rows, model.res, model.res, 3), dtype=np.uint8),
        text=rng.integers(3, model.vocab_size, (rows, length + 1), dtype=np.int32),
        learnt=np.broadcast_to(np.arange(length + 1) > size.prompt_len, (rows, length + 1)),
    )


def write_weights(folder: pathlib.Path, size: work.Size, *, seed: int) -> None:
    """Writes random weights as our file, and as a folder that transformers reads."""

    @functools.partial(jax.jit, static_argnums=1)
    def make(key: jax.Array, model: Any) -> dict[str, jax.Array]:
        return {k: x.astype(size.dtype) for k, x in paligemma.init(key, model).items()}

    npz.write(folder / WEIGHTS, make(jax.random.key(seed), size.model))
    stored = partial_weights.find(folder / WEIGHTS, base=None, fetch=pathlib.Path)
    (folder / HUGGINGFACE).mkdir(exist_ok=True)
    huggingface.write(stored, folder / HUGGINGFACE, huggingface.plan(stored.arrays))
    config = huggingface_files.config(size.model, dtype=jnp.dtype(size.dtype))
    (folder / HUGGINGFACE / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
