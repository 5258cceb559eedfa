"""Which released model a name or a file is, compared with the one that the settings ask for."""

from collections.abc import Mapping, Sequence

import ml_collections

from paligemma_jax.checkpoints import published
from paligemma_jax.params import variants


def check_name(config: ml_collections.ConfigDict) -> None:
    """Raises a ValueError if `model_init` names a released file of another model or resolution.

    Looks at the name alone: before the file is fetched.
    """
    entry = published.FILES.get(config.model_init)
    if entry is None or config.model.llm.dims or config.model.img.dims:
        return
    img, llm = variants.RELEASED[entry.model]
    wanted: dict[str, tuple[object, object]] = {
        "model.img.variant": (config.model.img.variant, img),
        "model.llm.variant": (config.model.llm.variant, llm),
    }
    if not config.model.img.resample_posemb:
        wanted["res"] = (config.res, entry.res)
    differing = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if differing:
        says = ", ".join(f"{key}={asked!r}" for key, (asked, _) in differing.items())
        remedy = ", ".join(f"{key}={needed!r}" for key, (_, needed) in differing.items())
        towers = config.model.img.variant, config.model.llm.variant
        fits = [
            name
            for name, other in published.FILES.items()
            if (*variants.RELEASED[other.model], other.res) == (*towers, config.res)
        ]
        other = f", or model_init as one of {fits}" if fits else ""
        raise ValueError(
            f"model_init={config.model_init!r} is {entry.model} at {entry.res} px, but the "
            f"settings say {says}: set {remedy}{other}"
        )


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
