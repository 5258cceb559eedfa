"""From settings to a model: its family and dimensions, how it computes, what it holds in few bits.

What cuDNN's attention refuses is an error here, before anything is loaded. Its limits are those of
`jax.nn.dot_product_attention(implementation="cudnn")` in jax 0.10; what a cuDNN of some version
refuses besides shows when the step is compiled, before weights are read.
"""

import dataclasses
import functools
import importlib
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import lazy_array, partial_weights
from paligemma_jax.data import tokens
from paligemma_jax.models import family
from paligemma_jax.models.common import layers, quantize
from paligemma_jax.models.paligemma import as_family as paligemma
from paligemma_jax.params import lora, names, released_models, sharding
from paligemma_jax.settings import schema
from paligemma_jax.wording import phrases

AUTO = "auto"  # a value of compute_dtype and remat_policy
# What an automatic remat_policy chooses from. The first keeps the products with weights; those of
# attention, whose logits take more memory than time, are computed again. The one between computes
# an MLP's inner products again too. The smallest keeps what goes into every second or third layer,
# and is for what else would not fit.
FASTER, BETWEEN, SMALLER, SMALLEST = (
    "dots_with_no_batch_dims_saveable",
    layers.NARROW,
    "nothing_saveable",
    layers.SEGMENTS,
)
SEQUENCE_MULTIPLE, ROWS_AT_A_TIME = 128, 16  # of what TPUs and tensor cores multiply at once
BFLOAT16_CAPABILITY = 8.0  # of the first NVIDIA GPUs with bfloat16: Ampere


def describe(settings: schema.Settings, *, vocab_size: int) -> family.Model:
    """Returns the model's dimensions. `vocab_size`: the tokenizer's pieces.

    Raises:
      ValueError: an unknown variant or dimension, fewer embedding rows than pieces, or published
        weights with a tokenizer of another size than their own.
    """
    rows = settings.model.llm.vocab_size or vocab_size
    if rows != vocab_size and settings.model_init in released_models.FILES:
        raise ValueError(
            f"the tokenizer {settings.tokenizer} has {vocab_size} pieces, {settings.model_init} "
            f"knows {rows}: it would read every piece as another one. Use the model's own"
        )
    if rows < vocab_size:
        raise ValueError(
            f"model.llm.vocab_size={rows}, but the tokenizer {settings.tokenizer} has {vocab_size} "
            f"pieces: use the model's own tokenizer, or set model.llm.vocab_size=None"
        )
    chosen = choose_family(settings.model.family)
    spec = family.Spec(
        img=_tower(settings.model.img),
        llm=_tower(settings.model.llm),
        res=settings.res,
        vocab_size=rows,
        final_logits_softcap=float(settings.model.llm.final_logits_softcap),
        lora=make_lora(settings),
    )
    try:
        made = chosen.make(spec)
    except ValueError as error:
        error.add_note("the keys model.img.variant and .dims, model.llm.variant and .dims say it")
        raise
    if made.lora is None and settings.lora.targets is not None:
        raise ValueError(f"lora.targets: models of the family '{chosen.name}' have no factors")
    return made


def choose_resampling(settings: schema.Settings) -> str:
    """Returns how images become what the model sees, one of `images.RESAMPLINGS`."""
    chosen = choose_family(settings.model.family)
    return chosen.resampling_of.get(settings.model.img.variant, chosen.resampling)


def check_shipped(settings: schema.Settings) -> None:
    """Raises a ValueError if `model_init` is the package's base, and what goes with it is not."""
    if (base := released_models.SHIPPED.get(settings.model_init or "")) is None:
        return
    name = f"model_init={settings.model_init!r}"
    if settings.res not in base.resolutions:
        sides = " or ".join(f"res={side}" for side in base.resolutions)
        raise ValueError(f"{name} has no weights for res={settings.res}: set {sides}")
    resamples = settings.model.img.resample_posemb or settings.res != base.resolutions[0]
    wanted = {"tokenizer": base.tokenizer, "model.img.resample_posemb": resamples}
    wanted |= choose_family(settings.model.family).released.get(base.init, {})
    given = {key: functools.reduce(getattr, key.split("."), settings) for key in wanted}
    if differing := [key for key in wanted if given[key] != wanted[key]]:
        needed = ", ".join(f"{key}={wanted[key]!r}, not {given[key]!r}" for key in differing)
        raise ValueError(f"{name} goes with its own tokenizer and towers: set {needed}")


def _tower(tower: schema.ImgSettings | schema.LlmSettings) -> family.TowerSpec:
    return family.TowerSpec(tower.variant, dict(tower.dims) if tower.dims else None)


def make_lora(settings: schema.Settings) -> lora.Lora | None:
    """Returns which low-rank factors the model has, None without `lora.targets`."""
    targets = settings.lora.targets
    if targets is None:
        return None
    return lora.Lora(
        targets=_expand(targets, choose_family(settings.model.family).names),
        rank=settings.lora.rank,
        alpha=float(settings.lora.alpha),
        dropout=float(settings.lora.dropout),
        rank_stabilized=settings.lora.rank_stabilized,
    )


def _expand(targets: str, names: family.Names) -> str:
    """Returns the regex that lora.targets is, or is a family's short form of.

    Raises:
      ValueError: a word that is no short form. Names of parameters have a "/", so it matches none.
    """
    short_forms = names.lora_targets
    if targets in short_forms:
        return str(short_forms[targets])
    if re.fullmatch(r"[\w-]+", targets) and short_forms:
        expected = ", ".join(f"'{name}'" for name in short_forms)
        example = f", as '{names.attention}'" if names.attention else ""
        raise ValueError(
            f"config: lora.targets='{targets}': expected {expected} or a regex on full names"
            f"{example}. {phrases.did_you_mean(targets, short_forms)}"
        )
    return targets


def make_compute(settings: schema.Settings, device: Any = None) -> family.Compute:
    """Returns how the model runs: types, remat, dropout. A value it does not know is an error.

    `device`: that it runs on; None: the first one of this process.
    """
    try:
        return family.Compute(
            dtype=choose_dtype(settings.compute_dtype, device)[0],
            remat=SMALLER if settings.remat_policy == AUTO else settings.remat_policy,
            dropout=float(settings.model.llm.dropout),
            img_dropout=float(settings.model.img.dropout),
            attention=settings.model.llm.attention,
            img_attention=settings.model.img.attention,
        )
    except ValueError as error:
        raise ValueError(f"compute_dtype, remat_policy or dropout: {error}") from error


def choose_dtype(asked: str, device: Any = None) -> tuple[str, str]:
    """Returns (the type of a setting, why), where "auto" is what the device is made for.

    That is bfloat16 on TPUs and on GPUs that have units for it, float16 on GPUs before these (T4,
    V100: compute capability below 8), else float32. `device`: None: the first of this process.
    """
    if asked != AUTO:
        return asked, "as the settings say"
    device = device or jax.local_devices()[0]
    if device.platform == "tpu":
        return "bfloat16", device.device_kind
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or capability is None:
        return "float32", f"{device.device_kind}: no units for 16 bits that are known"
    dtype = "bfloat16" if float(capability) >= BFLOAT16_CAPABILITY else "float16"
    return dtype, f"{device.device_kind}, compute capability {capability}"


def padding(num_tokens: int) -> int:
    """Returns the tokens of padding that make a sequence a multiple of 128 at no cost, else 0.

    Rows of 16-bit numbers are computed 16 at a time: what is missing of these is computed anyhow.
    A multiple of 128 keeps attention's own products, whose columns go by 128, free of remainders.
    """
    missing = -num_tokens % SEQUENCE_MULTIPLE
    return missing if missing < ROWS_AT_A_TIME else 0


def pad_sequences(functions: family.Functions, model: family.Model) -> family.Functions:
    """Returns functions whose `apply` reads sequences with their `padding`, which nobody sees."""

    def apply(params: family.Params, batch: family.Batch, rng: jax.Array | None = None) -> Any:
        num_text = batch["text"].shape[1]
        missing = padding(batch["mask_image"].shape[1] * model.num_image_tokens + num_text)
        longer = {
            name: jnp.pad(batch[name], [(0, 0), (0, missing)])
            for name in ("text", "mask_ar", "mask_input")
        }
        return functions.apply(params, {**batch, **longer}, rng)[:, :num_text]

    return dataclasses.replace(functions, apply=apply)


def describe_sequence(settings: schema.Settings, model: family.Model, *, platform: str) -> str:
    """Returns the tokens of an example and their padding in words."""
    num_image, num_text = (
        settings.input.max_images * model.num_image_tokens,
        settings.input.text_len,
    )
    text = f"{num_image + num_text} tokens, {num_image} of images and {num_text} of text"
    missing = padding(num_image + num_text) if platform != "cpu" else 0
    return text + (f", padded to {num_image + num_text + missing} at no cost" if missing else "")


def for_decoding(
    functions: family.Functions, params: family.Params, *, blocks: str | None
) -> dict[str, Any]:
    """Returns parameters that serve decoding only: the blocks unstacked, the stacked ones gone.

    A loop over tokens that sliced them out of the stacked arrays would copy them for every token.
    """
    others = {n: x for n, x in params.items() if blocks is None or not n.startswith(blocks)}
    return {**others, **functions.unstack(params)}


# By the key model.family. Another one is written as docs/extending.md says, and put in here: itself
# or the module whose FAMILY it is, which is imported where the family is asked for.
FAMILIES: dict[str, family.Family | str] = {
    "paligemma": paligemma.FAMILY,
    "moondream": "paligemma_jax.models.moondream.as_family",
}


def choose_family(name: str) -> family.Family:
    """Returns the family of the key model.family; an unknown one is a ValueError."""
    if name not in FAMILIES:
        hint = phrases.did_you_mean(name, FAMILIES)
        raise ValueError(f"model.family='{name}' is not known. {hint}Known: {', '.join(FAMILIES)}")
    one = FAMILIES[name]
    return importlib.import_module(one).FAMILY if isinstance(one, str) else one


def load_tokenizer(name: str, path: pathlib.Path) -> tokens.Tokenizer:
    """Returns the tokenizer in a file, of the kind that models of this family have."""
    return tokens.load_tokenizer(path, kind=choose_family(name).tokenizer)


def family_of_arrays(names: Collection[str]) -> family.Family | None:
    """Returns the family whose table of the vocabulary is among these names; None: of none."""
    return next((one for one in map(choose_family, FAMILIES) if one.names.embedding in names), None)


CUDNN = "cudnn"  # a value of model.img.attention and model.llm.attention
# Compute capabilities (of Ampere, of Hopper) and the longest head that each serves.
FIRST_CAPABILITY, LONG_CAPABILITY = 8.0, 9.0
HEAD_DIM, LONG_HEAD_DIM = 128, 256


def check_attention(
    settings: schema.Settings,
    model: family.Model,
    compute: family.Compute,
    device: Any = None,
) -> None:
    """Raises a ValueError if a tower is to use cuDNN's attention and cannot, with the reason.

    `device`: that it runs on; None: the first one of this process.
    """
    towers = {"img": compute.img_attention, "llm": compute.attention}
    for tower in (tower for tower, kernel in towers.items() if kernel == CUDNN):
        problem = _attention_problem(
            settings, model, model.heads().get(tower), compute.dtype, device=device
        )
        if problem:
            raise ValueError(f"model.{tower}.attention='{CUDNN}': {problem}; or use 'xla'")


def _attention_problem(
    settings: schema.Settings,
    model: family.Model,
    heads: family.Heads | None,
    dtype: str,
    *,
    device: Any,
) -> str | None:
    if heads is None:
        return f"a model of the family '{model.kind.name}' has no attention there"
    if heads.softcap:
        return f"it has no soft-cap, and this model's is {heads.softcap:g} (attn_logits_softcap)"
    problem = _problem_of_lengths(settings, model) if heads.is_masked else None
    return problem or _problem_of_device(heads.head_dim, dtype, device or jax.local_devices()[0])


def _problem_of_lengths(settings: schema.Settings, model: family.Model) -> str | None:
    num_image = settings.input.max_images * model.num_image_tokens
    for length in (settings.input.text_len, *(settings.input.text_lens or ())):
        if (num_image + length) % 2:
            return (
                f"gradients through a mask need an even number of tokens, found {num_image} of "
                f"images and {length} of text: change input.text_len or input.text_lens by one"
            )
    return None


def _problem_of_device(head_dim: int, dtype: str, device: Any) -> str | None:
    capability = str(getattr(device, "compute_capability", ""))
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", capability):
        return f"it needs an NVIDIA GPU, found {device.device_kind}"
    if dtype != "bfloat16":
        return f"it needs compute_dtype bfloat16, found {dtype}"
    needed = FIRST_CAPABILITY
    if head_dim > LONG_HEAD_DIM or head_dim % 8:
        return f"heads must be a multiple of 8 up to {LONG_HEAD_DIM} long, found {head_dim}"
    if head_dim > HEAD_DIM:
        needed = LONG_CAPABILITY
    if float(capability) < needed:
        return f"heads of {head_dim} need compute capability {needed:g}, found {capability}"
    return None


# Which weights are held in 4 or 8 bits, as the key `quantize` says.

QUANTIZE = "quantize"
# Type in which quantized weights are written where a file is to hold all weights.
WRITTEN_DTYPE = "bfloat16"


def choose_quantized(
    settings: schema.Settings,
    shapes: Mapping[str, Any],
    quantizable: quantize.Quantizable | None,
    *,
    trainable: Collection[str],
    stored: partial_weights.Weights | None,
) -> dict[str, str]:
    """Returns which weights are quantized, and how: name -> one of `quantize.KINDS`.

    A single kind is meant for all weights that can have it and do not train; nor what a file of
    trained arrays holds itself, which was trained beside quantized ones.

    Args:
      settings: of the run.
      shapes: of all parameters.
      quantizable: which of them can be quantized; None: none.
      trainable: their names.
      stored: the weights to be read; None: random ones.

    Raises:
      ValueError: a rule that names a trainable weight or none that can be quantized; nothing left
        to quantize; a weight whose place is given axis by axis, which blocks do not have.
    """
    asked = settings.quantize
    if asked is None:
        return {}
    if quantizable is None:
        raise ValueError(f"{QUANTIZE}: no weight of a {settings.model.family} can be quantized")
    possible = quantizable.candidates(shapes)
    if isinstance(asked, str):
        kept = {*trainable, *(stored.own if stored and stored.base else ())}
        kinds = dict.fromkeys((name for name in possible if name not in kept), asked)
        if not kinds:
            raise ValueError(
                f"{QUANTIZE}='{asked}': every weight that can be quantized trains. Train less of "
                f"the base: set lora.targets='llm', or trainable, or {QUANTIZE}=None"
            )
    else:
        rules = [(str(regex), kind) for regex, kind in asked]
        matched = names.match(rules, possible, what=QUANTIZE, default=None)
        kinds = {name: kind for name, kind in matched.items() if kind is not None}
    if trained := sorted(kinds.keys() & set(trainable)):
        raise ValueError(
            f"{QUANTIZE}: '{trained[0]}' is trained, and only frozen weights can be quantized "
            f"({len(trained)} such). Put ('{trained[0]}', None) before its rule, or freeze it"
        )
    _check_places(settings, shapes, kinds)
    return kinds


def quantize_shapes(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    kinds: Mapping[str, str],
    quantizable: quantize.Quantizable | None,
) -> dict[str, Any]:
    """Returns shapes and types in memory, of quantized weights as `quantize.Quantized` of these."""

    def one(name: str, x: jax.ShapeDtypeStruct) -> Any:
        if quantizable is None or name not in kinds:
            return x
        unit = quantizable.unit_of(name, x.shape)
        return jax.eval_shape(functools.partial(quantize.quantize, kind=kinds[name], unit=unit), x)

    return {name: one(name, x) for name, x in shapes.items()}


def fit_dtype(array: jax.Array, wanted: Any) -> Any:
    """Returns an array in the type of `wanted`, or quantized as it is."""
    if isinstance(wanted, quantize.Quantized):
        return quantize.quantize(array, wanted.kind, unit=wanted.unit)
    return array.astype(wanted.dtype)


def fit_dtype_on_host(array: np.ndarray, wanted: Any) -> Any:
    """As `fit_dtype`, of an array in the host's memory and with hardly any more of it."""
    if isinstance(wanted, quantize.Quantized):
        return quantize.quantize_on_host(array, wanted.kind, unit=wanted.unit)
    return array if array.dtype == wanted.dtype else array.astype(wanted.dtype)


def as_written(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters that a file can hold: quantized ones as the numbers they stand for."""

    def one(array: Any) -> Any:
        if not isinstance(array, quantize.Quantized):
            return array
        return lazy_array.Deferred(
            array.shape,
            jnp.dtype(WRITTEN_DTYPE),
            lambda: np.asarray(jax.jit(lambda x: x.astype(WRITTEN_DTYPE))(array)),
        )

    return {name: one(array) for name, array in params.items()}


def kind_of(array: Any) -> str:
    """Returns "nf4", or the type of an array that is not quantized."""
    return array.kind if isinstance(array, quantize.Quantized) else str(array.dtype)


def describe_quantized(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Returns {"quantized": "9 x nf4"} of arrays or their shapes, {} where none is quantized."""
    kinds = [x.kind for x in arrays.values() if isinstance(x, quantize.Quantized)]
    counts = [f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))]
    return {"quantized": ", ".join(counts)} if counts else {}


def _check_places(
    settings: schema.Settings, shapes: Mapping[str, Any], kinds: Mapping[str, str]
) -> None:
    rules = [(str(regex), tactic) for regex, tactic in settings.sharding_strategy]
    tactics = names.match(rules, shapes, what=sharding.WHAT)
    for name in kinds:
        if sharding.names_dimensions(tactics[name]):
            raise ValueError(
                f"{sharding.WHAT}: {tactics[name]} gives a place to each axis of '{name}', which "
                f"is quantized and stored as blocks: give it 'fsdp' or 'replicate'"
            )
