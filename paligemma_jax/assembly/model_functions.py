"""From settings to a model: its dimensions, how it computes, and its functions on a batch."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import ml_collections

from paligemma_jax.hub import published
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import lora
from paligemma_jax.settings import presets

AUTO = "auto"  # a value of compute_dtype and remat_policy
# What an automatic remat_policy chooses from. The first keeps the products with weights; those of
# attention, whose logits take more memory than time, are computed again.
FASTER, SMALLER = "dots_with_no_batch_dims_saveable", "nothing_saveable"
BFLOAT16_CAPABILITY = 8.0  # of the first NVIDIA GPUs with bfloat16: Ampere
IMAGE_TOKENS = "image_tokens"  # in a batch, in place of `image`

Batch = Mapping[str, jax.Array]
Dims = TypeVar("Dims", variants.Vit, variants.Gemma)


@dataclasses.dataclass(frozen=True)
class Functions:
    """A model closed over its dimensions: what training and decoding call.

    Attributes:
      compute: how it computes.
      vocab_size: V, rows of the embedding.
      embed: (params, uint8[B, M, R, R, 3]) -> image tokens [B, M, P, D].
      apply: (params, batch, rng | None) -> hidden [B, T, D] behind every text token.
      logits: (params, hidden) -> float32[..., V].
      prefill: (params, batch, *, max_new_tokens) -> (float32[B, V], cache).
      decode_step: (params, cache, int32[B]) -> (float32[B, V], cache).
    """

    compute: paligemma.Compute
    vocab_size: int
    embed: Callable[..., jax.Array]
    apply: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    prefill: Callable[..., Any]
    decode_step: Callable[..., Any]


def describe(config: ml_collections.ConfigDict, *, vocab_size: int) -> variants.PaliGemma:
    """Returns the model's dimensions. `vocab_size`: the tokenizer's pieces.

    Raises:
      ValueError: an unknown variant or dimension, fewer embedding rows than pieces, or published
        weights with a tokenizer of another size than their own.
    """
    rows = config.model.llm.vocab_size or vocab_size
    if rows != vocab_size and config.model_init in published.FILES:
        raise ValueError(
            f"the tokenizer {config.tokenizer} has {vocab_size} pieces, {config.model_init} knows "
            f"{rows}: it would read every piece as another one. Use PaliGemma's or Gemma's own"
        )
    if rows < vocab_size:
        raise ValueError(
            f"model.llm.vocab_size={rows}, but the tokenizer {config.tokenizer} has {vocab_size} "
            f"pieces: use the model's own tokenizer, or set model.llm.vocab_size=None"
        )
    made = variants.make(
        config.model.img.variant,
        config.model.llm.variant,
        res=config.res,
        vocab_size=rows,
        final_logits_softcap=float(config.model.llm.final_logits_softcap),
    )
    return dataclasses.replace(
        made,
        img=_replace_dims(made.img, config.model.img.dims, "model.img.dims"),
        llm=_replace_dims(made.llm, config.model.llm.dims, "model.llm.dims"),
        lora=make_lora(config),
    )


def make_lora(config: ml_collections.ConfigDict) -> lora.Lora | None:
    """Returns which low-rank factors the model has, None without `lora.targets`."""
    targets = config.lora.targets
    if targets is None:
        return None
    return lora.Lora(
        targets=str(presets.LORA_TARGETS.get(targets, targets)),
        rank=config.lora.rank,
        alpha=float(config.lora.alpha),
        dropout=float(config.lora.dropout),
        rank_stabilized=config.lora.rank_stabilized,
    )


def make_compute(config: ml_collections.ConfigDict) -> paligemma.Compute:
    """Returns how the model runs: types, remat, dropout. A value it does not know is an error."""
    try:
        return paligemma.Compute(
            dtype=choose_compute_dtype(config.compute_dtype)[0],
            remat=SMALLER if config.remat_policy == AUTO else config.remat_policy,
            dropout=float(config.model.llm.dropout),
            img_dropout=float(config.model.img.dropout),
            attention=config.model.llm.attention,
            img_attention=config.model.img.attention,
        )
    except ValueError as error:
        raise ValueError(f"compute_dtype, remat_policy or dropout: {error}") from error


def choose_compute_dtype(asked: str) -> tuple[str, str]:
    """Returns (the compute type of a setting, why), where "auto" is what the device is made for.

    That is bfloat16 on TPUs and on GPUs that have units for it, float16 on GPUs before these (T4,
    V100: compute capability below 8), else float32.
    """
    device = jax.local_devices()[0]
    if asked != AUTO:
        return asked, "as the settings say"
    if device.platform == "tpu":
        return "bfloat16", device.device_kind
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or capability is None:
        return "float32", f"{device.device_kind}: no units for 16 bits that are known"
    dtype = "bfloat16" if float(capability) >= BFLOAT16_CAPABILITY else "float16"
    return dtype, f"{device.device_kind}, compute capability {capability}"


@jax.jit
def unstack(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the language model's blocks once more, an array per layer: decoding reads these.

    A loop over tokens that sliced them out of the stacked arrays would copy them for every token.
    """
    return paligemma.unstack(params)


def for_decoding(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns parameters that serve decoding only: its blocks unstacked, the stacked ones gone."""
    others = {name: x for name, x in params.items() if not name.startswith(paligemma.LAYERS)}
    return {**others, **unstack(params)}


def make_functions(
    model: variants.PaliGemma,
    compute: paligemma.Compute,
    *,
    cache_dtype: str,
    cache_sharding: jax.sharding.NamedSharding | None = None,
) -> Functions:
    """Returns the model's functions on batches as the data pipeline makes them.

    A batch has `image`, or in its place `image_tokens` that were embedded before.
    """

    def apply(params: paligemma.Params, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        apply_to = paligemma.apply_embedded if IMAGE_TOKENS in batch else paligemma.apply
        return apply_to(params, *_inputs(batch), model=model, compute=compute, rng=rng)

    def prefill(params: paligemma.Params, batch: Batch, *, max_new_tokens: int):
        num_images, num_text = batch["mask_image"].shape[1], batch["text"].shape[1]
        num_prompt = num_images * model.num_image_tokens + num_text
        read = paligemma.prefill_embedded if IMAGE_TOKENS in batch else paligemma.prefill
        return read(
            params,
            *_inputs(batch),
            model=model,
            compute=compute,
            cache_len=num_prompt + max_new_tokens,
            cache_dtype=cache_dtype,
            cache_sharding=cache_sharding,
        )

    return Functions(
        compute=compute,
        vocab_size=model.vocab_size,
        embed=functools.partial(paligemma.embed_images, model=model, compute=compute),
        apply=apply,
        logits=functools.partial(paligemma.logits, model=model),
        prefill=prefill,
        decode_step=functools.partial(paligemma.decode_step, model=model, compute=compute),
    )


def _inputs(batch: Batch) -> tuple[jax.Array, ...]:
    image = IMAGE_TOKENS if IMAGE_TOKENS in batch else "image"
    return tuple(batch[k] for k in (image, "mask_image", "text", "mask_ar", "mask_input"))


def _replace_dims(tower: Dims, dims: Mapping[str, Any] | None, key: str) -> Dims:
    known = [field.name for field in dataclasses.fields(tower)]
    if unknown := set(dims or {}) - set(known):
        raise ValueError(f"{key}: {sorted(unknown)} are no dimensions. Known: {known}")
    for name, value in (dims or {}).items():
        kind = type(getattr(tower, name))
        if type(value) is not kind and not (kind is float and type(value) is int):
            found = type(value).__name__
            raise ValueError(f"{key}.{name}={value!r}: expected {kind.__name__}, found {found}")
        if kind is int and value < 1:
            raise ValueError(f"{key}.{name}={value}: expected 1 or more")
    return dataclasses.replace(tower, **dict(dims or {}))
