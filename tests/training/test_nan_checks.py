"""Wrong numbers stop the run, and the error names what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.training import loop, step

GROUPS = {"rule 'img/.*'": ("img/a", "img/b"), "rule 'llm/.*'": ("llm/c",)}


def metrics(**changes):
    return {
        "loss": np.float32(2.0),
        "grad_norm": np.float32(1.0),
        "update_norm": np.float32(1.0),
        "param_norm": np.float32(1.0),
        "supervised_tokens_max": np.float32(3.0),
        "finite": np.bool_(True),
        "grad_max": np.ones(3, np.float32),
    } | changes


def state(**changes):
    trainable = {name: jnp.ones(2) for name in ("img/a", "img/b", "llm/c")}
    return step.TrainState(
        step=jnp.zeros([], jnp.int32),
        trainable=trainable | changes,
        frozen={"llm/frozen": jnp.ones(3, jnp.float16)},
        opt_state=(),
    )


def check_gradients(**changes):
    names = ["img/a", "img/b", "llm/c"]
    loop.check_gradients(metrics(**changes), step=1, trainable=names, groups=GROUPS)


def test_good_numbers_pass():
    loop.check_finite(metrics(), step=1, state=state())
    check_gradients()


def test_bad_gradients_are_named():
    bad = metrics(
        loss=np.float32("nan"),
        finite=np.bool_(False),
        grad_max=np.array([1, np.inf, np.nan], np.float32),
    )
    message = (
        "step 7: loss is nan. Gradients that are not finite: img/b, llm/c. Parameters and optim"
    )
    with pytest.raises(FloatingPointError, match=message):
        loop.check_finite(bad, step=7, state=state())


def test_bad_parameters_are_named():
    bad = metrics(loss=np.float32("inf"), finite=np.bool_(False))
    broken = state(**{"img/a": jnp.array([1.0, jnp.nan])})
    message = "Parameters that are not finite: img/a.*only some layers are updated"
    with pytest.raises(FloatingPointError, match=message):
        loop.check_finite(bad, step=7, state=broken)


def test_group_without_gradient_is_named():
    with pytest.raises(ValueError, match=r"exactly zero: rule 'img/\.\*': img/a, img/b\."):
        check_gradients(grad_max=np.array([0, 0, 1], np.float32))


def test_one_array_without_gradient_is_no_error():
    check_gradients(grad_max=np.array([0, 1, 1], np.float32))


def test_batch_without_supervised_token_is_named():
    with pytest.raises(ValueError, match="no token of the batch is supervised"):
        check_gradients(supervised_tokens_max=np.float32(0), grad_max=np.zeros(3, np.float32))
