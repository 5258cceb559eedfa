"""Parameter names: the flat '/'-namespace, and the one function that matches rules against it.

A parameter is known by its big_vision name, for example `llm/layers/attn/q_einsum/w`. Inside the
program parameters are a flat `dict[str, Array]`; only flax sees a nested tree. Every question about
a parameter (train it? which learning rate? where does it live?) is answered by a list of rules
`[(regex, value), ...]` through `match`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from paligemma_jax.wording import phrases

T = TypeVar("T")
Rules = Sequence[tuple[str, T]]

# The low-rank factors (LoRA) that may stand beside a weight.
FACTORS = ("lora_a", "lora_b")
ANY_FACTOR = ".*lora_[ab]"
_NONE: Any = object()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dictionary as a flat one: `{"a": {"b": x}}` -> `{"a/b": x}`, sorted."""
    flat = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`. A name that is also another's folder is a ValueError."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise ValueError(f"parameter '{name}': '{folder}' is already the name of an array")
        if leaf in node:
            raise ValueError(f"parameter '{name}' is given twice, or is also a folder of others")
        node[leaf] = value
    return tree


def factor(base: str, which: str) -> str:
    """Returns the name of one of the `FACTORS` of a weight.

    "q_einsum/w" has "q_einsum/lora_a", "query/kernel" has "query/kernel_lora_a".
    """
    folder, slash, leaf = base.rpartition("/")
    return f"{folder}{slash}{which}" if leaf == "w" else f"{base}_{which}"


def is_factor(name: str) -> bool:
    """Whether a name is that of a low-rank factor."""
    return name.endswith(FACTORS)


def base_of(name: str) -> str:
    """Returns the weight that a factor stands beside; any other name is its own."""
    if not is_factor(name):
        return name
    stem = name[: -len(FACTORS[0])]
    return stem.removesuffix("_") if stem.endswith("_") else f"{stem}w"


def group(rules: Rules[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Returns group -> which of the names belong to it.

    Args:
      rules: (regex, group) pairs; the first that matches counts. What none of them matches is
        grouped by the beginning of its name, up to the first "/".
      names: parameter names.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        matching = [label for regex, label in rules if re.fullmatch(regex, name)]
        groups.setdefault(matching[0] if matching else name.split("/")[0], []).append(name)
    return groups


def match(
    rules: Rules[T], names: Iterable[str], *, what: str, default: Any = _NONE
) -> dict[str, T]:
    """Returns for each name the value of the first rule whose regex matches all of it.

    A low-rank factor that no rule covers has the value of the weight it stands beside.

    Args:
      rules: (regex, value) pairs. A regex must match the full name (`re.fullmatch`).
      names: parameter names.
      what: the config key the rules come from, for error messages.
      default: value of the names that no rule covers; without it they are an error.

    Raises:
      ValueError: a name that no rule covers, a rule that matches no name (of all names, not only
        of those left over by earlier rules), or a broken regex; near misses are shown.
    """
    names = list(names)
    compiled = [(_compile(regex, what), value) for regex, value in rules]
    for regex, _ in compiled:
        if not any(regex.fullmatch(name) for name in names):
            near = phrases.nearest(_plain(regex.pattern), names)
            raise ValueError(
                f"{what}: rule '{regex.pattern}' matches no parameter. A rule must match the whole "
                f"name. Nearest names: {', '.join(near) or 'none'}"
            )
    matched = {}
    for name in names:
        values = [value for regex, value in compiled if regex.fullmatch(name)]
        values += [value for regex, value in compiled if regex.fullmatch(base_of(name))]
        if not values and default is _NONE:
            patterns = [regex.pattern for regex, _ in compiled]
            raise ValueError(
                f"{what}: no rule covers parameter '{name}'. Rules: {patterns}. "
                f"Add a rule for it, or ('.*', ...) as the last one"
            )
        matched[name] = values[0] if values else default
    return matched


def select(regex: str, names: Iterable[str], *, what: str) -> list[str]:
    """Returns the names that `regex` matches fully; matching none is a ValueError."""
    return [
        name for name, hit in match([(regex, True)], names, what=what, default=False).items() if hit
    ]


def partition(params: Mapping[str, T], chosen: Iterable[str]) -> tuple[dict[str, T], dict[str, T]]:
    """Splits parameters into (those named in `chosen`, the others). `merge` joins them again."""
    chosen = set(chosen)
    if missing := chosen - set(params):
        raise ValueError(f"no such parameters: {sorted(missing)}")
    inside = {name: value for name, value in params.items() if name in chosen}
    outside = {name: value for name, value in params.items() if name not in chosen}
    return inside, outside


def merge(*parts: Mapping[str, T]) -> dict[str, T]:
    """Joins disjoint parameter dictionaries, sorted by name."""
    merged: dict[str, T] = {}
    for part in parts:
        if shared := merged.keys() & part.keys():
            raise ValueError(f"parameters given twice: {sorted(shared)}")
        merged.update(part)
    return dict(sorted(merged.items()))


def check_shapes(actual: Mapping[str, Any], expected: Mapping[str, Any], *, where: str) -> None:
    """Checks that two sets of parameters have the same names and shapes.

    Args:
      actual: name -> array or shape.
      expected: name -> array or shape.
      where: the file that `actual` comes from, for the message.

    Raises:
      ValueError: lists every missing, extra and misshapen array, missing ones with near misses.
    """
    missing = [name for name in expected if name not in actual]
    extra = [name for name in actual if name not in expected]
    misshapen = [
        name
        for name in expected
        if name in actual and _shape_of(actual[name]) != _shape_of(expected[name])
    ]
    if not missing and not extra and not misshapen:
        return
    lines = [
        f"{where} does not fit the model: of {len(expected)} arrays {len(missing)} are missing and "
        f"{len(misshapen)} have another shape; {len(extra)} are not of this model"
    ]
    for name in missing:
        near = phrases.nearest(name, extra, count=1)
        lines.append(f"missing: {name}" + (f" (is it '{near[0]}'?)" if near else ""))
    for name in misshapen:
        shapes = _shape_of(actual[name]), _shape_of(expected[name])
        lines.append(f"shape: {name} is {shapes[0]}, the model has {shapes[1]}")
    lines += [f"extra: {name} {_shape_of(actual[name])}" for name in extra]
    if missing and not extra and not misshapen:
        lines.append("trained arrays only? Then give the base that has the others: --base")
    raise ValueError("\n  ".join(lines))


def _shape_of(array_or_shape: Any) -> tuple[int, ...]:
    return tuple(getattr(array_or_shape, "shape", array_or_shape))


def _compile(regex: str, what: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise ValueError(f"{what}: '{regex}' is not a regular expression: {error}") from error


def _plain(regex: str) -> str:
    return re.sub(r"[\\^$*+?()\[\]{}|]|(?<=\w)\.(?=\*)|\.(?=\*)", "", regex)
