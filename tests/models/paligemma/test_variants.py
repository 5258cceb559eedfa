import dataclasses
import pathlib

import pytest

from paligemma_jax.models.paligemma import variants

CONTRACT = pathlib.Path(__file__).parents[2] / "reference" / "param_contract"


def read_contract(name: str) -> dict[str, tuple[int, ...]]:
    lines = (CONTRACT / f"params_{name}.txt").read_text().splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return {name: tuple(int(size) for size in shape.split(",")) for name, shape, _ in rows}


@pytest.mark.parametrize(
    ("file", "name", "res"),
    [
        ("paligemma1_3b_224", "paligemma1-3b", 224),
        ("paligemma1_3b_448", "paligemma1-3b", 448),
        ("paligemma1_3b_896", "paligemma1-3b", 896),
        ("paligemma2_3b_224", "paligemma2-3b", 224),
        ("paligemma2_10b_224", "paligemma2-10b", 224),
        ("paligemma2_28b_224", "paligemma2-28b", 224),
    ],
)
def test_a_released_file_is_recognized_by_its_shapes(file, name, res):
    assert variants.infer(read_contract(file)) == (name, variants.released(name, res=res))


def test_what_shapes_cannot_tell_comes_from_the_table():
    _, model = variants.infer(read_contract("paligemma2_28b_224"))
    assert model.llm.query_scale == "width_per_head"
    assert (model.llm.attn_logits_softcap, model.llm.final_logits_softcap) == (50.0, 30.0)


def test_the_nearest_model_and_what_differs_are_named():
    shapes = read_contract("paligemma2_3b_224")
    shapes["llm/layers/mlp/linear"] = (25, 9216, 2304)
    with pytest.raises(ValueError) as error:
        variants.infer(shapes)
    first = str(error.value).splitlines()[1]
    assert first.strip() == "paligemma2-3b: llm.depth 25 instead of 26"


def test_arrays_of_something_else_are_an_error_with_near_misses():
    with pytest.raises(ValueError, match=r"not a PaliGemma checkpoint.*'img/.*0 arrays given"):
        variants.infer({})
    shapes = {f"params/{k}": v for k, v in read_contract("paligemma1_3b_224").items()}
    with pytest.raises(ValueError, match=r"Nearest names: params/img/"):
        variants.infer(shapes)
    shapes = read_contract("paligemma1_3b_224")
    with pytest.raises(ValueError, match="257 rows, which is not a square grid"):
        variants.infer({**shapes, "img/pos_embedding": (1, 257, 1152)})
    with pytest.raises(ValueError, match="expected 3 axes"):
        variants.infer({**shapes, "llm/layers/mlp/linear": (16_384, 2048)})


def test_image_tokens_follow_from_the_resolution():
    for res, tokens in [(224, 256), (448, 1024), (896, 4096)]:
        assert variants.released("paligemma1-3b", res=res).num_image_tokens == tokens
    with pytest.raises(
        ValueError, match=r"res=225 is not a positive multiple of the patch size 14"
    ):
        variants.released("paligemma1-3b", res=225)


def test_an_unknown_name_is_an_error_with_near_misses():
    with pytest.raises(ValueError, match=r"Nearest: .*paligemma2-3b"):
        variants.released("paligemma2-3B", res=224)
    with pytest.raises(ValueError, match=r"no language model named 'gemma2-9b'.*gemma2_9b"):
        variants.make("So400m/14", "gemma2-9b", res=224)


def test_the_final_softcap_can_be_switched_off():
    kept = variants.released("paligemma2-3b", res=224)
    off = variants.released("paligemma2-3b", res=224, final_logits_softcap=0.0)
    assert kept.llm.final_logits_softcap == 30.0
    assert off.llm == dataclasses.replace(kept.llm, final_logits_softcap=0.0)


def test_heads_that_do_not_divide_are_an_error():
    with pytest.raises(ValueError, match="4 query heads cannot share 3 kv heads"):
        dataclasses.replace(variants.GEMMAS["tiny"], num_kv_heads=3)
    with pytest.raises(ValueError, match="width 48 is not a multiple of 5 heads"):
        dataclasses.replace(variants.VITS["tiny/14"], num_heads=5)


def test_dimensions_that_were_never_released_are_measured():
    shapes = read_contract("paligemma2_3b_224")
    shapes["llm/embedder/input_embedding"] = (1000, 2304)
    hidden = {"query_scale": "head_dim", "attn_logits_softcap": 50.0, "final_logits_softcap": 0.0}
    expected = variants.released("paligemma2-3b", res=224, final_logits_softcap=0.0)
    expected = dataclasses.replace(expected, vocab_size=1000)
    assert variants.measure(shapes, hidden) == expected


@pytest.mark.parametrize("cap", ["50", None, -1.0, float("nan"), 10**400])
def test_a_softcap_that_is_no_number_is_an_error(cap):
    dims = dict(width=8, depth=1, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8)
    with pytest.raises(ValueError, match=r"attn_logits_softcap is .*, expected a number from 0"):
        variants.Gemma(**dims, attn_logits_softcap=cap)
