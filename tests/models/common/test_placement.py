"""On eight devices: results are those of one, and only weights travel between them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

# Sizes that tell arrays apart: of 24 rows each device holds 3, and no weight has a side of 24 or 3
# besides that of the layers.
ON_EIGHT_DEVICES = """
import dataclasses, functools, json, math, re, sys
import jax, jax.numpy as jnp, numpy as np
from paligemma_jax.checks import compiled_cost
from paligemma_jax.decoding import generate
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import lora, sharding
from paligemma_jax.training import optimizer, step

SPLIT = 'fsdp(axis="data", min_size_to_shard_mb=0)'
TENSOR = [
    ("llm/layers/mlp/gating_einsum", 'shard_dim(axis="model", dim=-1)|' + SPLIT),
    ("llm/layers/mlp/linear", 'shard_dim(axis="model", dim=1)|' + SPLIT),
    ("llm/embedder/.*", 'shard_dim(axis="model", dim=0)'),
    (".*", SPLIT),
]
CASES = {
    "fsdp": ([("data", 8)], [(".*", SPLIT)], {}),
    "tensor": ([("data", 4), ("model", 2)], TENSOR, {}),
    "kept": ([("data", 8)], [(".*", SPLIT)], {"remat": "dots_with_no_batch_dims_saveable"}),
}
tiny = variants.make("tiny/14", "tiny2", res=28, vocab_size=512, final_logits_softcap=0.0)
B, T = 24, 40
rng = np.random.default_rng(0)
position = np.arange(T + 1)[None]
batch = {
    "image": rng.integers(0, 255, (B, 1, 28, 28, 3)).astype("uint8"),
    "mask_image": np.ones((B, 1), bool),
    "text": rng.integers(3, 512, (B, T + 1)).astype("int32"),
    "mask_ar": np.repeat(position > 10, B, axis=0),
    "mask_loss": position > np.arange(10, 10 + B)[:, None],
    "mask_input": np.ones((B, T + 1), bool),
}
prompts = batch | {"_mask": np.ones(B, bool), "index": np.arange(B)}
prompts |= {name: batch[name][:, :-1] for name in ("text", "mask_ar", "mask_input")}
prompts.pop("mask_loss")

def functions(layout, **how):
    rows = None if layout is None else layout.rows
    compute = paligemma.Compute(dropout=0.1, layout=layout, **how)
    return as_family.Model(tiny).functions(compute, cache_dtype="float32", cache_sharding=rows)

def programs(layout, params, **how):
    f = functions(layout, **how)
    made = optimizer.make_optimizer(
        params, schedule=[(".*", {"decay_type": "cosine"})], total_steps=9, lr=0.1, optax_name="sgd"
    )
    state = step.init_state(params, list(params), made.tx)
    train = jax.jit(step.make_train_step(f.apply, f.logits, made.tx, seed=0))
    lone = {n: x for n, x in params.items() if not n.startswith(paligemma.LAYERS)}

    def answer(params, batch):
        return generate.generate(
            functools.partial(f.prefill, max_new_tokens=6), f.decode_step, f.select_rows,
            params, batch, max_new_tokens=6, eos=1,
        )

    return {
        "train": (train, (state, "batch")),
        "eval": (jax.jit(step.make_eval_loss(f.apply, f.logits)), (params, "batch")),
        "decode": (jax.jit(answer), (lone | f.unstack(params), "prompts")),
    }

def run(programs, place):
    out, texts = {}, {}
    for name, (function, (first, which)) in programs.items():
        given = place({"batch": batch, "prompts": prompts}[which])
        compiled = function.lower(first, given).compile()
        texts[name], result = compiled.as_text(), compiled(first, given)
        if name == "train":
            out |= {"loss": result[1]["loss"], "grad_max": result[1]["grad_max"]}
        elif name == "eval":
            out["eval_loss"] = result[0]
        else:
            out |= {"tokens": result.tokens, "logp": result.logp}
    return {name: np.asarray(x) for name, x in out.items()}, texts

def collectives(text):
    program, entry = compiled_cost.parse(text)
    in_layers, todo = set(), []
    for line in (line for lines in program.values() for line in lines):
        if line.opcode == "while":
            todo += [name for name, trips in compiled_cost.callees(program, line)
                     if trips == tiny.llm.depth]
    while todo:
        name = todo.pop()
        in_layers.add(name)
        todo += [callee for line in program[name]
                 for callee, _ in compiled_cost.callees(program, line)]
    for name, lines in program.items():
        for line in lines:
            if line.collective:
                parts = re.findall(r"(\\w+)\\[([\\d,]*)\\]", line.shape)
                sides = [[int(n) for n in part.split(",") if n] for _, part in parts]
                yield {"kind": line.collective, "sides": sides, "path": line.path[-80:],
                       "in_layers": name in in_layers}

axes, rules, how = CASES[sys.argv[1]]
params = paligemma.init(jax.random.key(0), tiny)
one = jax.devices()[0]
alone = {name: jax.device_put(x, one) for name, x in params.items()}
expected, _ = run(programs(None, alone, **how), lambda b: jax.device_put(b, one))
mesh = sharding.make_mesh(axes)
layout = sharding.make_layout(mesh, rules, params)
where = sharding.shardings(params, rules, mesh)
placed = {name: jax.device_put(x, where[name]) for name, x in params.items()}
actual, texts = run(programs(layout, placed, **how), lambda b: sharding.place_batch(b, mesh))
np.testing.assert_array_equal(actual.pop("tokens"), expected.pop("tokens"))
for name, value in expected.items():
    np.testing.assert_allclose(actual[name], value, rtol=2e-4, atol=2e-6, err_msg=name)
print(json.dumps({
    "collectives": {name: list(collectives(text)) for name, text in texts.items()},
    "layer_weights": [list(x.shape[1:]) for n, x in params.items()
                      if n.startswith((paligemma.LAYERS, paligemma.BLOCKS))],
    "table": list(params[paligemma.EMBEDDING].shape),
}))
"""


# What code is made of a program for a CPU does not matter here, and takes most of the time.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"


def run(case: str) -> dict:
    eight = {"XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, case],
        env=os.environ | eight,
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fsdp():
    """The programs of a model whose weights and batch are split over the same eight devices."""
    return run("fsdp")


def sides(shape: list[int]) -> tuple[int, ...]:
    """Returns the sides of an array, whatever their order, without those of 1."""
    return tuple(sorted(side for side in shape if side > 1))


def size(shape: list[int]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "eval", "decode"])
def test_only_weights_travel_inside_a_loop_over_layers(fsdp, program):
    shapes = fsdp["layer_weights"]
    # Of several weights in one array, as q of k and v, each has a gradient of its own.
    weights = {sides(part) for shape in shapes for part in (shape, shape[1:])} | {()}
    moves = [move for move in fsdp["collectives"][program] if move["in_layers"]]
    assert any(move["kind"] == "all-gather" for move in moves)
    activations = [move for move in moves for shape in move["sides"] if sides(shape) not in weights]
    assert not activations


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "eval", "decode"])
def test_nothing_larger_than_the_table_travels_and_in_layers_than_a_weight(fsdp, program):
    largest = max(map(size, fsdp["layer_weights"]))
    for move in fsdp["collectives"][program]:
        limit = largest if move["in_layers"] else size(fsdp["table"])
        assert max(map(size, move["sides"])) <= limit, move


@pytest.mark.slow
def test_the_table_is_not_brought_together_in_the_loop_over_chunks_of_the_loss(fsdp):
    table = sides(fsdp["table"])
    inside = [move for move in fsdp["collectives"]["train"] if "while" in move["path"]]
    assert inside
    assert not [move for move in inside if table in map(sides, move["sides"])]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tensor", "kept"])
def test_results_are_those_of_one_device_for_every_way_to_split(case):
    assert run(case)["collectives"]["train"]


# Large enough that a TPU's compiler treats its arrays as it does real ones.
FOR_TPU = """
import json
import jax, jax.numpy as jnp
from jax.experimental import topologies
from paligemma_jax.checks import compiled_cost
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import sharding
from paligemma_jax.training import optimizer, step

B, T, RULES = 64, 64, [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0.1)')]
img = variants.Vit(256, depth=3, mlp_dim=1024, num_heads=2, patch_size=14)
llm = variants.Gemma(512, depth=4, mlp_dim=2048, num_heads=4, num_kv_heads=4, head_dim=128)
model = variants.PaliGemma(img, llm, res=112, vocab_size=4096)
devices = topologies.get_topology_desc("v5e:2x4", "tpu").devices
mesh = sharding.make_mesh([("data", -1)], devices)
shapes = paligemma.shapes(model)
where = sharding.shardings(shapes, RULES, mesh)
placed = {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where[n]) for n, x in shapes.items()}
layout = sharding.make_layout(mesh, RULES, shapes)
compute = paligemma.Compute("bfloat16", layout=layout)
f = as_family.Model(model).functions(compute, cache_dtype="bfloat16", cache_sharding=layout.rows)
made = optimizer.make_optimizer(
    placed, schedule=[(".*", {"decay_type": "cosine"})], total_steps=9, lr=0.1, optax_name="sgd"
)
state = step.state_shapes(placed, list(placed), made.tx)

def rows(*shape, dtype=bool):
    return jax.ShapeDtypeStruct((B, *shape), dtype, sharding=sharding.batch_sharding(mesh))

batch = {"image": rows(1, 112, 112, 3, dtype=jnp.uint8), "mask_image": rows(1),
         "text": rows(T + 1, dtype=jnp.int32),
         **{name: rows(T + 1) for name in ("mask_ar", "mask_loss", "mask_input")}}
train = step.make_train_step(f.apply, f.logits, made.tx, seed=0)
options = step.COMPILER_OPTIONS["tpu"]
compiled = jax.jit(train, donate_argnums=0, compiler_options=options).lower(state, batch).compile()
chip = compiled_cost.Chip(clock_hz=1.5e9, peak_flops=197e12, bytes_per_s=819e9)
cost = compiled_cost.read(compiled.as_text(), chip, unknown_trips=2)
layers = sum(x.size for n, x in shapes.items()
             if n.startswith((paligemma.LAYERS, paligemma.BLOCKS)))
print(json.dumps({"seconds": cost.seconds, "bytes": cost.collective_bytes,
                  "weights": 2 * layers, "table": 2 * shapes[paligemma.EMBEDDING].size}))
"""


@pytest.mark.slow
def test_a_tpus_compiler_moves_weights_twice_and_gradients_once():
    pytest.importorskip("libtpu")
    alone = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [sys.executable, "-c", FOR_TPU],
        env=os.environ | alone,
        cwd=pathlib.Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    cost = json.loads(ran.stdout.splitlines()[-1])
    assert cost["seconds"] > 0
    # What else moves is small: tokens' embeddings and gradients, hidden states before the logits.
    assert sum(cost["bytes"].values()) < 1.3 * (3 * cost["weights"] + cost["table"])
    assert cost["bytes"]["all-gather"] >= 1.5 * cost["weights"]
    assert cost["bytes"].get("collective-permute", 0) < 0.1 * cost["weights"]
