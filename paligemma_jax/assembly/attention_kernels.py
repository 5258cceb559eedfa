"""Whether cuDNN's attention can serve a run: everything that it refuses is said here, first.

Its limits are those of `jax.nn.dot_product_attention(implementation="cudnn")` in jax 0.10. What a
cuDNN of some version refuses besides shows when the step is compiled, before weights are read.
"""

import re
from typing import Any

import jax

from paligemma_jax.models import family
from paligemma_jax.settings import schema

CUDNN = "cudnn"  # a value of model.img.attention and model.llm.attention
# Compute capabilities (of Ampere, of Hopper) and the longest head that each serves.
FIRST_CAPABILITY, LONG_CAPABILITY = 8.0, 9.0
HEAD_DIM, LONG_HEAD_DIM = 128, 256


def check(settings: schema.Settings, model: family.Model, compute: family.Compute) -> None:
    """Raises a ValueError if a tower is to use cuDNN's attention and cannot, with the reason."""
    towers = {"img": compute.img_attention, "llm": compute.attention}
    for tower in (tower for tower, kernel in towers.items() if kernel == CUDNN):
        problem = _problem(settings, model, model.heads().get(tower), compute.dtype)
        if problem:
            raise ValueError(f"model.{tower}.attention='{CUDNN}': {problem}; or use 'xla'")


def _problem(
    settings: schema.Settings,
    model: family.Model,
    heads: family.Heads | None,
    dtype: str,
) -> str | None:
    if heads is None:
        return f"a model of the family '{model.kind.name}' has no attention there"
    if heads.softcap:
        return f"it has no soft-cap, and this model's is {heads.softcap:g} (attn_logits_softcap)"
    problem = _problem_of_lengths(settings, model) if heads.is_masked else None
    return problem or _problem_of_device(heads.head_dim, dtype)


def _problem_of_lengths(settings: schema.Settings, model: family.Model) -> str | None:
    num_image = settings.input.max_images * model.num_image_tokens
    for length in (settings.input.text_len, *(settings.input.text_lens or ())):
        if (num_image + length) % 2:
            return (
                f"gradients through a mask need an even number of tokens, found {num_image} of "
                f"images and {length} of text: change input.text_len or input.text_lens by one"
            )
    return None


def _problem_of_device(head_dim: int, dtype: str) -> str | None:
    device: Any = jax.local_devices()[0]
    found = str(getattr(device, "compute_capability", ""))
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", found):
        return f"it needs an NVIDIA GPU, found {device.device_kind}"
    if dtype != "bfloat16":
        return f"it needs compute_dtype bfloat16, found {dtype}"
    capability, needed = float(found), FIRST_CAPABILITY
    if head_dim > LONG_HEAD_DIM or head_dim % 8:
        return f"heads must be a multiple of 8 up to {LONG_HEAD_DIM} long, found {head_dim}"
    if head_dim > HEAD_DIM:
        needed = LONG_CAPABILITY
    if capability < needed:
        return f"heads of {head_dim} need compute capability {needed:g}, found {found}"
    return None
