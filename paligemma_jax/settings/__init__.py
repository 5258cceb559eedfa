"""Settings: the one place where defaults are written.

A config file needs `presets` and, for arguments of its own, `parse_arg`.
"""

from paligemma_jax.settings.load import parse_arg

__all__ = ["parse_arg"]
