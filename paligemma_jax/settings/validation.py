"""What may be wrong with a config: every key that is unknown, of a wrong type or out of range."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from paligemma_jax.settings import keys, schema

LIMIT = 2**63
TOTALS = ("total_steps", "total_epochs", "total_examples")


class Argument(str):
    """What stands behind a config file's name; it knows whether the file has read it.

    A question that is answered with no ("is it 'overfit'?") has read nothing; one with yes has, and
    so has whatever takes the text apart or puts it somewhere.
    """

    __slots__ = ("is_read",)

    def __init__(self, text: str):
        del text  # `str` has it
        self.is_read = not self

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __int__(self) -> int:
        return int(str(self))

    def __float__(self) -> float:
        return float(str(self))

    def __radd__(self, other: str) -> str:
        return other + str(self)


def _noting(name: str) -> Callable[..., Any]:
    """Returns the method of `str` that notes that the text is read, or that a question fits."""

    def method(self: Argument, *args: Any) -> Any:
        answer = getattr(str, name)(self, *args)
        is_no = answer is (name == "__ne__")
        self.is_read |= not is_no and answer is not NotImplemented
        return answer

    return method


for _name in (
    *("__eq__", "__ne__", "__contains__", "startswith", "endswith", "isdigit", "isdecimal"),
    *("__str__", "__format__", "__add__", "__iter__", "__getitem__", "__mod__", "split", "rsplit"),
    *("partition", "rpartition", "strip", "lstrip", "rstrip", "lower", "upper", "casefold"),
    *("replace", "removeprefix", "removesuffix", "splitlines", "find", "index", "encode"),
):
    setattr(Argument, _name, _noting(_name))


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises a ValueError that lists every key that is unknown, of a wrong type or value."""
    table = {one.name: one for one in schema.KEYS}
    problems = []
    for name, value in _leaves(config, table):
        if name not in table:
            problems.append(f"config key '{name}' is not known. {keys.did_you_mean(name, table)}")
        else:
            problems += _check(table[name], value)
    problems += [
        f"config key '{name}' is missing" for name in table if not _has(config, name.split("."))
    ]
    for group, known in (("evals", schema.EVAL_KEYS), ("input.mixture", schema.SOURCE_KEYS)):
        named = _get(config, group)
        for name in named if isinstance(named, ml_collections.ConfigDict) else ():
            problems += _check_named(group, name, named[name], known)
    problems += _check_exclusive(config)
    problems += _check_lora(config, table)
    if problems:
        raise ValueError("config:\n  " + "\n  ".join(problems))


def check_eval(name: str, values: Mapping[str, Any]) -> None:
    """Raises a ValueError that lists what is wrong with the keys of one evaluation."""
    if problems := _check_named("evals", name, values, schema.EVAL_KEYS):
        raise ValueError("\n".join(problems))


def _check_exclusive(config: ml_collections.ConfigDict) -> list[str]:
    """Returns problems: keys that exclude each other and are both set."""
    problems = []
    if _get(config, "input.mixture") and _get(config, "input.data.fname"):
        problems.append("input.mixture and input.data.fname are set: keep one")
    totals = [k for k in TOTALS if _is_given(config.get(k))]
    if len(totals) > 1:
        problems.append(f"{' and '.join(totals)} are set: keep one")
    if config.get("trainable") is not None and not isinstance(
        config.schedule, Mapping | ml_collections.ConfigDict
    ):
        problems.append("trainable is the short form of schedule rules: set one of the two")
    return problems


def _is_given(duration: Any) -> bool:
    """Whether a duration is set; a negative one is not, and a wrong type is another problem."""
    return isinstance(duration, int | float) and duration >= 0


def _check_named(group: str, name: str, values: Any, known: Sequence[keys.Key]) -> list[str]:
    table = {one.name: one for one in known}
    where = f"{group}.{name}"
    if not isinstance(name, str) or not name or set(name) & set("/\\. "):
        return [f"{where}: a name of files: letters, digits, '-' and '_'"]
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        return [f"{where}: expected dict(fname=...), found {values!r:.200}"]
    problems = [
        f"config key '{where}.{unknown}' is not known. "
        + keys.did_you_mean(unknown, table, prefix=f"{where}.")
        for unknown in values
        if unknown not in table
    ]
    for one in known:
        problems += _check(one, values.get(one.name, one.default), where=f"{where}.")
    return problems


def _check_lora(config: ml_collections.ConfigDict, table: Mapping[str, keys.Key]) -> list[str]:
    """Returns the settings of `lora` that nothing would use."""
    if not _has(config, ["lora", "targets"]) or config.lora.targets is not None:
        return []
    return [
        f"lora.{name}={value!r:.200} has no effect without lora.targets: a regex, or a short "
        f"form of it"
        for name, value in config.lora.items()
        if f"lora.{name}" in table and value != table[f"lora.{name}"].default
    ]


def _check(one: keys.Key, value: Any, where: str = "") -> list[str]:
    name = where + one.name
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    right_type = isinstance(value, one.types) and (not isinstance(value, bool) or bool in one.types)
    if not right_type:
        expected, actual = _type_names(one.types), type(value).__name__
        return [f"{name}={value!r:.200}: expected {expected}, found {actual}"]
    if _is_huge(value):
        return [f"{name}={value!r:.40}: expected whole numbers below 2**63"]
    if not all(map(_is_text, _names_in(value))):
        return [f"{name}={value!r:.200}: expected names, as text, before the colons"]
    if isinstance(value, list | tuple) and one.rule_types:
        return [problem for rule in value if (problem := _check_rule(one, rule, name))]
    if isinstance(value, list | tuple) and one.listed_types:
        wrong = [x for x in value if isinstance(x, bool) or not isinstance(x, one.listed_types)]
        expected = _type_names(one.listed_types)
        return [f"{name}: expected {expected} in the list, found {x!r:.200}" for x in wrong[:1]]
    if one.choices and value not in one.choices:
        return [_not_chosen(one, value, name)]
    if one.least is not None and isinstance(value, int | float) and not value >= one.least:
        return [f"{name}={value!r:.200}: expected {one.least} or more"]
    return []


def _is_huge(value: Any) -> bool:
    """Whether a value is, or holds, a whole number that no float, or no machine, can hold."""
    if isinstance(value, Mapping | list | tuple):
        return any(map(_is_huge, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, int) and abs(value) >= LIMIT


def _names_in(value: Any) -> Iterator[Any]:
    """Yields the names of a mapping and of those within it."""
    if isinstance(value, Mapping | list | tuple):
        yield from value if isinstance(value, Mapping) else ()
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _names_in(one)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _not_chosen(one: keys.Key, value: Any, name: str) -> str:
    hint = keys.did_you_mean(str(value), map(str, one.choices))
    return f"{name}={value!r:.200}: expected one of {one.choices}. {hint}"


def _check_rule(one: keys.Key, rule: Any, name: str) -> str | None:
    is_pair = isinstance(rule, list | tuple) and len(rule) == 2 and isinstance(rule[0], str)
    value = rule[1] if is_pair else None
    is_mapping = isinstance(value, ml_collections.ConfigDict)
    right_type = isinstance({} if is_mapping else value, one.rule_types)
    if is_pair and one.choices and value not in one.choices:
        return _not_chosen(one, value, f"{name} {rule[0]!r:.200}")
    if is_pair and right_type and not isinstance(value, bool):
        return None
    return f"{name}: expected pairs ('text', {_type_names(one.rule_types)}), found {rule!r:.200}"


def _type_names(types: tuple[type, ...]) -> str:
    return " or ".join("None" if t is type(None) else t.__name__ for t in types)


def _leaves(
    node: ml_collections.ConfigDict, table: Mapping[str, keys.Key], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name in node:
        path, value = f"{prefix}{name}", node[name]
        is_folder = any(known.startswith(f"{path}.") for known in table)
        if is_folder and isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, table, f"{path}.")
        else:
            yield path, value


def _has(node: Any, folders: list[str]) -> bool:
    for folder in folders:
        if not isinstance(node, ml_collections.ConfigDict) or folder not in node:
            return False
        node = node[folder]
    return True


def _get(config: ml_collections.ConfigDict, name: str) -> Any:
    """Returns the value of a dotted key, None where it or a part before it is missing."""
    folders = name.split(".")
    if not _has(config, folders):
        return None
    node: Any = config
    for folder in folders:
        node = node[folder]
    return node
