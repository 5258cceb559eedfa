"""The table of released models, against the tables that are made of it."""

import math

import pytest

from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import released_models
from paligemma_jax.settings import load

PG1 = "paligemma1-3b"


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
    found = [name for name, one in released_models.FILES.items() if one.kind == "pt"]
    assert sorted(found) == sorted(first + sizes)
    assert released_models.FILES["pt_448.f16"] == released_models.ReleasedFile(
        "pt_448.f16.npz",
        (
            "kaggle://google/paligemma/jax/paligemma-3b-pt-448/1/paligemma-3b-pt-448.f16.npz",
            "hf://google/paligemma-3b-pt-448-jax/paligemma-3b-pt-448.f16.npz@float16",
        ),
        model="paligemma1-3b",
        res=448,
        dtype="float16",
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


def test_mixed_and_fine_tuned_weights_have_names_too():
    assert released_models.FILES["mix_3b_448"].sources == (
        "kaggle://google/paligemma-2/jax/paligemma2-3b-mix-448/1/paligemma2-3b-mix-448.b16.npz",
        "hf://google/paligemma2-3b-mix-448-jax/paligemma2-3b-mix-448.b16.npz",
    )
    one = "paligemma-3b-ft-refcoco-seg-896"
    assert released_models.FILES["ft_refcoco_seg_896.f16"].sources == (
        f"kaggle://google/paligemma-ft/jax/{one}/1/{one}.f16.npz",
        f"hf://google/{one}-jax/{one}.f16.npz@float16",
    )
    kinds = [(one.kind, one.model) for one in released_models.FILES.values()]
    assert kinds.count(("mix", "paligemma2-28b")) == 2 and kinds.count(("mix", PG1)) == 6
    assert kinds.count(("ft", PG1)) == 3 * (18 * 2 + 6 * 3)
    assert "ft_docci_10b_448" in released_models.FILES
    assert not {"mix_896", "mix_3b_896", "ft_docci_28b_448"} & released_models.FILES.keys()
    assert "mix_10b_224, " in released_models.list_names()


def test_fine_tuned_weights_are_called_as_the_transfers():
    shipped = {name.removeprefix("transfers/") for name in load.SHIPPED}
    assert released_models.FINE_TUNED.keys() - shipped == set()


@pytest.mark.parametrize(
    "name", ["pt_224", "mix_448.f16", "pt_3b_896", "mix_10b_448", "pt_28b_224"]
)
def test_sizes_are_those_of_all_arrays(name):
    one = released_models.FILES[name]
    shapes = paligemma.shapes(variants.released(one.model, res=one.res))
    itemsize = 4 if name == "pt_224" else 2
    assert one.num_bytes == itemsize * sum(math.prod(x.shape) for x in shapes.values())


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
