"""Which released model a name or a file is, compared with the one that the settings ask for."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from paligemma_jax.hub import published
from paligemma_jax.models import family


def check_name(config: ml_collections.ConfigDict, model: family.Model) -> None:
    """Raises a ValueError if `model_init` names a released file of another model or resolution.

    Looks at the name alone: before the file is fetched. `model` is that of the settings.
    """
    entry = published.FILES.get(config.model_init)
    if entry is None:
        return
    if entry.model not in model.kind.released:
        raise ValueError(
            f"model_init={config.model_init!r} is {entry.model}, which is not of the family "
            f"'{model.kind.name}': set model.family, or model_init=None (random)"
        )
    wanted = {} if _fits(entry, model) else _towers(entry, config, model)
    if config.res != entry.res and not config.model.img.resample_posemb:
        wanted["res"] = (config.res, entry.res)
    differing = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if differing:
        says = ", ".join(f"{key}={asked!r}" for key, (asked, _) in differing.items())
        remedy = ", ".join(f"{key}={needed!r}" for key, (_, needed) in differing.items())
        fits = [
            name
            for name, other in published.FILES.items()
            if other.model in model.kind.released
            and _fits(other, model)
            and other.res == config.res
        ]
        other = f", or model_init as one of {fits}" if fits else ", or model_init=None (random)"
        raise ValueError(
            f"model_init={config.model_init!r} is {entry.model} at {entry.res} px, but the "
            f"settings say {says}: set {remedy}{other}"
        )


def _fits(entry: published.Published, model: family.Model) -> bool:
    """Returns whether a released model's towers have the dimensions of `model`."""
    return model.is_released(entry.model)


def _towers(
    entry: published.Published, config: ml_collections.ConfigDict, model: family.Model
) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value in the settings, value that the file needs)}."""
    needed = model.kind.released[entry.model]
    return {key: (_value(config, key), value) for key, value in needed.items()}


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    found = functools.reduce(getattr, key.split("."), config)
    return dict(found) if isinstance(found, Mapping | ml_collections.ConfigDict) else found


def recognize(
    shapes: Mapping[str, Sequence[int]],
    config: ml_collections.ConfigDict,
    model: family.Model,
    *,
    where: str,
) -> str:
    """Returns a line that says which released model a file holds, if the settings are another's."""
    name = model.kind.recognize(shapes)
    if name is None:
        return ""
    needed = {key: value for key, value in model.kind.released[name].items() if value is not None}
    asked = {key: _value(config, key) for key in needed}
    if asked == needed:
        return ""
    remedy = " and ".join(f"{key}={value!r}" for key, value in needed.items())
    settings = " and ".join(repr(value) for value in asked.values())
    return f"{where} is {name}: set {remedy}, which are {settings}.\n"
