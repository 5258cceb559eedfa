"""Moondream2 as a family: names, released models, and a model with its dimensions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from paligemma_jax.models import family
from paligemma_jax.models.common import attention, layers, quantize
from paligemma_jax.models.moondream import moondream, variants, vit
from paligemma_jax.params import lora
from paligemma_jax.wording import phrases

Dims = TypeVar("Dims", variants.Vit, variants.Phi)

POSITION_EMBEDDING = "img/pos_embedding"
NAMES = family.Names(
    embedding=moondream.EMBEDDING,
    image="img/",
    text="text/.*",
    stacked=(moondream.LAYERS, moondream.BLOCKS),
    blocks=moondream.LAYERS,
    attention="text/layers/attn/.*",
    groups=(
        ("text/layers/attn/.*", "text_attn"),
        ("text/layers/mlp/.*", "text_mlp"),
        ("text/embedder/.*", "text_embedder"),
        ("text/head/.*", "text_head"),
        ("text/.*norm/.*", "text_norms"),
        ("img/blocks/attn/.*", "img_attn"),
        ("img/blocks/mlp/.*", "img_mlp"),
        ("img/projection/.*", "img_projection"),
        ("img/(pos_)?embedding.*", "img_embedding"),
        ("img/.*norm.*", "img_norms"),
    ),
    lora_targets={"llm": "text/layers/.*"},
    quantizable=quantize.Quantizable(
        weights="text/layers/.*/kernel|text/embedder/input_embedding|text/head/kernel|"
        "img/blocks/.*/kernel|img/projection/.*/kernel",
        table="text/embedder/input_embedding",
        stacked=(moondream.LAYERS, moondream.BLOCKS),
    ),
)

_unstack = jax.jit(functools.partial(layers.unstack, prefix=moondream.LAYERS))


@dataclasses.dataclass(frozen=True)
class Model(family.Model):
    """A Moondream2 of these dimensions."""

    dims: variants.Moondream

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
        return moondream.init(rng, self.dims)

    def init_factors(self, rng: jax.Array) -> dict[str, jax.Array]:
        return moondream.init_factors(rng, self.dims)

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return moondream.shapes(self.dims)

    def functions(
        self,
        compute: family.Compute,
        *,
        cache_dtype: str,
        cache_sharding: jax.sharding.NamedSharding | None = None,
    ) -> family.Functions:
        given: Any = {"model": self.dims, "compute": compute}
        cache: Any = {"cache_dtype": cache_dtype, "cache_sharding": cache_sharding}
        return family.Functions(
            compute=compute,
            vocab_size=self.vocab_size,
            embed=functools.partial(moondream.embed_images, **given),
            apply=functools.partial(moondream.apply, **given),
            logits=functools.partial(moondream.logits, model=self.dims, layout=compute.layout),
            prefill=functools.partial(moondream.prefill, **given, **cache),
            decode_step=functools.partial(moondream.decode_step, **given),
            select_rows=attention.select_rows,
            unstack=_unstack,
        )

    def parts(self) -> Sequence[family.Part]:
        img, llm = self.dims.img, self.dims.llm
        img_attention = 4 * img.depth * img.width
        runs = vit.NUM_SEEN if img.has_crops else 1
        text_attention = 4 * llm.depth * llm.width
        return (
            family.Part(
                ("img/embedding/", POSITION_EMBEDDING), "images", (POSITION_EMBEDDING,), runs=runs
            ),
            family.Part((moondream.BLOCKS,), "images", attention=img_attention, runs=runs),
            family.Part(("img/norm/",), "images", runs=runs),
            family.Part(("img/projection/",), "images"),
            # Rows of it are read, nothing is multiplied with it.
            family.Part((NAMES.embedding,), "vocabulary", ("input_embedding",)),
            family.Part((moondream.LAYERS,), "sequence", attention=text_attention),
            family.Part(("text/final_norm/",), "sequence"),
            family.Part(("text/head/",), "vocabulary"),
        )

    def cache_bytes(self, *, slots: int, itemsize: int) -> int:
        return 2 * self.dims.llm.depth * self.dims.llm.width * slots * itemsize

    def heads(self) -> Mapping[str, family.Heads]:
        img, llm = self.dims.img, self.dims.llm
        return {
            "img": family.Heads(img.head_dim),
            "llm": family.Heads(llm.head_dim, is_masked=True),
        }

    def metadata(self) -> dict[str, Any]:
        # How many heads the width is cut into shows in the shapes, what is rotated does not.
        return {"rotary_dim": self.dims.llm.rotary_dim}

    def image_metadata(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.dims.img), "projection_dim": self.dims.projection_dim}

    def fit_shapes(
        self, shapes: Mapping[str, Sequence[int]], *, resample: bool, where: str
    ) -> dict[str, Sequence[int]]:
        stored = shapes.get(POSITION_EMBEDDING)
        if stored is not None and tuple(stored[1:2]) != (self.num_image_tokens,):
            hint = (
                "model.img.resample_posemb: images of another resolution are nothing that "
                "Moondream2 has seen"
                if resample
                else f"the released model's are 729, of res={variants.RELEASED_RES}"
            )
            raise ValueError(
                f"{where}: {POSITION_EMBEDDING} has shape {tuple(stored)}, but res={self.res} has "
                f"{self.num_image_tokens} patches; {hint}"
            )
        return dict(shapes)

    def is_released(self, name: str) -> bool:
        img, llm = variants.RELEASED[name]
        return (variants.VITS[img], variants.PHIS[llm]) == (self.dims.img, self.dims.llm)


def make(spec: family.Spec) -> Model:
    """Returns the model of settings: an unknown variant or dimension is a ValueError."""
    if spec.final_logits_softcap:
        raise ValueError(
            f"model.llm.final_logits_softcap={spec.final_logits_softcap:g}: Moondream2 has no "
            f"soft-cap; expected 0"
        )
    img = _choose(variants.VITS, spec.img, "model.img")
    llm = _choose(variants.PHIS, spec.llm, "model.llm")
    return Model(variants.Moondream(img, llm, spec.res, spec.vocab_size, spec.lora))


def _choose(table: Mapping[str, Dims], tower: family.TowerSpec, key: str) -> Dims:
    if tower.variant not in table:
        hint = phrases.did_you_mean(tower.variant, table)
        raise ValueError(
            f"{key}.variant='{tower.variant}' is none of Moondream2's. {hint}"
            f"Known: {', '.join(table)}"
        )
    base, dims = table[tower.variant], dict(tower.dims or {})
    known = [field.name for field in dataclasses.fields(base) if field.type is int]
    if unknown := set(dims) - set(known):
        raise ValueError(f"{key}.dims: {sorted(unknown)} are no dimensions. Known: {known}")
    for name, value in dims.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{key}.dims.{name}={value!r}: expected a whole number from 1")
    return dataclasses.replace(base, **dims)


def recognize(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Returns which released model arrays of these shapes are; None: none of them."""
    for name, (img, llm) in variants.RELEASED.items():
        dims = variants.Moondream(variants.VITS[img], variants.PHIS[llm], variants.RELEASED_RES)
        expected = {n: tuple(x.shape) for n, x in moondream.shapes(dims).items()}
        if all(tuple(shapes.get(n, ())) == shape for n, shape in expected.items()):
            return name
    return None


def _settings(img: str, llm: str) -> dict[str, Any]:
    """Returns the settings of a model of two towers of the table."""
    return {
        "model.img.variant": img,
        "model.img.dims": None,
        "model.llm.variant": llm,
        "model.llm.dims": None,
    }


FAMILY = family.Family(
    name="moondream",
    names=NAMES,
    make=make,
    tokenizer="moondream",
    resampling="pillow_bicubic",
    resampling_of={name: "pillow_crops" for name, img in variants.VITS.items() if img.has_crops},
    released={name: _settings(img, llm) for name, (img, llm) in variants.RELEASED.items()},
    recognize=recognize,
)
