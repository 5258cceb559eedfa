"""Seconds of work and temporary memory of a step by what its backward pass keeps.

    python experiments/benchmarks/remat_time.py --cached
    python experiments/benchmarks/remat_time.py --trainable '.*' --optimizer scale_by_adam

Of a model of work.py (--size), batch 8, 16 prompt and 8 supervised tokens, float32. The policies
take turns in one process; a quotient is that of neighbouring times. What is counted is the time
that the process computed, so that other work on its core matters less; quotients are of the first
policy. --cached gives image embeddings in place of images. Prints a table.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import report
import work

from paligemma_jax.console import process, say
from paligemma_jax.models import family
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import names
from paligemma_jax.runs import memory_plan
from paligemma_jax.training import optimizer, step
from paligemma_jax.wording import phrases

POLICIES = ("nothing_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable")
SIZES = ("tiny", "mid")
BATCH_SIZE, PROMPT_LEN, SUPERVISED = 8, 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="mid", choices=SIZES, help="of the model")
    parser.add_argument("--trainable", default="llm/layers/attn/.*", help="regex on names")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--cached", action="store_true", help="image embeddings, no images")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    process.keep_freed_memory()
    batch = make_batch(work.SIZES[args.size].model, cached=args.cached)
    steps = {policy: make_step(policy, args, batch) for policy in args.policies}
    seconds = {policy: [] for policy in args.policies}
    for number in range(args.rounds + 1):
        for policy, (update, *_) in steps.items():
            start = time.process_time()
            update()
            if number:  # the first round warms up
                seconds[policy].append(time.process_time() - start)
    rows = []
    for policy, found in seconds.items():
        quotients = np.array(found) / seconds[args.policies[0]]
        low, high = np.percentile(quotients, (25, 75))
        rows.append(
            (
                policy,
                f"{statistics.median(found):.2f} s",
                f"{np.median(quotients):.3f} ({low:.3f} to {high:.3f})",
                phrases.size(steps[policy][1]),
            )
        )
    header = ("the backward pass keeps", "a step", "quotient (quartiles)", "temporary memory")
    print(f"{report.cpu()}\n\n{say.table(rows, header=header)}")


def make_batch(model: variants.PaliGemma, *, cached: bool) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    length = PROMPT_LEN + SUPERVISED + 1
    learnt = jnp.broadcast_to(jnp.arange(length) > PROMPT_LEN, (BATCH_SIZE, length))
    text = rng.integers(3, model.vocab_size, learnt.shape, dtype=np.int32)
    masks = {"mask_ar": learnt, "mask_loss": learnt, "mask_input": jnp.ones_like(learnt)}
    batch = {"text": jnp.asarray(text), **masks, "mask_image": jnp.ones((BATCH_SIZE, 1), bool)}
    if cached:
        shape = (BATCH_SIZE, 1, model.num_image_tokens, model.llm.width)
        return {
            **batch,
            family.IMAGE_TOKENS: jnp.asarray(rng.normal(size=shape), jnp.float32),
        }
    pixels = rng.integers(0, 256, (BATCH_SIZE, 1, model.res, model.res, 3), dtype=np.uint8)
    return {**batch, "image": jnp.asarray(pixels)}


def make_step(policy: str, args: argparse.Namespace, batch: dict[str, jax.Array]):
    """Returns (a function that does one update, its temporary bytes, those of trained arrays)."""
    model = work.SIZES[args.size].model
    params = paligemma.init(jax.random.key(0), model)
    compute = family.Compute(remat=policy)
    functions = as_family.Model(model).functions(compute, cache_dtype="float32")
    rest = [] if args.trainable == ".*" else [(".*", None)]
    tx = optimizer.make_optimizer(
        params,
        schedule=[(args.trainable, {"decay_type": "cosine"}), *rest],
        total_steps=1000,
        optax_name=args.optimizer,
        lr=1e-3,
    ).tx
    state = step.init_state(params, names.select(args.trainable, params, what="--trainable"), tx)
    train_step = step.make_train_step(functions.apply, functions.logits, tx, seed=0)
    compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch).compile()

    def update() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return update, memory_plan.temporary_bytes(compiled), memory_plan.bytes_of(state.trainable)


if __name__ == "__main__":
    main()
