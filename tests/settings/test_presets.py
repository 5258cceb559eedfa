import pytest

from paligemma_jax.settings import load, presets


@pytest.mark.parametrize("method", presets.METHODS)
def test_every_method_is_complete_and_has_its_own_rate(method):
    config = presets.finetune(model="paligemma2-3b", method=method)
    load.typed(config)
    assert config.lr == presets.METHODS[method]["lr"]
    assert (config.lora.targets is not None) == (method in ("lora", "qlora"))


def test_an_unknown_method_shows_the_nearest():
    with pytest.raises(ValueError, match=r"method 'lore' is not known. Did you mean 'lora'"):
        presets.finetune(model="paligemma2-3b", method="lore")
