"""The loss of big_vision's Colab on its model, for all that compile or time its step: jax alone."""

from typing import Any

import jax
import jax.numpy as jnp


def loss(model: Any, params: Any, batch: dict[str, Any]) -> jax.Array:
    """Returns the mean over examples of the mean over supervised tokens.

    `model` is a `big_vision.models.proj.paligemma.paligemma.Model`; `batch` has `image`, and
    `text`, `mask_ar` and `mask_loss` with the last token, which is only a label.
    """
    text, mask = batch["text"], batch["mask_loss"][:, 1:]
    logits, _ = model.apply(
        {"params": params}, batch["image"], text[:, :-1], batch["mask_ar"][:, :-1], train=True
    )
    one_hot = jax.nn.one_hot(text[:, 1:], logits.shape[-1])
    token_logp = jnp.sum(jax.nn.log_softmax(logits, axis=-1) * one_hot, axis=-1)
    return jnp.mean(-jnp.sum(token_logp * mask, axis=-1) / jnp.clip(jnp.sum(mask, -1), 1))
