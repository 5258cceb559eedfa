"""The table of released models, against the tables that are made of it."""

from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import released_models


def test_what_fine_tuning_starts_from_is_published_for_every_model_and_resolution():
    for name, model in released_models.MODELS.items():
        for res in released_models.RESOLUTIONS:
            entry = released_models.FILES[model.init.format(res=res)]
            assert (entry.model, entry.res) == (name, res)


def test_every_published_file_is_of_a_released_model_whose_towers_are_known():
    assert {entry.model for entry in released_models.FILES.values()} == set(released_models.MODELS)
    for name, model in released_models.MODELS.items():
        assert variants.released(name, res=224).llm == variants.GEMMAS[model.llm]
        assert variants.released(name, res=224).img == variants.VITS[model.img]


# The released checkpoints.


def test_the_names_for_transformers():
    found = {
        name: released_models.hugging_face_name(name) for name in ("pt_448.f16", "pt_28b_896", "x")
    }
    assert found == {
        "pt_448.f16": "google/paligemma-3b-pt-448",
        "pt_28b_896": "google/paligemma2-28b-pt-896",
        "x": None,
    }


def test_the_names_are_big_visions():
    sizes = [f"pt_{size}_{res}" for size in ("3b", "10b", "28b") for res in (224, 448, 896)]
    first = [f"pt_{res}{suffix}" for res in (224, 448, 896) for suffix in ("", ".bf16", ".f16")]
    assert sorted(released_models.FILES) == sorted(first + sizes)
    assert released_models.FILES["pt_448.f16"] == released_models.ReleasedFile(
        "pt_448.f16.npz",
        (
            "kaggle://google/paligemma/jax/paligemma-3b-pt-448/1/paligemma-3b-pt-448.f16.npz",
            "hf://google/paligemma-3b-pt-448-jax/paligemma-3b-pt-448.f16.npz@float16",
        ),
        model="paligemma1-3b",
        res=448,
    )
    assert released_models.FILES["pt_10b_224"] == released_models.ReleasedFile(
        "pt_10b_224.bf16.npz",
        (
            "kaggle://google/paligemma-2/jax/paligemma2-10b-pt-224/1/paligemma2-10b-pt-224.b16.npz",
            "hf://google/paligemma2-10b-pt-224-jax/paligemma2-10b-pt-224.b16.npz",
        ),
        model="paligemma2-10b",
        res=224,
    )


def test_repositories_of_transformers_lead_to_npz_files():
    hint = released_models.describe_repository("google/paligemma2-3b-pt-448")
    assert "transformers' files" in hint and "'pt_3b_448'" in hint and "convert FOLDER" in hint
    assert "'hf://google/paligemma-3b-mix-224-jax/FILE.npz'" in released_models.describe_repository(
        "google/paligemma-3b-mix-224"
    )
    assert released_models.describe_repository("google/paligemma-3b-pt-224-jax").startswith(
        "its files"
    )
    assert released_models.describe_repository("data/paligemma-3b") == ""
