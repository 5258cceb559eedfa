"""What a step's metrics must not say: not-a-number, and a group of parameters that never learns."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.training import step as step_lib

SHOWN = 3


def check_finite(metrics: Mapping[str, Any], *, step: int, state: step_lib.TrainState) -> None:
    """Raises a FloatingPointError that names the step and the arrays which are not finite.

    Args:
      metrics: of `step_lib.make_train_step`, on the host.
      step: number of the update they come from, counted from 1.
      state: any state at or after that update; its parameters are looked at only to explain.
    """
    scalars = ("loss", "grad_norm", "update_norm", "param_norm")
    bad = [f"{name} is {float(metrics[name])}" for name in scalars if not _finite(metrics[name])]
    if not bad:
        return
    tops = zip(sorted(state.trainable), metrics["grad_max"], strict=True)
    bad_grads = [name for name, top in tops if not _finite(top)]
    bad_params = non_finite(state.params)
    where = f"Parameters that are not finite: {_listed(bad_params)}. " if bad_params else ""
    where += f"Gradients that are not finite: {_listed(bad_grads)}. " if bad_grads else ""
    kept = "Parameters and optimizer are as before it. " if not metrics["finite"] else ""
    raise FloatingPointError(
        f"step {step}: {', '.join(bad)}. {where}{kept}"
        f"Try a lower lr, grad_clip_norm=1.0, or compute_dtype='float32'"
    )


def check_gradients(
    metrics: Mapping[str, Any],
    *,
    step: int,
    trainable: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> None:
    """Raises a ValueError for a group of trainable parameters whose gradients are all exactly 0.

    A single array may well start with a zero gradient (a factor whose partner starts at zero), so
    this looks at whole groups: all the parameters of one schedule rule, both factors of a weight.

    Args:
      metrics, step: as in `check_finite`; meant for the first update of a run.
      trainable: names of the trainable parameters.
      groups: what a group is called in the message -> its trainable names.
    """
    top = dict(zip(sorted(trainable), metrics["grad_max"], strict=True))
    if not metrics["supervised_tokens_max"]:
        raise ValueError(
            f"step {step}: no token of the batch is supervised, nothing to learn from. Do the "
            f"examples have suffixes, and does text_len leave room for them?"
        )
    dead = {group: members for group, members in groups.items() if not any(top[n] for n in members)}
    if dead:
        listing = "; ".join(f"{group}: {_listed(members)}" for group, members in dead.items())
        raise ValueError(
            f"step {step}: trainable, but all gradients are exactly zero: {listing}. The loss does "
            f"not depend on them: freeze them (schedule None), or look for what cuts them off"
        )


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Returns the names of the arrays, or trees of arrays, that hold a NaN or an infinity."""

    def is_finite(tree: Any) -> jax.Array:
        return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()

    flags = jax.jit(lambda trees: {name: is_finite(x) for name, x in trees.items()})(dict(arrays))
    return [name for name, flag in jax.device_get(flags).items() if not flag]


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more
