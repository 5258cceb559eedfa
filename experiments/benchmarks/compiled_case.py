"""One case of `compiled`, in a process of its own that has the machine's compiler.

Called with the paths of a request and of the answer that it writes, both JSON. Ours is compiled
from shapes, as a run would; big_vision's is its own model, with the axes that it names split over
the devices, and the update rule of its trainer: nothing runs, and no weight is made.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmarks import big_vision_loss
from paligemma_jax.assembly import model_functions
from paligemma_jax.checks import compiled_cost, described_devices
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import lora, names, sharding
from paligemma_jax.settings import machines
from paligemma_jax.training import optimizer, step

# What is trained: a regex, and the optimizer.
METHODS = {
    "full": (".*", "scale_by_adam"),
    "attention": ("llm/layers/attn/.*", "sgd"),
    "lora": (".*/.*lora_[ab]", "scale_by_adam"),
}
RULES = [(".*", 'fsdp(axis="data")')]
STEPS = 64
NUM_OPERATIONS = 10
# Positions of a row that the loss makes logits of at a time; a loop runs as long as rows need it.
CHUNKS = 2


def main(asked: str, answered: str) -> None:
    case = json.loads(pathlib.Path(asked).read_text())
    machine = machines.look_up(case["machine"])
    mesh = sharding.make_mesh(case["mesh"], described_devices.for_compiler(machine))
    compiled = SIDES[case["side"]](case, mesh)
    chip = machine.chip
    cost = compiled_cost.read(
        compiled.as_text(),
        compiled_cost.Chip(chip.clock_hz, chip.peak_flops["bfloat16"], chip.bytes_per_s),
        unknown_trips=CHUNKS,
    )
    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes + new
    row = {
        "memory_gb": needed / 1e9,
        "temp_gb": memory.temp_size_in_bytes / 1e9,
        "compute_s": cost.seconds,
        "collective_gb": {kind: size / 1e9 for kind, size in cost.collective_bytes.items()},
        "collective_counts": cost.collective_counts,
        "unknown_loops": cost.unknown_loops,
        "operations": [dataclasses.asdict(one) for one in cost.operations[:NUM_OPERATIONS]],
        "peak_flops": chip.peak_flops["bfloat16"],
        "jax": jax.__version__,
    }
    pathlib.Path(answered).write_text(json.dumps(row))


def ours(case: dict[str, Any], mesh: jax.sharding.Mesh) -> Any:
    """Returns our compiled step."""
    model = variants.released(case["model"], res=case["res"], final_logits_softcap=0.0)
    if case["trains"] == "lora":
        model = dataclasses.replace(model, lora=lora.Lora("llm/layers/.*", rank=8, alpha=8.0))
    regex, optax_name = METHODS[case["trains"]]
    all_shapes = paligemma.shapes(model)
    trained = names.select(regex, all_shapes, what="trained")
    frozen_dtype = "float16" if case["dtype"] == "float16" else "bfloat16"
    shapes: dict[str, Any] = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.float32 if name in trained else frozen_dtype)
        for name, x in all_shapes.items()
    }
    if kind := case["quantize"]:
        possible = as_family.NAMES.quantizable
        chosen = [name for name in possible.candidates(shapes) if name not in trained]
        kinds = dict.fromkeys(chosen, kind)
        shapes = model_functions.quantize_shapes(shapes, kinds, possible)
    where = sharding.shardings(shapes, RULES, mesh)
    placed = {name: jax.tree.map(_placed, shapes[name], where[name]) for name in shapes}
    rest = [] if len(trained) == len(shapes) else [(".*", None)]
    made = optimizer.make_optimizer(
        placed,
        schedule=[(regex, {"decay_type": "cosine"}), *rest],
        total_steps=STEPS,
        optax_name=optax_name,
        lr=1e-5,
    )
    compute = paligemma.Compute(
        dtype=case["dtype"],
        remat=case["remat"],
        layout=sharding.make_layout(mesh, RULES, all_shapes),
    )
    functions = as_family.Model(model).functions(compute, cache_dtype=case["dtype"])
    stacked = as_family.NAMES.stacked if case["in_backward"] else ()
    train = step.make_train_step(
        functions.apply,
        functions.logits,
        made.tx,
        seed=0,
        loss_scale=compute.loss_scale,
        in_backward=[name for name in made.trainable if name.startswith(stacked)],
    )
    state = step.state_shapes(placed, trained, made.tx)
    platform = mesh.devices.flat[0].platform
    jitted = jax.jit(train, donate_argnums=0, compiler_options=step.COMPILER_OPTIONS.get(platform))
    return jitted.lower(state, _batch(case, mesh)).compile()


def big_vision(case: dict[str, Any], mesh: jax.sharding.Mesh) -> Any:
    """Returns the compiled step of big_vision's model, its weights split by its rule for fsdp."""
    sys.path.insert(0, os.environ["BIG_VISION_DIR"])
    from big_vision.models.proj.paligemma import paligemma as theirs

    img, llm = variants.RELEASED[case["model"]]
    half = {"dtype_mm": case["dtype"]}
    model = theirs.Model(
        llm={"vocab_size": variants.VOCAB_SIZE, "variant": llm, "final_logits_softcap": 0.0},
        img={"variant": img, "pool_type": "none", "scan": True, **half},
    )
    batch = _batch(case, mesh)
    batch["image"] = _row(case, mesh, (case["res"], case["res"], 3), jnp.float32)
    del batch["mask_image"]
    inputs = (batch["image"], batch["text"], batch["mask_ar"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    where = sharding.shardings(names.flatten(shapes), RULES, mesh)
    params = jax.tree.map(_placed, shapes, names.unflatten(where))
    regex, optax_name = METHODS[case["trains"]]
    is_trained = names.unflatten(
        {name: bool(re.fullmatch(regex, name)) for name in names.flatten(shapes)}
    )
    tx = {"sgd": optax.sgd(0.01), "scale_by_adam": optax.adam(1e-5)}[optax_name]
    moments = optax.tree_map_params(
        tx,
        _placed,
        jax.eval_shape(tx.init, params),
        names.unflatten(where),
        transform_non_params=lambda x: _placed(x, NamedSharding(mesh, PartitionSpec())),
    )

    loss_fn = functools.partial(big_vision_loss.loss, model)

    def update(params, opt_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u, t: p + u if t else p, params, updates, is_trained)
        return params, opt_state, loss

    with mesh, nn.logical_axis_rules([("act_batch", "data")]):
        jitted = jax.jit(update, donate_argnums=(0, 1))
        return jitted.lower(params, moments, batch).compile()


SIDES = {"paligemma_jax": ours, "big_vision": big_vision}


def _batch(case: dict[str, Any], mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    row = functools.partial(_row, case, mesh)
    text = (case["text_len"] + 1,)
    return {
        "image": row((1, case["res"], case["res"], 3), jnp.uint8),
        "mask_image": row((1,), bool),
        "text": row(text, jnp.int32),
        **{name: row(text, bool) for name in ("mask_ar", "mask_loss", "mask_input")},
    }


def _row(case: dict[str, Any], mesh: jax.sharding.Mesh, shape: tuple[int, ...], dtype: Any):
    where = sharding.batch_sharding(mesh)
    return jax.ShapeDtypeStruct((case["batch_size"], *shape), dtype, sharding=where)


def _placed(x: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


if __name__ == "__main__":
    main(*sys.argv[1:])
