"""LoRA trains as PEFT's: the same losses on the same weights, step by step."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from jax import extend

from paligemma_jax.checkpoints import huggingface, huggingface_config, peft
from paligemma_jax.models.paligemma import paligemma
from paligemma_jax.params import names
from paligemma_jax.training import loss, optimizer, step

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
OPTIMIZERS = {
    "pg1": dict(optax_name="scale_by_adam", optax_args=dict(b2=0.999), lr=3e-3),
    "pg2": dict(optax_name="sgd", lr=3e-4),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What PEFT started from, and the functions of a step with LoRA on it."""

    params: dict
    batches: list
    losses: np.ndarray
    apply_fn: Any
    logits_fn: Any

    def optimizer(self, **settings):
        schedule = [(names.ANY_FACTOR, dict(decay_type="constant")), (".*", None)]
        return optimizer.make_optimizer(self.params, schedule=schedule, total_steps=10, **settings)


@pytest.fixture(scope="module")
def load_run(load_reference):
    def load(case) -> Run:
        folder, reference = (REFERENCE / f"{kind}_{case}" for kind in ("hf", "lora"))
        config = json.loads((folder / "config.json").read_text())
        model = huggingface_config.model(config, where="config.json")
        base, _ = huggingface.read(folder, paligemma.shapes(model))
        lora, factors = peft.read(reference / "initial", base)
        with_lora = dataclasses.replace(model, lora=lora)
        _, inputs, _ = load_reference("train_trainer_pg1")
        inputs["image"] = inputs.pop("image_u8")[:, :, None]
        inputs["mask_image"] = np.ones(inputs["image"].shape[:3], bool)

        def apply_fn(params, batch, rng):
            keys = ("image", "mask_image", "text", "mask_ar", "mask_input")
            given = (batch[key] for key in keys)
            compute = paligemma.Compute()
            return paligemma.apply(params, *given, model=with_lora, compute=compute, rng=rng)

        return Run(
            params={name: np.asarray(x) for name, x in {**base, **factors}.items()},
            batches=[{name: x[n] for name, x in inputs.items()} for n in range(10)],
            losses=np.load(reference / "expected.npz")["losses"],
            apply_fn=apply_fn,
            logits_fn=functools.partial(paligemma.logits, model=with_lora),
        )

    return load


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_ten_steps_equal_pefts(case, load_run, quick_jit):
    run = load_run(case)
    opt = run.optimizer(**OPTIMIZERS[case])
    train_step = quick_jit(step.make_train_step(run.apply_fn, run.logits_fn, opt.tx, seed=0))
    state = step.init_state(run.params, opt.trainable, opt.tx)
    losses = []
    for batch in run.batches:
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, run.losses, rtol=1e-5)


def product_sizes(run, trainable) -> set[int]:
    """Returns how many numbers the matrix products of a gradient have, loops' bodies included."""
    chosen, frozen = names.partition(run.params, trainable)

    def mean_loss(chosen):
        params, batch = names.merge(chosen, frozen), run.batches[0]
        return loss.example_losses(
            params, batch, apply_fn=run.apply_fn, logits_fn=run.logits_fn
        ).mean()

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield eqn.outvars[0].aval.size
            for inner in extend.core.jaxprs_in_params(eqn.params):
                yield from sizes(inner)

    return set(sizes(jax.make_jaxpr(jax.grad(mean_loss))(chosen).jaxpr))


def test_neither_a_times_b_nor_the_gradient_of_a_frozen_weight_is_made(load_run):
    run, linear = load_run("pg1"), "llm/layers/mlp/linear"
    size = run.params[linear][0].size
    assert size in product_sizes(run, [linear])
    assert size not in product_sizes(run, filter(names.is_factor, run.params))
