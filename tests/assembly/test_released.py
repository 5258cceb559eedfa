"""Names and files of released models, beside settings that ask for others."""

import pytest

from paligemma_jax.assembly import model_functions, released
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.settings import load, presets


def check(config):
    released.check_name(
        load.typed(config),
        model_functions.describe(load.typed(config), vocab_size=variants.VOCAB_SIZE),
    )


def test_name_of_another_model_is_refused_by_its_name():
    config = presets.finetune("paligemma2-3b", res=448)
    check(config)
    config.model_init = "pt_448.f16"
    message = (
        r"'pt_448.f16' is paligemma1-3b at 448 px, .* model.llm.variant='gemma2_2b': "
        r"set model.llm.variant='gemma_2b', or model_init as one of \['pt_3b_448'\]"
    )
    with pytest.raises(ValueError, match=message):
        check(config)


def test_name_of_another_resolution_is_refused_unless_it_shall_be_resampled():
    config = presets.finetune("paligemma1-3b", res=224)
    config.model_init = "pt_896"
    with pytest.raises(ValueError, match=r"set res=896, or model_init as one of \['pt_224'"):
        check(config)
    config.model.img.resample_posemb = True
    check(config)


def test_name_of_a_released_model_is_refused_for_a_small_one():
    config = presets.from_scratch(res=112, text_len=8, img={"width": 16}, llm={"width": 16})
    config.model_init = "pt_3b_224"
    message = r"model.llm.dims=None, res=224, or model_init=None \(random\)"
    with pytest.raises(ValueError, match=message):
        check(config)


def test_file_of_another_model_is_recognized():
    config = presets.finetune("paligemma1-3b")
    model = model_functions.describe(load.typed(config), vocab_size=variants.VOCAB_SIZE)
    for name, expected in (("paligemma1-3b", ""), ("paligemma2-3b", "a.npz is paligemma2-3b: set")):
        shapes = paligemma.shapes(variants.released(name, res=224))
        found = {key: shape.shape for key, shape in shapes.items()}
        assert released.recognize(found, config, model, where="a.npz").startswith(expected)
    assert released.recognize({"a": (3,)}, config, model, where="a.npz") == ""
