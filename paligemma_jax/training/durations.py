"""Durations in steps: `{name}_steps`, `_epochs`, `_examples` or `_percent`, as big_vision has them.

Every duration of a run is converted here: its length, schedules, and how often it evaluates and
saves. Rounding and the meaning of negative numbers are big_vision's (`utils.py::steps`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A duration in one of four units, or not given. Negative is not given, as a sweep's -1.

    Attributes:
      name: before the unit in keys: "warmup" of warmup_steps.
      steps: updates.
      epochs: passes over the data.
      examples: training examples.
      percent: fraction of the run's steps: 0.1 is a tenth.
    """

    name: str
    steps: int | None = None
    epochs: float | None = None
    examples: int | None = None
    percent: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Unit -> amount of what is given."""
        amounts = {unit: getattr(self, unit) for unit in UNITS}
        return {unit: x for unit, x in amounts.items() if x is not None and x >= 0}

    def in_steps(
        self,
        *,
        data_size: int | None = None,
        batch_size: int | None = None,
        total_steps: int | None = None,
    ) -> int | None:
        """Returns how many steps, rounded as Python does, at least 1 unless it is 0, or None.

        Raises:
          ValueError: two units are given, or what the conversion needs (for example the number of
            examples) is not known.
        """
        given, name = self.given, self.name
        if not given:
            return None
        if len(given) > 1:
            raise ValueError(f"set one of {[f'{name}_{unit}' for unit in given]}, not all of them")
        ((unit, amount),) = given.items()
        if unit == "steps":
            return int(amount)
        if unit == "percent":
            if total_steps is None:
                raise ValueError(f"{name}_percent: a part of total_steps, which is not known")
            if amount > 1:
                raise ValueError(f"{name}_percent={amount} is a fraction, between 0 and 1")
            exact = amount * total_steps
        else:
            if not batch_size or (unit == "epochs" and not data_size):
                raise ValueError(f"{name}_{unit} needs batch_size and, for epochs, data_size")
            is_epochs = unit == "epochs"
            exact = amount * ((data_size or 0) / batch_size) if is_epochs else amount / batch_size
        return max(1, round(exact)) if amount else 0


def read(name: str, values: Mapping[str, Any]) -> Duration:
    """Returns the duration that a mapping has under `{name}_{unit}`."""
    return Duration(name, **{unit: values.get(f"{name}_{unit}") for unit in UNITS})
