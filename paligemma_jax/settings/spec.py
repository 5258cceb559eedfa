"""What a config key is, and which one was probably meant."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

NUMBER = (int, float)
OPTIONAL = (type(None),)
RULES = (list, tuple)

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
    """A config key: dotted name, default, allowed types (None included where it may be unset).

    `rule_types` are those of the values where a key may be a list of pairs (text, value); `choices`
    are those of these values too, `least` is the smallest number that is allowed.
    """

    name: str
    default: Any
    types: tuple[type, ...]
    doc: str
    choices: tuple[Any, ...] = ()
    rule_types: tuple[type, ...] = ()
    least: int | None = None


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Returns "Did you mean 'x'? " for the nearest known name, or nothing.

    `prefix`: before all of these, so that the name that is shown is the full one.
    """
    known = list(known)
    if ELSEWHERE.get(name) in known:
        return f"Did you mean '{ELSEWHERE[name]}'? "
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    leaf = difflib.get_close_matches(
        name.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.7
    )
    if not near and leaf:
        near = [k for k in known if k.rpartition(".")[2] == leaf[0]]
    return f"Did you mean '{prefix}{near[0]}'? " if near else ""
