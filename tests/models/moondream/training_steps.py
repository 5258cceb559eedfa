"""A few steps of training all weights, and greedy tokens, under the authors' names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma_jax.checkpoints import moondream_names
from paligemma_jax.models import family
from paligemma_jax.models.moondream import as_family, moondream


@dataclasses.dataclass(frozen=True)
class Trained:
    """What steps of training gave.

    Attributes:
      losses: before each step.
      norms: of the gradients of each step, by the authors' names.
      first: the gradients of the first step, by the authors' names.
      params: ours, after the last.
    """

    losses: list[float]
    norms: list[dict[str, float]]
    first: dict[str, np.ndarray]
    params: dict[str, jax.Array]


def run(
    model: as_family.Model, params: dict[str, Any], batch: Any, *, count: int, eps: float
) -> Trained:
    """Trains by AdamW: the mean over examples of the mean over supervised tokens."""
    functions = model.functions(family.Compute(remat="none"), cache_dtype="float32")
    update = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=eps, weight_decay=0.0)

    def loss(params):
        logits = functions.logits(params, functions.apply(params, batch))[:, :-1]
        logp = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(logp, batch["text"][:, 1:, None], axis=-1)[..., 0]
        mask = batch["mask_loss"][:, 1:].astype(np.float32)
        return jnp.mean(-(own * mask).sum(1) / mask.sum(1))

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = update.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value, gradients

    pieces = moondream_names.pieces(moondream.shapes(model.dims))
    params = {name: jnp.asarray(x) for name, x in params.items()}
    state, losses, norms, first = update.init(params), [], [], {}
    for _ in range(count):
        params, state, value, gradients = step(params, state)
        theirs = {
            piece.theirs: piece.to_theirs(np.asarray(gradients[piece.ours])) for piece in pieces
        }
        losses.append(float(value))
        norms.append({name: float(np.linalg.norm(x)) for name, x in theirs.items()})
        first = first or theirs
    return Trained(losses, norms, first, params)


def greedy(model: as_family.Model, params: dict[str, Any], batch: Any, *, count: int) -> np.ndarray:
    """Returns so many tokens behind the prompts of a training batch."""
    run = model.functions(family.Compute(remat="none"), cache_dtype="float32")
    prompts = {**batch, "mask_input": batch["mask_input"] & ~batch["mask_ar"]}
    params = {**params, **run.unstack(params)}
    read = jax.jit(run.prefill, static_argnames="max_new_tokens")
    made, cache = read(params, prompts, max_new_tokens=count)
    step, tokens = jax.jit(run.decode_step), []
    for _ in range(count):
        tokens.append(jnp.argmax(made, axis=-1))
        made, cache = step(params, cache, tokens[-1])
    return np.stack(tokens, axis=1)
