"""Bytes that one decoded token reads and writes, by the compiler's own count, and copies it makes.

    python experiments/benchmarks/decode_bytes.py --model mid
    python experiments/benchmarks/decode_bytes.py --model paligemma1-3b --batch_size 1

The loop of greedy decoding is compiled for shapes and never run: no weight is allocated. The
prompt's cache is an argument, so that what is counted is the loop, whose body the compiler counts
once. It is compared with what a token cannot do without: every weight of the language model once,
and the cache once. Copies are instructions of the loop that do nothing but move an array as large
as the smallest weight matrix, or one layer's keys, or larger. Prints one line of JSON.

The compiler counts two things as more than they are: a slot that is written in place as the whole
buffer, read and written; and rows gathered from the embedding, as they are for more than 32 tokens
at a time, as the whole table. `touched` is what is counted less these.
"""

import argparse
import collections
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import work

from paligemma_jax.decoding import generate
from paligemma_jax.models.paligemma import paligemma, variants

MOVES = ("copy", "transpose", "concatenate", "pad", "slice", "dynamic-slice", "convert")
INSTRUCTION = re.compile(
    r"%?(?P<name>[\w.-]+) = (?P<dtype>\w+)\[(?P<dims>[\d,]*)\]\S* (?P<op>[\w-]+)\("
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mid", choices=("mid", *variants.RELEASED))
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--prompt_len", type=int, default=24)
    parser.add_argument("--new_tokens", type=int, default=32)
    args = parser.parse_args()
    model = work.MID
    if args.model != "mid":
        model = variants.released(args.model, res=args.res, final_logits_softcap=0.0)
    params, read = shapes(model, args)
    compiled = lower(model, args).lower(params, read).compile()
    program = compiled.as_text()
    counted = compiled.cost_analysis()["bytes accessed"]
    weights = {name: x for name, x in params.items() if name.startswith("llm/")}
    needed = sum(map(num_bytes, weights.values()))
    cache = sum(map(num_bytes, jax.tree.leaves(read[1])))
    untouched = 2 * cache
    if args.batch_size > paligemma.ROWS_ONE_BY_ONE:
        untouched += num_bytes(weights["llm/embedder/input_embedding"])
    large = [*weights.values(), *read[1].keys]
    smallest = min(num_bytes(x) for x in large if len(x.shape) > 1)
    row = {
        **vars(args),
        "weights_gb": round(needed / 1e9, 4),
        "cache_gb": round(cache / 1e9, 4),
        "counted_gb": round(counted / 1e9, 4),
        "counted / (weights + cache)": round(counted / (needed + cache), 3),
        "touched / (weights + cache)": round((counted - untouched) / (needed + cache), 3),
        "copies": copies(program, at_least=smallest),
        "temp_gb": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 4),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(row))


def shapes(model: variants.PaliGemma, args: argparse.Namespace):
    """Returns shapes of parameters as decoding reads them, and of what the prompt left behind."""
    params = paligemma.shapes(model)
    layers = jax.eval_shape(paligemma.unstack, params)
    params = {k: x for k, x in params.items() if not k.startswith(paligemma.LAYERS)} | layers
    text = (args.batch_size, args.prompt_len)
    inputs = (
        jax.ShapeDtypeStruct((args.batch_size, 1, model.res, model.res, 3), jnp.uint8),
        jax.ShapeDtypeStruct((args.batch_size, 1), bool),
        jax.ShapeDtypeStruct(text, jnp.int32),
        jax.ShapeDtypeStruct(text, bool),
        jax.ShapeDtypeStruct(text, bool),
    )
    prefill = functools.partial(
        paligemma.prefill,
        model=model,
        compute=paligemma.Compute(),
        cache_len=model.num_image_tokens + args.prompt_len + args.new_tokens,
        cache_dtype="float32",
    )
    return params, jax.eval_shape(prefill, params, *inputs)


def lower(model: variants.PaliGemma, args: argparse.Namespace):
    """Returns the jitted loop: (params, what the prompt left behind) -> answers."""
    decode_step = functools.partial(paligemma.decode_step, model=model, compute=paligemma.Compute())

    @jax.jit
    def decode(params, read):
        index = jnp.arange(args.batch_size)
        return generate.generate(
            lambda _, __: read,
            decode_step,
            paligemma.select_rows,
            params,
            {"index": index, "_mask": index >= 0},
            max_new_tokens=args.new_tokens,
            eos=1,
        )

    return decode


def copies(program: str, *, at_least: float) -> dict[str, int]:
    """Returns how often loop bodies only move an array of so many bytes, by its shape."""
    bodies = set(re.findall(r"body=%?([\w.-]+)", program))
    found: collections.Counter[str] = collections.Counter()
    for computation in re.split(r"\n(?=\S)", program):
        header = re.match(r"%?([\w.-]+)", computation)
        if not header or header[1] not in bodies:
            continue
        for match in map(INSTRUCTION.search, computation.splitlines()):
            if match and moves(match) and num_bytes_of(match) >= at_least:
                found[f"{match['dtype']}[{match['dims']}]"] += 1
    return dict(found)


def moves(match: re.Match[str]) -> bool:
    """Says whether an instruction only moves an array, alone or as a fusion named so."""
    is_fused = match["op"] == "fusion" and match["name"].startswith(MOVES)
    return match["op"] in MOVES or is_fused


def num_bytes_of(match: re.Match[str]) -> int:
    """Returns the bytes of an instruction's result; the type f32 has four for each number."""
    digits = re.search(r"\d+", match["dtype"])
    itemsize = max(1, int(digits[0]) // 8) if digits else 1
    return math.prod(int(n) for n in match["dims"].split(",") if n) * itemsize


def num_bytes(x) -> int:
    return math.prod(x.shape) * np.dtype(x.dtype).itemsize


if __name__ == "__main__":
    main()
