"""From settings to a model: its dimensions, how it computes, and what decoding reads."""

from typing import Any

import jax

from paligemma_jax.assembly import families
from paligemma_jax.hub import published
from paligemma_jax.models import family
from paligemma_jax.params import lora
from paligemma_jax.settings import schema

AUTO = "auto"  # a value of compute_dtype and remat_policy
# What an automatic remat_policy chooses from. The first keeps the products with weights; those of
# attention, whose logits take more memory than time, are computed again.
FASTER, SMALLER = "dots_with_no_batch_dims_saveable", "nothing_saveable"
BFLOAT16_CAPABILITY = 8.0  # of the first NVIDIA GPUs with bfloat16: Ampere


def describe(settings: schema.Settings, *, vocab_size: int) -> family.Model:
    """Returns the model's dimensions. `vocab_size`: the tokenizer's pieces.

    Raises:
      ValueError: an unknown variant or dimension, fewer embedding rows than pieces, or published
        weights with a tokenizer of another size than their own.
    """
    rows = settings.model.llm.vocab_size or vocab_size
    if rows != vocab_size and settings.model_init in published.FILES:
        raise ValueError(
            f"the tokenizer {settings.tokenizer} has {vocab_size} pieces, {settings.model_init} "
            f"knows {rows}: it would read every piece as another one. Use the model's own"
        )
    if rows < vocab_size:
        raise ValueError(
            f"model.llm.vocab_size={rows}, but the tokenizer {settings.tokenizer} has {vocab_size} "
            f"pieces: use the model's own tokenizer, or set model.llm.vocab_size=None"
        )
    chosen = families.choose(settings.model.family)
    made = chosen.make(
        family.Spec(
            img=_tower(settings.model.img),
            llm=_tower(settings.model.llm),
            res=settings.res,
            vocab_size=rows,
            final_logits_softcap=float(settings.model.llm.final_logits_softcap),
            lora=make_lora(settings),
        )
    )
    if made.lora is None and settings.lora.targets is not None:
        raise ValueError(f"lora.targets: models of the family '{chosen.name}' have no factors")
    return made


def _tower(tower: schema.ImgSettings | schema.LlmSettings) -> family.TowerSpec:
    return family.TowerSpec(tower.variant, dict(tower.dims) if tower.dims else None)


def make_lora(settings: schema.Settings) -> lora.Lora | None:
    """Returns which low-rank factors the model has, None without `lora.targets`."""
    targets = settings.lora.targets
    if targets is None:
        return None
    short_forms = families.choose(settings.model.family).names.lora_targets
    return lora.Lora(
        targets=str(short_forms.get(targets, targets)),
        rank=settings.lora.rank,
        alpha=float(settings.lora.alpha),
        dropout=float(settings.lora.dropout),
        rank_stabilized=settings.lora.rank_stabilized,
    )


def make_compute(settings: schema.Settings) -> family.Compute:
    """Returns how the model runs: types, remat, dropout. A value it does not know is an error."""
    try:
        return family.Compute(
            dtype=choose_compute_dtype(settings.compute_dtype)[0],
            remat=SMALLER if settings.remat_policy == AUTO else settings.remat_policy,
            dropout=float(settings.model.llm.dropout),
            img_dropout=float(settings.model.img.dropout),
            attention=settings.model.llm.attention,
            img_attention=settings.model.img.attention,
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


def for_decoding(
    functions: family.Functions, params: family.Params, *, blocks: str | None
) -> dict[str, Any]:
    """Returns parameters that serve decoding only: the blocks unstacked, the stacked ones gone.

    A loop over tokens that sliced them out of the stacked arrays would copy them for every token.
    """
    others = {n: x for n, x in params.items() if blocks is None or not n.startswith(blocks)}
    return {**others, **functions.unstack(params)}
