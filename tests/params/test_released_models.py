"""The table of released models, against the tables that are made of it."""

from paligemma_jax.hub import published
from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import released_models


def test_what_fine_tuning_starts_from_is_published_for_every_model_and_resolution():
    for name, model in released_models.MODELS.items():
        for res in released_models.RESOLUTIONS:
            entry = published.FILES[model.init.format(res=res)]
            assert (entry.model, entry.res) == (name, res)


def test_every_published_file_is_of_a_released_model_whose_towers_are_known():
    assert {entry.model for entry in published.FILES.values()} == set(released_models.MODELS)
    for name, model in released_models.MODELS.items():
        assert variants.released(name, res=224).llm == variants.GEMMAS[model.llm]
        assert variants.released(name, res=224).img == variants.VITS[model.img]
