"""What a run without a config starts from: a released model, weights of any format, or nothing."""

import dataclasses
import os
import pathlib
from typing import Any

from paligemma_jax.assembly import assembly, weights
from paligemma_jax.console import say
from paligemma_jax.export import weights_source
from paligemma_jax.models.paligemma import as_family, variants
from paligemma_jax.params import lora, names, released_models
from paligemma_jax.settings import schema, template

LORA = "lora"  # a key of `presets.METHODS`, and what all keys of factors begin with


def find(model: str, method: str | None, res: int | None) -> template.Start:
    """Returns how a run starts from the name of a model, a name of weights, or a path of weights.

    Raises:
      ValueError: no such name or path, weights that cannot be read, or a method that they exclude.
    """
    if entry := released_models.FILES.get(model):
        started = template.start_from(entry.model, method, res or entry.res)
        at_another = {"model.img.resample_posemb": True} if started.res != entry.res else {}
        return dataclasses.replace(started, keys={"model_init": model, **at_another})
    is_path = "://" in model or pathlib.Path(model).expanduser().exists()
    if not is_path:
        return template.start_from(model, method, res)
    with weights.named_by("--model", model, "It may be a folder of transformers or PEFT, or a run"):
        stored = weights.find(model)
        source = weights_source.WeightsSource(stored.path, stored)
        return _describe(model, weights_source.infer_model(source), stored.arrays, method, res)


def _describe(
    model: str,
    dims: variants.PaliGemma,
    arrays: Any,
    method: str | None,
    res: int | None,
) -> template.Start:
    """Returns how a run starts from weights of these dimensions."""
    place = model if "://" in model else os.path.abspath(pathlib.Path(model).expanduser())
    keys: dict[str, Any] = {"model_init": place}
    if dims.lora:
        if method not in (None, LORA):
            raise ValueError(
                f"--method {method}: {model} has LoRA factors, which train on: leave --method out"
            )
        method = LORA
        keys |= _factors(dims.lora)
    usual = schema.Settings()
    tokenizer = assembly.choose_tokenizer(usual, place)
    if tokenizer != usual.tokenizer:
        keys["tokenizer"] = tokenizer
    if res not in (None, dims.res):
        say.info(f"res: {res}; position embeddings of {dims.res} pixels are resampled")
        keys["model.img.resample_posemb"] = True
    whole = {name: x for name, x in arrays.items() if not names.is_factor(name)}
    released = as_family.recognize({name: x.shape for name, x in whole.items()})
    say.info(
        f"model: {released or 'none of the released ones'}, {dims.res} px, {dims.llm.depth} layers "
        f"of width {dims.llm.width}"
    )
    llm = dataclasses.asdict(dims.llm)
    if softcap := llm.pop("final_logits_softcap"):
        keys["model.llm.final_logits_softcap"] = softcap
    if released and _is_as_released(dims, released):
        values: dict[str, Any] = dict(model=released, method=template.check_method(method))
        return template.Start(preset="finetune", values=values, res=res or dims.res, keys=keys)
    values = dict(
        img=dataclasses.asdict(dims.img),
        llm=llm,
        vocab_size=dims.vocab_size,
        method=template.check_method(method),
    )
    return template.Start(preset="finetune_other", values=values, res=res or dims.res, keys=keys)


def _is_as_released(dims: variants.PaliGemma, name: str) -> bool:
    """Whether a preset of a released model describes weights to the last switch."""
    softcap = dims.llm.final_logits_softcap  # which is a key of its own
    other = variants.released(name, res=dims.res, final_logits_softcap=softcap)
    is_known = dims.res in released_models.RESOLUTIONS
    return is_known and dims == dataclasses.replace(other, lora=dims.lora)


def _factors(factors: lora.Lora) -> dict[str, Any]:
    """Returns the keys that say which factors weights have, and how they act."""
    usual = schema.LoraSettings()
    values = dataclasses.asdict(factors)
    return {
        f"lora.{name}": value for name, value in values.items() if value != getattr(usual, name)
    }
