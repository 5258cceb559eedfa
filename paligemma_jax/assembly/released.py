"""Which released model a name or a file is, compared with the one that the settings ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from paligemma_jax.hub import published
from paligemma_jax.models.paligemma import variants


def check_name(config: ml_collections.ConfigDict, model: variants.PaliGemma) -> None:
    """Raises a ValueError if `model_init` names a released file of another model or resolution.

    Looks at the name alone: before the file is fetched. `model` is that of the settings.
    """
    entry = published.FILES.get(config.model_init)
    if entry is None:
        return
    wanted = {} if _fits(entry, model) else _towers(entry, config)
    if config.res != entry.res and not config.model.img.resample_posemb:
        wanted["res"] = (config.res, entry.res)
    differing = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if differing:
        says = ", ".join(f"{key}={asked!r}" for key, (asked, _) in differing.items())
        remedy = ", ".join(f"{key}={needed!r}" for key, (_, needed) in differing.items())
        fits = [
            name
            for name, other in published.FILES.items()
            if _fits(other, model) and other.res == config.res
        ]
        other = f", or model_init as one of {fits}" if fits else ", or model_init=None (random)"
        raise ValueError(
            f"model_init={config.model_init!r} is {entry.model} at {entry.res} px, but the "
            f"settings say {says}: set {remedy}{other}"
        )


def _fits(entry: published.Published, model: variants.PaliGemma) -> bool:
    """Returns whether a released model's towers have the dimensions of `model`."""
    released = variants.released(entry.model, res=entry.res)
    return variants.visible(released.img, released.llm) == variants.visible(model.img, model.llm)


def _towers(
    entry: published.Published, config: ml_collections.ConfigDict
) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value in the settings, value that the file needs)}."""
    img, llm = variants.RELEASED[entry.model]
    return {
        "model.img.variant": (config.model.img.variant, img),
        "model.img.dims": (config.model.img.dims and config.model.img.dims.to_dict(), None),
        "model.llm.variant": (config.model.llm.variant, llm),
        "model.llm.dims": (config.model.llm.dims and config.model.llm.dims.to_dict(), None),
    }


def recognize(
    shapes: Mapping[str, Sequence[int]], config: ml_collections.ConfigDict, *, where: str
) -> str:
    """Returns a line that says which released model a file holds, if the settings are another's."""
    try:
        name, _ = variants.infer(shapes)
    except ValueError:
        return ""
    img, llm = variants.RELEASED[name]
    if (img, llm) == (config.model.img.variant, config.model.llm.variant):
        return ""
    return (
        f"{where} is {name}: set model.img.variant={img!r} and model.llm.variant={llm!r}, which "
        f"are {config.model.img.variant!r} and {config.model.llm.variant!r}.\n"
    )
