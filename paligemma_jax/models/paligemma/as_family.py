"""PaliGemma 1 and 2 as a family: names, released models, and a model with its dimensions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from paligemma_jax.models import family
from paligemma_jax.models.common import quantize
from paligemma_jax.models.paligemma import paligemma, siglip, variants
from paligemma_jax.params import lora

Dims = TypeVar("Dims", variants.Vit, variants.Gemma)

POSITION_EMBEDDING = "img/pos_embedding"
NAMES = family.Names(
    embedding=paligemma.EMBEDDING,
    image="img/",
    text="llm/.*",
    stacked=(paligemma.LAYERS, paligemma.BLOCKS),
    blocks=paligemma.LAYERS,
    attention="llm/layers/attn/.*",
    groups=(
        ("llm/layers/attn/.*", "llm_attn"),
        ("llm/layers/mlp/.*", "llm_mlp"),
        ("llm/embedder/.*", "llm_embedder"),
        ("llm/.*norm/scale", "llm_norms"),
        ("img/.*/MultiHeadDotProductAttention_0/.*", "img_attn"),
        ("img/.*/MlpBlock_0/.*", "img_mlp"),
        ("img/head/.*", "img_head"),
        ("img/(pos_)?embedding.*", "img_embedding"),
        ("img/.*[nN]orm.*", "img_norms"),
    ),
    # The projections of the language model; and what transformers and PEFT adapt if given q_proj,
    # k_proj, ..., down_proj: SigLIP has layers of the first three names.
    lora_targets={
        "llm": "llm/layers/.*",
        "hf_compat": "llm/layers/.*|img/.*/(query|key|value)/kernel",
    },
    quantizable=quantize.Quantizable(
        weights="llm/layers/(attn|mlp)/.*|llm/embedder/input_embedding|img/Transformer/.*/kernel|"
        "img/head/kernel",
        table="llm/embedder/input_embedding",
        stacked=(paligemma.LAYERS, paligemma.BLOCKS),
    ),
)
# What the shapes of a language model's arrays cannot tell.
HIDDEN = ("attn_logits_softcap", "final_logits_softcap", "query_scale")

_unstack = jax.jit(paligemma.unstack)


@dataclasses.dataclass(frozen=True)
class Model(family.Model):
    """A PaliGemma of these dimensions."""

    dims: variants.PaliGemma

    @property
    def kind(self) -> family.Family:
        return FAMILY

    @property
    def res(self) -> int:
        return self.dims.res

    @property
    def vocab_size(self) -> int:
        return self.dims.vocab_size

    @property
    def num_image_tokens(self) -> int:
        return self.dims.num_image_tokens

    @property
    def image_width(self) -> int:
        return self.dims.llm.width

    @property
    def lora(self) -> lora.Lora | None:
        return self.dims.lora

    def init(self, rng: jax.Array) -> dict[str, jax.Array]:
        return paligemma.init(rng, self.dims)

    def init_factors(self, rng: jax.Array) -> dict[str, jax.Array]:
        return paligemma.init_factors(rng, self.dims)

    def functions(
        self,
        compute: family.Compute,
        *,
        cache_dtype: str,
        cache_sharding: jax.sharding.NamedSharding | None = None,
    ) -> family.Functions:
        given: Any = {"model": self.dims, "compute": compute}

        def apply(
            params: family.Params, batch: family.Batch, rng: jax.Array | None = None
        ) -> jax.Array:
            is_embedded = family.IMAGE_TOKENS in batch
            apply_to = paligemma.apply_embedded if is_embedded else paligemma.apply
            return apply_to(params, *_inputs(batch), **given, rng=rng)

        def prefill(params: family.Params, batch: family.Batch, *, max_new_tokens: int) -> Any:
            num_images, num_text = batch["mask_image"].shape[1], batch["text"].shape[1]
            num_prompt = num_images * self.num_image_tokens + num_text
            is_embedded = family.IMAGE_TOKENS in batch
            read = paligemma.prefill_embedded if is_embedded else paligemma.prefill
            return read(
                params,
                *_inputs(batch),
                **given,
                cache_len=num_prompt + max_new_tokens,
                cache_dtype=cache_dtype,
                cache_sharding=cache_sharding,
            )

        return family.Functions(
            compute=compute,
            vocab_size=self.vocab_size,
            embed=functools.partial(paligemma.embed_images, **given),
            apply=apply,
            logits=functools.partial(paligemma.logits, model=self.dims, layout=compute.layout),
            prefill=prefill,
            decode_step=functools.partial(paligemma.decode_step, **given),
            select_rows=paligemma.select_rows,
            unstack=_unstack,
        )

    def parts(self) -> Sequence[family.Part]:
        img, llm = self.dims.img, self.dims.llm
        img_attention = 4 * img.depth * img.width
        llm_attention = 4 * llm.depth * llm.num_heads * llm.head_dim
        return (
            family.Part(("img/embedding/", POSITION_EMBEDDING), "images", (POSITION_EMBEDDING,)),
            family.Part((paligemma.BLOCKS,), "images", attention=img_attention),
            family.Part(("img/Transformer/encoder_norm/",), "images"),
            family.Part(("img/head/",), "images"),
            family.Part((NAMES.embedding,), "vocabulary"),
            family.Part((paligemma.LAYERS,), "sequence", attention=llm_attention),
            family.Part(("llm/final_norm/",), "sequence"),
        )

    def cache_bytes(self, *, slots: int, itemsize: int) -> int:
        llm = self.dims.llm
        return 2 * llm.depth * llm.num_kv_heads * llm.head_dim * slots * itemsize

    def heads(self) -> Mapping[str, family.Heads]:
        img, llm = self.dims.img, self.dims.llm
        text = family.Heads(llm.head_dim, softcap=llm.attn_logits_softcap, is_masked=True)
        return {"img": family.Heads(img.head_dim), "llm": text}

    def metadata(self) -> dict[str, Any]:
        return {key: getattr(self.dims.llm, key) for key in HIDDEN}

    def image_metadata(self) -> dict[str, Any]:
        return dataclasses.asdict(self.dims.img)

    def fit_shapes(
        self, shapes: Mapping[str, Sequence[int]], *, resample: bool, where: str
    ) -> dict[str, Sequence[int]]:
        fitted = dict(shapes)
        if POSITION_EMBEDDING in shapes:
            stored = shapes[POSITION_EMBEDDING]
            siglip.check_position_embedding(stored, self.dims, resample=resample, where=where)
            fitted[POSITION_EMBEDDING] = (1, self.dims.grid**2, stored[2])
        return fitted

    def fit(self, name: str, array: np.ndarray) -> np.ndarray:
        if name != POSITION_EMBEDDING:
            return array
        return siglip.resample_position_embedding(array, self.dims.grid)

    def is_released(self, name: str) -> bool:
        other = variants.released(name, res=self.res)
        return variants.visible(other.img, other.llm) == variants.visible(
            self.dims.img, self.dims.llm
        )


def make(spec: family.Spec) -> Model:
    """Returns the model of settings: an unknown variant or dimension is a ValueError."""
    made = variants.make(
        spec.img.variant,
        spec.llm.variant,
        res=spec.res,
        vocab_size=spec.vocab_size,
        final_logits_softcap=spec.final_logits_softcap,
    )
    img = _replace_dims(made.img, spec.img.dims, "model.img.dims")
    llm = _replace_dims(made.llm, spec.llm.dims, "model.llm.dims")
    return Model(dataclasses.replace(made, img=img, llm=llm, lora=spec.lora))


def recognize(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Returns which released model arrays of these shapes are; None: none of them."""
    try:
        return variants.infer(shapes)[0]
    except ValueError:
        return None


def _settings(img: str, llm: str) -> dict[str, Any]:
    """Returns the settings of a model of two towers of the table."""
    return {
        "model.img.variant": img,
        "model.img.dims": None,
        "model.llm.variant": llm,
        "model.llm.dims": None,
    }


def _inputs(batch: family.Batch) -> tuple[jax.Array, ...]:
    image = family.IMAGE_TOKENS if family.IMAGE_TOKENS in batch else "image"
    return tuple(batch[k] for k in (image, "mask_image", "text", "mask_ar", "mask_input"))


def _replace_dims(tower: Dims, dims: Mapping[str, Any] | None, key: str) -> Dims:
    known = [field.name for field in dataclasses.fields(tower)]
    if unknown := set(dims or {}) - set(known):
        raise ValueError(f"{key}: {sorted(unknown)} are no dimensions. Known: {known}")
    for name, value in (dims or {}).items():
        kind = type(getattr(tower, name))
        if type(value) is not kind and not (kind is float and type(value) is int):
            actual = type(value).__name__
            raise ValueError(f"{key}.{name}={value!r}: expected {kind.__name__}, found {actual}")
        if kind is int and value < 1:
            raise ValueError(f"{key}.{name}={value}: expected 1 or more")
    return dataclasses.replace(tower, **dict(dims or {}))


FAMILY = family.Family(
    name="paligemma",
    names=NAMES,
    make=make,
    released={name: _settings(img, llm) for name, (img, llm) in variants.RELEASED.items()},
    recognize=recognize,
)
