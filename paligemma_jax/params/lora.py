"""Low-rank factors beside weights (LoRA, arXiv:2106.09685): which there are and how they act.

A weight w with factors A and B acts as w + scale A B. `models.common.layers` declares the
factors, `models.common.projections` does the arithmetic; their names end in `names.FACTORS`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from paligemma_jax.params import names

WHAT = "lora.targets"


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which weights have factors, and how these act.

    Attributes:
      targets: regex on the full names of weights that are multiplied with activations.
      rank: r, length of the axis that joins A and B.
      alpha: strength; what the factors add is multiplied by `scale`.
      dropout: rate on what A sees, applied where an rng is given. All weights that are stored as
        one array see the same.
      rank_stabilized: divide alpha by sqrt(r) instead of r (arXiv:2312.03732).
    """

    targets: str
    rank: int
    alpha: float
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank}: expected 1 or more")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout={self.dropout} is not in [0, 1)")

    @property
    def scale(self) -> float:
        """What the product A B is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


def pairs(all_names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns base weight -> names of its factors A and B, of all that have factors."""
    bases = sorted({names.base_of(name) for name in all_names if names.is_factor(name)})
    a, b = names.FACTORS
    return {base: (names.factor(base, a), names.factor(base, b)) for base in bases}


def choose(params: Mapping[str, Any], lora: Lora) -> list[str]:
    """Returns the names of the factors that `lora.targets` asks for.

    Args:
      params: every parameter with its shape, factors beside every weight that can have them.
      lora: what is asked for.

    Raises:
      ValueError: targets that match none of these weights, or a rank above a weight's own.
    """
    can_have = pairs(params)
    try:
        chosen = names.select(lora.targets, can_have, what=WHAT)
    except ValueError as error:
        raise ValueError(
            f"{error}. Weights that can have factors: {', '.join(can_have)}"
        ) from error
    for base in chosen:
        a, b = (params[name].size // lora.rank for name in can_have[base])
        # a is the number of inputs, b that of outputs, both times the weights in the array.
        number = a * b // params[base].size
        if lora.rank > min(a, b) // number:
            raise ValueError(
                f"lora.rank={lora.rank}: '{base}' has {a // number} inputs and {b // number} "
                f"outputs, so its rank is at most {min(a, b) // number}: choose that or less, or "
                f"leave it out of {WHAT}"
            )
    return [name for base in chosen for name in can_have[base]]
