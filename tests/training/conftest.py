"""The reference runs of big_vision and the tiny PaliGemma they were made with; a toy model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants


@pytest.fixture(scope="session")
def tiny_paligemma():
    """(apply_fn, logits_fn) of the references' model, in float32."""
    model = variants.make("tiny/14", "tiny", res=56, vocab_size=1400, final_logits_softcap=0.0)

    def apply_fn(params, inputs, rng):
        keys = ("image", "mask_image", "text", "mask_ar", "mask_input")
        return paligemma.apply(
            params,
            *(inputs[key] for key in keys),
            model=model,
            compute=paligemma.Compute(),
            rng=rng,
        )

    return apply_fn, functools.partial(paligemma.logits, model=model)


@pytest.fixture(scope="session")
def reference_run(load_reference):
    """Returns (parameters, batches, results) of `train_{name}_pg1.npz`."""

    def load(name):
        params, _, _ = load_reference("forward_pg1")
        _, inputs, out = load_reference(f"train_{name}_pg1")
        inputs["image"] = inputs.pop("image_u8")[:, :, None]
        inputs["mask_image"] = np.ones(inputs["image"].shape[:3], bool)
        num_steps = len(inputs["text"])
        batches = [{name: x[i] for name, x in inputs.items()} for i in range(num_steps)]
        return params, batches, out

    return load


V, D = 11, 4

# For programs that run a few times: they compile in a fifth of the time, and compute the same.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


class Toy:
    """A model of three arrays: each token sees the mean of the embeddings up to itself."""

    @staticmethod
    def params(seed=0):
        rng = np.random.default_rng(seed)
        shapes = {"llm/embedder": (V, D), "llm/mix": (D, D), "llm/out": (D, V)}
        return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}

    @staticmethod
    def batch(seed=0, size=8, length=7):
        rng = np.random.default_rng(seed)
        text = rng.integers(1, V, (size, length), dtype=np.int32)
        prefix = rng.integers(1, 5, (size, 1))
        suffix = (np.arange(length) >= prefix).astype(np.int32)
        ones = np.ones_like(text)
        return dict(text=text, mask_ar=suffix, mask_loss=suffix, mask_input=ones)

    @staticmethod
    def apply_fn(params, inputs, rng, dropout=0.0):
        x = params["llm/embedder"].astype(jnp.float32)[inputs["text"]]
        x = jnp.cumsum(x, axis=1) / jnp.arange(1.0, x.shape[1] + 1)[:, None]
        if dropout and rng is not None:
            x *= jax.random.bernoulli(rng, 1 - dropout, x.shape) / (1 - dropout)
        return jnp.tanh(x @ params["llm/mix"])

    @staticmethod
    def logits_fn(params, hidden):
        return hidden @ params["llm/out"]


@pytest.fixture(scope="session")
def toy():
    return Toy


@pytest.fixture(scope="session")
def quick_compile():
    """Options of the compiler for programs that are read, or run a few times."""
    return QUICK_COMPILE


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` with the state donated, for steps that a test calls a few times."""
    return functools.partial(jax.jit, donate_argnums=0, compiler_options=QUICK_COMPILE)
