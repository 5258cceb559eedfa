"""Which released model a name or a file is, compared with the one that the settings ask for."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.hub import published
from paligemma_jax.models import family
from paligemma_jax.settings import schema


def check_name(settings: schema.Settings, model: family.Model) -> None:
    """Raises a ValueError if `model_init` names a released file of another model or resolution.

    Looks at the name alone: before the file is fetched. `model` is that of the settings.
    """
    entry = published.FILES.get(settings.model_init or "")
    if entry is None:
        return
    if entry.model not in model.kind.released:
        raise ValueError(
            f"model_init={settings.model_init!r} is {entry.model}, which is not of the family "
            f"'{model.kind.name}': set model.family, or model_init=None (random)"
        )
    wanted = {} if _fits(entry, model) else _towers(entry, settings, model)
    if settings.res != entry.res and not settings.model.img.resample_posemb:
        wanted["res"] = (settings.res, entry.res)
    differing = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if differing:
        says = ", ".join(f"{key}={asked!r}" for key, (asked, _) in differing.items())
        remedy = ", ".join(f"{key}={needed!r}" for key, (_, needed) in differing.items())
        fits = [
            name
            for name, other in published.FILES.items()
            if other.model in model.kind.released
            and _fits(other, model)
            and other.res == settings.res
        ]
        other = f", or model_init as one of {fits}" if fits else ", or model_init=None (random)"
        raise ValueError(
            f"model_init={settings.model_init!r} is {entry.model} at {entry.res} px, but the "
            f"settings say {says}: set {remedy}{other}"
        )


def _fits(entry: published.Published, model: family.Model) -> bool:
    """Returns whether a released model's towers have the dimensions of `model`."""
    return model.is_released(entry.model)


def _towers(
    entry: published.Published, settings: schema.Settings, model: family.Model
) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value in the settings, value that the file needs)}."""
    needed = model.kind.released[entry.model]
    return {key: (_value(settings, key), value) for key, value in needed.items()}


def _value(settings: schema.Settings, key: str) -> Any:
    value = functools.reduce(getattr, key.split("."), settings)
    return dict(value) if isinstance(value, Mapping) else value


def recognize(
    shapes: Mapping[str, Sequence[int]],
    settings: schema.Settings,
    model: family.Model,
    *,
    where: str,
) -> str:
    """Returns a line that says which released model a file holds, if the settings are another's."""
    name = model.kind.recognize(shapes)
    if name is None:
        return ""
    needed = {key: value for key, value in model.kind.released[name].items() if value is not None}
    asked = {key: _value(settings, key) for key in needed}
    if asked == needed:
        return ""
    remedy = " and ".join(f"{key}={value!r}" for key, value in needed.items())
    given = " and ".join(repr(value) for value in asked.values())
    return f"{where} is {name}: set {remedy}, which are {given}.\n"
