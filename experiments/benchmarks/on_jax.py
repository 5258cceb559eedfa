"""What the sides of `compare` that run on JAX say of themselves. Needs nothing of ours."""

import importlib.metadata

import jax
import serve


def about(*libraries: str) -> dict:
    """Returns the device, and versions of jax and of these libraries."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", *libraries)}
    return {"device": jax.devices()[0].device_kind, "versions": versions}


def peak_bytes() -> int:
    """Returns the most bytes that were in use: on the device, or by this process on a CPU."""
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else serve.resident_peak()
