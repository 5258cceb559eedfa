"""The check says what the settings ask for and cannot have."""

from paligemma_jax.checks import check_settings
from paligemma_jax.settings import load


def test_a_kernel_that_the_machine_lacks_is_an_error(config):
    config.model.img.attention = "cudnn"
    _, found, _ = check_settings.look(load.typed(config), None, examples=[])
    assert "model.img.attention='cudnn': it needs an NVIDIA GPU, found cpu; or use 'xla'" in [
        finding.what for finding in found if finding.severity == "error"
    ]
