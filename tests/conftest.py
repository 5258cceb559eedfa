"""What every test shares. float32 products are exact here: references were made so."""

import pathlib

import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

REFERENCE = pathlib.Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def load_reference():
    """Returns a loader of `tests/reference/{name}.npz`: (params, inputs, outputs)."""

    def load(name: str) -> tuple[dict, dict, dict]:
        with np.load(REFERENCE / f"{name}.npz") as file:
            arrays = dict(file)

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        return part("params/"), part("in/"), part("out/")

    return load
