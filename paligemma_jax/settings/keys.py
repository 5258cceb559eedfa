"""What a config key is: a field of a settings class, with its type, default, range and one line.

The classes are in schema. Here is how a field is written, and how the keys of a class are listed.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from paligemma_jax.wording import phrases

T = TypeVar("T")
# Rules are pairs (text, value): the value of a key that goes by names.
Rules = tuple[tuple[str, T], ...]

# What other trainers call a key.
ELSEWHERE = {
    "learning_rate": "lr",
    "weight_decay": "wd",
    "optimizer": "optax_name",
    "epochs": "total_epochs",
    "num_epochs": "total_epochs",
    "num_train_epochs": "total_epochs",
    "steps": "total_steps",
    "max_steps": "total_steps",
    "warmup_steps": "schedule",
    "per_device_train_batch_size": "input.batch_size",
    "gradient_accumulation_steps": "accumulation_steps",
    "max_grad_norm": "grad_clip_norm",
    "max_length": "input.text_len",
    "image_size": "res",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """A config key, read from a field.

    Attributes:
      name: dotted, "input.batch_size".
      default: None where the field has none and has to be set.
      types: of its value; None's type among them where it may be unset.
      doc: one line.
      choices: the values that it may have, or that the values of its rules may have; (): any.
      least: the smallest number that it may be.
      rule_types: of the values of rules [(text, value)], where it may hold rules.
      listed_types: of what it may list, where it may be a list of these alone.
      item: the settings class of its values, where it holds several of them by name.
      is_path: whether it may be a path.
    """

    name: str
    default: Any
    types: tuple[type, ...]
    doc: str
    choices: tuple[Any, ...]
    least: float | None
    rule_types: tuple[type, ...]
    listed_types: tuple[type, ...]
    item: type | None
    is_path: bool


def key(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    choices: tuple[Any, ...] = (),
    is_path: bool = False,
) -> Any:
    """Returns a field of a settings class: its default, what it does, and what it may be."""
    metadata = about(doc, least=least, choices=choices, is_path=is_path)
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def about(
    doc: str,
    *,
    least: float | None = None,
    choices: tuple[Any, ...] = (),
    is_path: bool = False,
) -> dict[str, Any]:
    """Returns what a field holds besides its default: alone for a field that has none."""
    return dict(doc=doc, least=least, choices=choices, is_path=is_path)


@functools.cache
def keys_of(settings_class: type, prefix: str = "") -> tuple[Key, ...]:
    """Returns the keys of a settings class and of the classes that its fields are of, in order."""
    known, hints = [], typing.get_type_hints(settings_class)
    for field in dataclasses.fields(settings_class):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            known += keys_of(hint, f"{name}.")
            continue
        rules = next((part for part in _parts(hint) if _is_rules(part)), None)
        known.append(
            Key(
                name=name,
                default=default_of(field),
                types=_types(hint),
                rule_types=_types(typing.get_args(typing.get_args(rules)[0])[1]) if rules else (),
                listed_types=_listed_types(hint),
                item=item_class(hint),
                **field.metadata,
            )
        )
    return tuple(known)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Returns the default of a field, None where it has to be set."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def changed(settings: Any) -> dict[str, Any]:
    """Returns the fields of a settings object that are not as by default."""
    fields = dataclasses.fields(settings)
    values = {field.name: (getattr(settings, field.name), default_of(field)) for field in fields}
    return {name: value for name, (value, default) in values.items() if value != default}


def item_class(hint: Any) -> type | None:
    """Returns the settings class of the values of `Mapping[str, ...]`, None of any other type."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is not Mapping or not dataclasses.is_dataclass(arguments[1]):
        return None
    return cast(type, arguments[1])


def texts_of_paths(values: Any, known: Iterable[Key]) -> dict[str, tuple[Any, str]]:
    """Returns dotted key -> (what holds it, its name there) of every text that may be a path.

    `values`: nested as the keys are, of any types.
    """
    places, waiting = {}, [("", values, known)]
    while waiting:
        prefix, outer, table = waiting.pop()
        for one in table:
            *folders, leaf = one.name.split(".")
            node = outer
            for folder in folders:
                node = node.get(folder) if isinstance(node, Mapping) else None
            value = node.get(leaf) if isinstance(node, Mapping) else None
            name = f"{prefix}{one.name}"
            if one.item and isinstance(value, Mapping):
                inner = keys_of(one.item)
                waiting += [(f"{name}.{key}.", each, inner) for key, each in value.items()]
            elif one.is_path and isinstance(value, str):
                places[name] = node, leaf
    return places


def markdown(groups: Mapping[str, Iterable[Key]]) -> str:
    """Returns a table of keys. `groups`: what stands before the names -> the keys."""
    lines = ["| key | default | what it does |", "| --- | --- | --- |"]
    for one, prefix in ((one, prefix) for prefix, known in groups.items() for one in known):
        choices = " (" + ", ".join(map(str, one.choices)) + ")" if one.choices else ""
        default = list(one.default) if isinstance(one.default, tuple) else one.default
        shown, doc = (str(text).replace("|", "\\|") for text in (default, one.doc))
        lines.append(f"| `{prefix}{one.name}` | `{shown}` | {doc}{choices} |")
    return "\n".join(lines)


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Returns "Did you mean 'x'? " for the nearest known name, or nothing.

    `prefix`: before all of these, so that the name that is shown is the full one.
    """
    return phrases.did_you_mean(name, known, prefix=prefix, aliases=ELSEWHERE)


def _parts(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a union joins, or the one type that there is."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _is_rules(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and typing.get_origin(arguments[0]) is tuple


def _listed_types(hint: Any) -> tuple[type, ...]:
    """Returns the types of the values of `tuple[X, ...]`; () where it is none, or of rules."""
    tuples = [part for part in _parts(hint) if typing.get_origin(part) is tuple]
    listed = typing.get_args(tuples[0])[0] if tuples and not _is_rules(tuples[0]) else Any
    return () if listed is Any else _types(listed)


def _types(hint: Any) -> tuple[type, ...]:
    """Returns the types of values that a config may give: a whole number does for any number."""
    types_of_values: list[type] = []
    for part in _parts(hint):
        if part is float:
            types_of_values += [int, float]
        elif typing.get_origin(part) is tuple:
            types_of_values += [list, tuple]
        elif typing.get_origin(part) is Mapping:
            types_of_values.append(dict)
        else:
            types_of_values.append(part)
    return tuple(types_of_values)
