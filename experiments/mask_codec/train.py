"""Train a mask codec of the published architecture on drawn shapes, on a CPU.

    python experiments/mask_codec/train.py --out experiments/mask_codec --steps 2500

writes codec.npz (float16, in the layout of vae-oid.npz), results.json and round-trip.png.

A VQ-VAE (arXiv:1711.00937): the decoder paints the mask as -1 and 1 and is trained by the squared
error; the gradient passes the choice of codes straight through; a commitment term keeps vectors
near their codes. Codes are moving averages of the vectors that chose them, and a code that hardly
anyone chooses becomes some vector of the batch. The first tenth of the steps runs without codes,
which then start as vectors that the encoder makes.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import shapes
from PIL import Image

from paligemma_jax.checkpoints import npz
from paligemma_jax.models import mask_codec

WIDTH, CODE_DIM = 32, 32
BATCH = 64
COMMITMENT = 0.25
DECAY = 0.99  # of the moving averages of codes
DEAD = 0.1  # vectors per step, on average, below which a code is replaced
NUM_TRAIN, NUM_TEST = 30_000, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--shapes", type=int, default=NUM_TRAIN, help="drawn to train on")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    train = shapes.draw_many(args.shapes, seed=1)
    test = shapes.draw_many(NUM_TEST, seed=2)
    print(f"{args.shapes + NUM_TEST} shapes drawn in {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    params = train_codec(train, test, steps=args.steps, lr=args.lr, seed=args.seed)
    seconds = time.monotonic() - start
    stored = {name: np.asarray(array, np.float16) for name, array in params.items()}
    npz.write(args.out / "codec.npz", stored, metadata={"format": "paligemma_jax mask codec"})
    result = evaluate(stored, test) | {"steps": args.steps, "seconds": round(seconds)}
    result["parameters"] = sum(array.size for array in stored.values())
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_pairs(stored, test[:48], args.out / "round-trip.png")
    print(json.dumps(result))


def train_codec(
    train: np.ndarray, test: np.ndarray, *, steps: int, lr: float, seed: int
) -> dict[str, jax.Array]:
    """Returns trained parameters; masks are uint8[N, 64, 64] in 0..255."""
    rng = np.random.default_rng(seed)
    params = mask_codec.init(jax.random.key(seed), width=WIDTH, code_dim=CODE_DIM)
    codes = {"sums": params.pop(mask_codec.EMBEDDING), "counts": jnp.ones(mask_codec.NUM_CODES)}
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    opt_state = optimizer.init(params)
    update = make_update(optimizer)
    for step in range(steps):
        batch = augment(train[rng.integers(len(train), size=BATCH)], rng)
        warm = step < steps // 10
        if step == steps // 10:
            codes = {**codes, "counts": jnp.zeros_like(codes["counts"])}  # all are dead: replaced
        key = jax.random.fold_in(jax.random.key(seed + 1), step)
        params, codes, opt_state, error = update(params, codes, opt_state, batch, key, warm)
        if step % 500 == 499:
            used = float((codes["counts"] > DEAD).sum())
            scores = evaluate(with_codes(params, codes), test)
            print(f"step {step + 1}: error {error:.4f} codes {used:.0f} {scores}", flush=True)
    return with_codes(params, codes)


def make_update(optimizer):
    """Returns the jitted step: (params, codes, opt_state, masks, key, warm) -> new ones, error."""

    def loss(params, embedding, masks, warm):
        vectors = mask_codec.features(params, masks)
        chosen = mask_codec.nearest_codes({mask_codec.EMBEDDING: embedding}, vectors)
        quantized = embedding[chosen].reshape(vectors.shape)
        passed = vectors + jax.lax.stop_gradient(quantized - vectors)
        painted = mask_codec.paint(params, jnp.where(warm, vectors, passed))
        error = jnp.mean((painted - (2 * masks - 1)) ** 2)
        commitment = jnp.mean((vectors - jax.lax.stop_gradient(quantized)) ** 2)
        return error + jnp.where(warm, 0.0, COMMITMENT) * commitment, (error, vectors, chosen)

    def update(params, codes, opt_state, masks, key, warm):
        masks = masks.astype(jnp.float32) / 255
        gradient = jax.grad(loss, has_aux=True)
        embedding = codes["sums"] / jnp.maximum(codes["counts"], 1e-6)[:, None]
        grads, (error, vectors, chosen) = gradient(params, embedding, masks, warm)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        vectors = vectors.reshape(-1, CODE_DIM)
        codes = move_codes(codes, vectors, chosen.reshape(-1), key)
        return optax.apply_updates(params, updates), codes, opt_state, error

    return jax.jit(update)


def move_codes(codes, vectors, chosen, key):
    """Returns moving sums and counts of the vectors that chose each code; the dead start anew."""
    is_chosen = jax.nn.one_hot(chosen, mask_codec.NUM_CODES)
    sums = DECAY * codes["sums"] + (1 - DECAY) * is_chosen.T @ vectors
    counts = DECAY * codes["counts"] + (1 - DECAY) * is_chosen.sum(axis=0)
    others = jax.random.choice(key, vectors, (mask_codec.NUM_CODES,), replace=False)
    is_dead = counts < DEAD
    return {
        "sums": jnp.where(is_dead[:, None], others, sums),
        "counts": jnp.where(is_dead, 1.0, counts),
    }


def with_codes(params, codes) -> dict[str, jax.Array]:
    embedding = codes["sums"] / jnp.maximum(codes["counts"], 1e-6)[:, None]
    return {**params, mask_codec.EMBEDDING: embedding}


def augment(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the masks, each in one of its eight orientations."""
    turned = [np.rot90(mask, rng.integers(4)) for mask in masks]
    return np.stack([mask.T if rng.integers(2) else mask for mask in turned])


@jax.jit
def round_trip(params, masks):
    return mask_codec.decode(params, mask_codec.encode(params, masks))


def evaluate(params, masks: np.ndarray) -> dict[str, float]:
    """Returns the IoU of masks with what comes back, at 64x64, where both are cut at one half."""
    parts = [round_trip(params, part / np.float32(255)) for part in np.split(masks, 10)]
    back, truth = np.concatenate(parts) > 0, masks > 127
    iou = (back & truth).sum(axis=(1, 2)) / (back | truth).sum(axis=(1, 2))
    quantiles = {"p5": np.quantile(iou, 0.05), "median": np.median(iou)}
    return {key: round(float(value), 4) for key, value in {"iou": iou.mean(), **quantiles}.items()}


def draw_pairs(params, masks: np.ndarray, path: pathlib.Path) -> None:
    """Writes truths and what comes back side by side, eight pairs in a row."""
    back = np.asarray(round_trip(params, masks / np.float32(255)) > 0) * np.uint8(255)
    pairs = np.pad(masks, ((0, 0), (2, 2), (2, 2)), constant_values=90)
    back = np.pad(back, ((0, 0), (2, 2), (2, 2)), constant_values=90)
    both = np.concatenate([pairs, back], axis=2)
    rows = [np.concatenate(list(row), axis=1) for row in both.reshape(-1, 8, *both.shape[1:])]
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


if __name__ == "__main__":
    main()
