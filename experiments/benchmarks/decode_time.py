"""Prefill time and time per decoded token on random weights of a released model's size.

    python experiments/benchmarks/decode_time.py --model paligemma2-3b --batch_size 1

Greedy, one compiled program with the loop inside; eos is never reached, so every row decodes
`--new_tokens` tokens. Time per token is the difference between many tokens and one. The floor is
what reading all of the language model's weights once takes at the memory's bandwidth.
"""

import argparse
import functools
import json
import statistics
import time

import jax
import step_time

from paligemma_jax.inference import generate
from paligemma_jax.models import paligemma

BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12, "L4": 0.3e12, "T4": 0.32e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="paligemma2-3b", help="released model, or 'tiny'")
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--prompt_len", type=int, default=16)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache_dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = step_time.make_model(args.model, args.res)
    shapes = paligemma.shapes(model)
    params = step_time.random_params(shapes, [], frozen_dtype=args.dtype)
    batch = make_prompts(model, args)
    one = make_decoder(model, args, new_tokens=1)
    many = make_decoder(model, args, new_tokens=args.new_tokens)
    start = time.perf_counter()
    jax.block_until_ready((one(params, batch), many(params, batch)))
    compile_s = time.perf_counter() - start
    one_s, many_s = (measure(fn, params, batch, args.repeats) for fn in (one, many))
    per_token = (many_s - one_s) / (args.new_tokens - 1)
    kind = jax.devices()[0].device_kind
    bandwidth = next((b for name, b in BANDWIDTH.items() if name in kind), None)
    read = sum(a.nbytes for name, a in params.items() if name.startswith("llm/"))
    stats = jax.devices()[0].memory_stats() or {}
    planned = many.lower(params, batch).compile().memory_analysis()
    row = {
        **vars(args),
        "device": kind,
        "jax": jax.__version__,
        "compile_s": round(compile_s, 1),
        "first_token_ms": round(1000 * one_s, 2),
        "per_token_ms": round(1000 * per_token, 3),
        "tokens_per_s": round(args.batch_size / per_token, 1),
        "floor_per_token_ms": round(1000 * read / bandwidth, 3) if bandwidth else None,
        "weights_gib": round(sum(a.nbytes for a in params.values()) / 2**30, 2),
        "planned_temp_gib": round(planned.temp_size_in_bytes / 2**30, 2),
        "peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
    }
    print(json.dumps(row), flush=True)


def make_prompts(model, args):
    batch = step_time.random_batch(model, args.batch_size, args.prompt_len - 1, supervised=0)
    batch |= {"mask_ar": batch["mask_ar"] & False, "mask_input": batch["mask_input"] | True}
    rows = jax.numpy.arange(args.batch_size)
    return batch | {"index": rows, "_mask": rows >= 0}


def make_decoder(model, args, *, new_tokens: int):
    compute = paligemma.Compute(dtype=args.dtype)

    def prefill(params, batch):
        return paligemma.prefill(
            params,
            *(batch[name] for name in step_time.INPUTS),
            model=model,
            compute=compute,
            cache_len=model.num_image_tokens + args.prompt_len + args.new_tokens,
            cache_dtype=args.cache_dtype,
        )

    decode_step = functools.partial(paligemma.decode_step, model=model, compute=compute)

    def decode(params, batch):
        return generate.generate(
            prefill,
            decode_step,
            paligemma.select_rows,
            params,
            batch,
            max_new_tokens=new_tokens,
            eos=-1,
        )

    return jax.jit(decode)


def measure(fn, params, batch, repeats: int) -> float:
    """Returns the median seconds of a call."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(fn(params, batch))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
