"""The families of models that there are, and which one settings or a file's arrays are of."""

import pathlib
from collections.abc import Collection

from paligemma_jax.data import tokens
from paligemma_jax.models import family
from paligemma_jax.models.paligemma import as_family as paligemma
from paligemma_jax.wording import near_misses

# By the key model.family. Another one is written as docs/extending.md says, and put in here.
FAMILIES: dict[str, family.Family] = {"paligemma": paligemma.FAMILY}


def choose(name: str) -> family.Family:
    """Returns the family of the key model.family; an unknown one is a ValueError."""
    if name not in FAMILIES:
        hint = near_misses.did_you_mean(name, FAMILIES)
        raise ValueError(f"model.family='{name}' is not known. {hint}Known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def load_tokenizer(name: str, path: pathlib.Path) -> tokens.Tokenizer:
    """Returns the tokenizer in a file, of the kind that models of this family have."""
    return tokens.load_tokenizer(path, kind=choose(name).tokenizer)


def of_arrays(names: Collection[str]) -> family.Family | None:
    """Returns the family whose table of the vocabulary is among these names; None: of none."""
    return next((one for one in FAMILIES.values() if one.names.embedding in names), None)
