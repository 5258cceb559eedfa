"""Time, peak memory and MFU of the training step on random weights of a released model's size.

    python experiments/benchmarks/step_time.py --model paligemma2-3b --batch_size 8
    python experiments/benchmarks/step_time.py --trainable '.*' --optimizer scale_by_adam

Needs no data, no TensorFlow and no downloads. Prints one line of JSON.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.models import paligemma
from paligemma_jax.params import names, variants
from paligemma_jax.training import flops, optimizer, step

INPUTS = ("image", "mask_image", "text", "mask_ar", "mask_input")


def main() -> None:
    args = parse_args()
    model = make_model(args.model, args.res)
    shapes = paligemma.shapes(model)
    trainable = names.select(args.trainable, shapes, what="--trainable")
    params = random_params(shapes, trainable, frozen_dtype=args.frozen_dtype)
    rest = [] if len(trainable) == len(shapes) else [(".*", None)]
    made = optimizer.make_optimizer(
        shapes,
        schedule=[(args.trainable, {"decay_type": "cosine"}), *rest],
        total_steps=1000,
        optax_name=args.optimizer,
        lr=1e-5,
    )
    compute = paligemma.Compute(dtype=args.dtype, remat=args.remat)

    def apply(params, batch, rng=None):
        arrays = [batch[name] for name in INPUTS]
        return paligemma.apply(params, *arrays, model=model, compute=compute, rng=rng)

    train_step = jax.jit(
        step.make_train_step(
            apply,
            functools.partial(paligemma.logits, model=model),
            made.tx,
            seed=0,
            accumulation_steps=args.accumulation_steps,
        ),
        donate_argnums=0,
    )
    state = step.init_state(params, trainable, made.tx)
    del params
    batch = random_batch(model, args.batch_size, args.text_len, args.supervised)
    start = time.perf_counter()
    compiled = train_step.lower(state, batch).compile()
    compile_s = time.perf_counter() - start
    seconds, state, loss = measure(compiled, state, batch, args.steps)
    work = flops.count(model, shapes, text_len=args.text_len, trainable=set(trainable)).of_step(
        batch_size=args.batch_size, supervised=args.supervised
    )
    print(json.dumps(report(args, seconds, compile_s, work, loss, compiled)), flush=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="paligemma2-3b", help="released model, or 'tiny'")
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--text_len", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=32, help="supervised tokens per example")
    parser.add_argument("--trainable", default="llm/layers/attn/.*", help="regex on names")
    parser.add_argument("--optimizer", default="sgd")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--frozen_dtype", default="bfloat16")
    parser.add_argument("--remat", default="nothing_saveable")
    parser.add_argument("--accumulation_steps", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def make_model(name: str, res: int) -> variants.PaliGemma:
    if name == "tiny":
        return variants.make("tiny/14", "tiny", res=res, vocab_size=2048)
    return variants.released(name, res=res, final_logits_softcap=0.0)


def random_params(shapes, trainable, *, frozen_dtype: str) -> dict[str, jax.Array]:
    """Returns small random weights, made on the device: trainable float32, the rest 16 bit."""
    trainable = set(trainable)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def make(key, shape, dtype):
        return (0.02 * jax.random.normal(key, shape, jnp.bfloat16)).astype(dtype)

    return {
        name: make(
            jax.random.key(number), shape.shape, "float32" if name in trainable else frozen_dtype
        )
        for number, (name, shape) in enumerate(sorted(shapes.items()))
    }


def random_batch(model: variants.PaliGemma, batch_size: int, text_len: int, supervised: int):
    """Returns a training batch: 16 prompt tokens, then `supervised` ones, then padding."""
    rng = np.random.default_rng(0)
    prompt = min(16, text_len - supervised)
    position = np.arange(text_len + 1)
    valid = np.broadcast_to(position < prompt + supervised, (batch_size, text_len + 1))
    learnt = valid & (position >= prompt)
    text = np.where(valid, rng.integers(3, model.vocab_size, valid.shape), 0)
    return {
        "image": jnp.asarray(
            rng.integers(0, 256, (batch_size, 1, model.res, model.res, 3), dtype=np.uint8)
        ),
        "mask_image": jnp.ones((batch_size, 1), bool),
        "text": jnp.asarray(text, jnp.int32),
        "mask_ar": jnp.asarray(np.broadcast_to(position >= prompt, valid.shape)),
        "mask_loss": jnp.asarray(learnt),
        "mask_input": jnp.asarray(valid),
    }


def measure(compiled, state, batch, steps: int):
    """Returns the seconds of each step after two that warm up, the last state and its loss."""
    seconds = []
    for number in range(steps + 2):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        loss = float(metrics["loss"])  # waits for the device
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return seconds, state, loss


def report(args, seconds, compile_s, work, loss, compiled):
    device = jax.devices()[0]
    median = statistics.median(seconds)
    stats = device.memory_stats() or {}
    planned = compiled.memory_analysis()
    top = flops.peak(device.device_kind)
    return {
        **vars(args),
        "device": device.device_kind,
        "jax": jax.__version__,
        "compile_s": round(compile_s, 1),
        "step_ms": round(1000 * median, 1),
        "step_ms_min_max": [round(1000 * min(seconds), 1), round(1000 * max(seconds), 1)],
        "examples_per_s": round(args.batch_size / median, 2),
        "model_tflop": round(work / 1e12, 2),
        "mfu": round(work / median / top, 4) if top else None,
        "peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
        "planned_temp_gib": round(planned.temp_size_in_bytes / 2**30, 2),
        "planned_arguments_gib": round(planned.argument_size_in_bytes / 2**30, 2),
        "loss": round(loss, 4),
    }


if __name__ == "__main__":
    main()
