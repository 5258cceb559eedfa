"""Prefill and decode_step against the full forward pass, and what their loop compiles to."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants

COMPUTE = paligemma.Compute(remat="none")
T = 10  # prompts are padded to this
STEPS = 10


@functools.partial(jax.jit, static_argnames=("model", "cache_dtype"))
def prefill(params, inputs, *, model, cache_dtype="float32"):
    M = inputs[0].shape[1]
    cache_len = M * model.num_image_tokens + T + STEPS
    return paligemma.prefill(
        params, *inputs, model=model, compute=COMPUTE, cache_len=cache_len, cache_dtype=cache_dtype
    )


@functools.partial(jax.jit, static_argnames="model")
def decode_step(params, cache, token, *, model):
    return paligemma.decode_step(params, cache, token, model=model, compute=COMPUTE)


def cut_prompts(inputs):
    """Returns prompts of unequal length, padded to T, and where each row's answer begins."""
    starts = (inputs.mask_input - inputs.mask_ar).sum(1)
    valid = np.arange(T) < starts[:, None]
    prompts = dataclasses.replace(
        inputs,
        text=np.where(valid, inputs.text[:, :T], 0),
        mask_ar=np.zeros_like(inputs.mask_ar[:, :T]),
        mask_input=valid,
    )
    return prompts, starts


def assert_decoding_equals(expected, params, inputs, *, model, tolerance):
    """Feeds each row its own answer, token by token, and compares with `apply`'s logits."""
    prompts, starts = cut_prompts(inputs)
    lengths = inputs.mask_input.sum(1)
    rows = np.arange(len(starts))
    logits, cache = prefill(params, tuple(prompts), model=model)
    np.testing.assert_allclose(logits, expected[rows, starts - 1], rtol=0, atol=tolerance)
    for step in range(STEPS):
        at = np.minimum(starts + step, 19)
        logits, cache = decode_step(params, cache, inputs.text[rows, at], model=model)
        alive = starts + step < lengths
        found = np.asarray(logits)[alive]
        np.testing.assert_allclose(found, expected[rows, at][alive], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("case", "llm", "tolerance"), [("pg2", "tiny2", 5e-4)])
def test_decoding_equals_teacher_forcing(load_reference, inputs, run_logits, case, llm, tolerance):
    params, _, _ = load_reference(f"forward_{case}")
    model = variants.make("tiny/14", llm, res=56, vocab_size=1400)
    expected = run_logits(params, inputs, model=model)
    assert_decoding_equals(expected, params, inputs, model=model, tolerance=tolerance)


@pytest.fixture(scope="module")
def two_images(inputs):
    """Rows with both image slots used, one of them, or none."""
    image = np.stack([inputs.image[:, 0], inputs.image[::-1, 0]], axis=1)
    used = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)
    return dataclasses.replace(inputs, image=image, mask_image=used)


def test_decoding_equals_teacher_forcing_with_several_images(params, two_images, model, run_logits):
    expected = run_logits(params, two_images, model=model)
    assert_decoding_equals(expected, params, two_images, model=model, tolerance=1e-4)


@pytest.mark.parametrize("keep_stacked", [True, False])
def test_unstacked_parameters_decode_alike(params, two_images, model, run_logits, keep_stacked):
    expected = run_logits(params, two_images, model=model)
    kept = {k: w for k, w in params.items() if keep_stacked or not k.startswith("llm/layers/")}
    both = {**kept, **paligemma.unstack(params)}
    assert_decoding_equals(expected, both, two_images, model=model, tolerance=1e-4)


def test_selected_rows_decode_as_they_did_before(params, two_images, model):
    prompts, _ = cut_prompts(two_images)
    _, cache = prefill(params, tuple(prompts), model=model)
    rows = np.array([4, 1, 1, 0, 2])
    token = np.array([11, 12, 13, 14, 15], np.int32)
    straight, _ = decode_step(params, cache, token, model=model)
    cache = paligemma.select_rows(cache, rows)
    selected, _ = decode_step(params, cache, token[rows], model=model)
    np.testing.assert_allclose(selected, straight[rows], rtol=0, atol=1e-5)


def test_the_cache_is_stored_in_its_own_dtype(params, two_images, model):
    prompts, _ = cut_prompts(two_images)
    logits, cache = jax.eval_shape(
        functools.partial(prefill, model=model, cache_dtype="bfloat16"), params, tuple(prompts)
    )
    assert logits.dtype == jnp.float32
    assert [k.dtype for k in (*cache.keys, *cache.values)] == [jnp.bfloat16] * 6
    after = jax.eval_shape(
        functools.partial(decode_step, model=model), params, cache, np.zeros(5, np.int32)
    )[1]
    assert after == cache, "a loop needs the same shapes and dtypes at every step"


def test_a_cache_that_cannot_hold_the_prompt_is_an_error(params, inputs, model):
    arguments = dict(model=model, compute=COMPUTE, cache_len=30, cache_dtype="float32")
    with pytest.raises(ValueError, match="cache_len=30 is too short for 36"):
        jax.eval_shape(
            functools.partial(paligemma.prefill, **arguments), params, *map(jnp.asarray, inputs)
        )


# Prints the answers to 8 rows, of two candidates each, and which part of the keys [16, 17, 8] each
# device holds while it decodes, where the cache is to be split by rows or by its last axis.
ON_FOUR_DEVICES = """
import functools, json, re
import jax
import jax.numpy as jnp
from paligemma_jax.decoding import generate
from paligemma_jax.models.paligemma import paligemma
from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import sharding

llm = variants.Gemma(8, 1, 8, num_heads=1, num_kv_heads=1, head_dim=8)
vit = variants.Vit(width=8, depth=1, mlp_dim=8, num_heads=1, patch_size=14)
model = variants.PaliGemma(vit, llm, res=14, vocab_size=64)
mesh = sharding.make_mesh([("data", -1)])
rows = sharding.batch_sharding(mesh)
last = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, None, "data"))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
params = jax.device_put(paligemma.init(jax.random.key(0), model), everywhere)
text = jnp.arange(40).reshape(8, 5)
batch = {"text": text, "mask": jnp.ones((8, 5), bool), "index": jnp.arange(8),
         "_mask": jnp.ones(8, bool), "image": jnp.zeros((8, 1, 14, 14, 3), jnp.uint8)}
batch = jax.device_put(batch, rows)
compute = paligemma.Compute()
found = {}
for name, where in {"rows": rows, "last": last}.items():
    def prefill(params, batch):
        inputs = batch["image"], batch["mask"][:, :1], batch["text"], ~batch["mask"], batch["mask"]
        return paligemma.prefill(params, *inputs, model=model, compute=compute, cache_len=17,
                                 cache_dtype="float32", cache_sharding=where)

    @jax.jit
    def decode(params, batch):
        step = functools.partial(paligemma.decode_step, model=model, compute=compute)
        return generate.generate(prefill, step, paligemma.select_rows, params, batch,
                                 max_new_tokens=6, eos=1, sampler="temperature",
                                 rng=jax.random.key(1), best_of=2)

    compiled = decode.lower(params, batch).compile()
    [loop] = [line for line in compiled.as_text().splitlines()
              if " while(" in line and ",17," in line]
    found[name] = [compiled(params, batch).tokens.tolist(),
                   sorted(set(re.findall(r"f32.(\\d+,17,\\d+)", loop)))]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_cache_lies_where_it_is_told_to_and_answers_are_the_same():
    flags = "--xla_force_host_platform_device_count=4"
    ran = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["rows"][1] == ["4,17,8"]
    assert found["last"][1] == ["16,17,2"]
    assert found["rows"][0] == found["last"][0]


@functools.lru_cache(maxsize=1)
def compile_loop(rows, num_kv_heads):
    """Returns (HLO of a loop of decode_step, shapes of the blocks' weights, the cache's shapes)."""
    llm = variants.Gemma(160, 2, 544, num_heads=6, num_kv_heads=num_kv_heads, head_dim=48)
    model = variants.PaliGemma(variants.VITS["tiny/14"], llm, res=56, vocab_size=900)
    shapes = {k: v for k, v in paligemma.shapes(model).items() if k.startswith("llm/")}
    blocks = jax.eval_shape(paligemma.unstack, shapes)
    params = {**shapes, **blocks}
    text = jax.ShapeDtypeStruct((rows, T), jnp.int32)
    no_image = jax.ShapeDtypeStruct((rows, 0, 56, 56, 3), jnp.uint8)
    inputs = no_image, jax.ShapeDtypeStruct((rows, 0), jnp.bool), text, text, text
    all_params = {**paligemma.shapes(model), **params}
    _, cache = jax.eval_shape(functools.partial(prefill, model=model), all_params, inputs)

    @jax.jit
    def loop(params, cache, token):
        def step(state):
            logits, cache = paligemma.decode_step(
                params, state[1], state[0], model=model, compute=COMPUTE
            )
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.while_loop(lambda state: state[1].slot < T + STEPS, step, (token, cache))[0]

    token = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return loop.lower(params, cache, token).compile().as_text(), blocks, cache


@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_the_decoding_loop_copies_no_weight(num_kv_heads):
    """In the compiled loop no operation but a bitcast yields as many numbers as a block's weight.

    Sizes are such that no activation and no cache has as many.
    """
    text, blocks, _ = compile_loop(2, num_kv_heads)
    weights = {k: v for k, v in blocks.items() if v.ndim > 1}
    sizes = {v.size: k for k, v in weights.items()}
    sizes |= {v.size // 2: k for k, v in weights.items() if "gating" in k}
    sizes[900 * 160] = "llm/embedder/input_embedding"
    assert len(weights) == 2 * (4 if num_kv_heads == 6 else 5)
    assert not find_made(text, sizes)


def test_the_decoding_loop_reads_of_the_embedding_what_it_needs():
    """No gather takes rows of the table: the compiler would count all of it once more."""
    text, _, _ = compile_loop(2, 2)
    assert "f32[900,160]" in text
    assert not re.findall(r" gather\([^)]*\).*", text)


@pytest.mark.parametrize(("rows", "num_kv_heads"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_decoding_loop_writes_a_layers_keys_in_place(rows, num_kv_heads):
    """Two layers' keys and values are copied before the loop, as the caller's own, and no more."""
    text, _, cache = compile_loop(rows, num_kv_heads)
    made = find_made(text, {cache.keys[0].size: "keys"})
    written = [line for line in made if "dynamic-update-slice" in line]
    copied = [line for line in made if " copy(" in line]
    assert len(written) == 4 and len(copied) == 4


def find_made(hlo, sizes):
    """Returns the HLO lines outside of fusions that make an array of one of these sizes."""
    found = []
    is_fused = False
    for line in hlo.splitlines():
        if line and not line.startswith(" "):
            is_fused = "fused" in line or "wrapped" in line
        match = re.match(r"\s+(?:ROOT )?%?\S+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(", line)
        if not match or is_fused:
            continue
        size = int(np.prod([int(side) for side in match[1].split(",")]))
        if size in sizes and match[2] not in ("parameter", "get-tuple-element", "bitcast"):
            found.append(f"{sizes[size]}: {line.strip()[:150]}")
    return found
