"""Model FLOPs, counted by hand for a model of one layer each."""

import pytest

from paligemma_jax.models.paligemma import as_family, variants
from paligemma_jax.training import flops


class Array:
    def __init__(self, *shape):
        self.shape = shape


DIMS = variants.PaliGemma(
    img=variants.Vit(width=4, depth=1, mlp_dim=8, num_heads=1, patch_size=2),
    llm=variants.Gemma(width=6, depth=1, mlp_dim=10, num_heads=1, num_kv_heads=1, head_dim=3),
    res=4,  # 4 patches
    vocab_size=7,
)
MODEL = as_family.Model(DIMS)
IMG, HEAD, ATTN, MLP = (
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel",
    "img/head/kernel",
    "llm/layers/attn/q_einsum/w",
    "llm/layers/mlp/linear",
)
SHAPES = {
    IMG: Array(1, 4, 8),
    "img/Transformer/encoderblock/MlpBlock_0/Dense_0/bias": Array(1, 8),
    "img/pos_embedding": Array(1, 4, 4),
    HEAD: Array(4, 6),
    as_family.NAMES.embedding: Array(7, 6),
    ATTN: Array(1, 1, 6, 3),
    MLP: Array(1, 10, 6),
    "llm/final_norm/scale": Array(6),
}
PATCHES, SEQUENCE = 4, 4 + 5
# Forward attention products: two of S x S x (heads x head size) multiply-adds.
IMG_ATTENTION, LLM_ATTENTION = 4 * PATCHES**2 * 4, 4 * SEQUENCE**2 * 3


def count(*trainable):
    return flops.count(MODEL, SHAPES, text_len=5, trainable=trainable)


def test_attention_alone_trained_passes_gradients_through_the_language_model_only():
    work = count(ATTN)
    forward_only = 2 * PATCHES * (32 + 24) + IMG_ATTENTION
    assert work.per_example == forward_only + SEQUENCE * (6 * 18 + 4 * 60) + 3 * LLM_ATTENTION
    assert work.per_supervised_token == 4 * 42
    assert work.again_per_example == SEQUENCE * 2 * (18 + 60) + LLM_ATTENTION


def test_everything_trained_costs_six_per_parameter_and_token():
    work = count(*SHAPES)
    matrices = 6 * (PATCHES * (32 + 24) + SEQUENCE * (18 + 60))
    assert work.per_example == matrices + 3 * (IMG_ATTENTION + LLM_ATTENTION)
    assert work.per_supervised_token == 6 * 42


def test_projector_alone_trained_leaves_the_tower_below_it_without_gradient():
    work = count(HEAD)
    tower = 2 * PATCHES * 32 + IMG_ATTENTION
    llm = SEQUENCE * 4 * (18 + 60) + 3 * LLM_ATTENTION
    assert work.per_example == tower + 6 * PATCHES * 24 + llm


def test_last_norm_alone_trained_needs_no_gradient_in_the_layers():
    work = count("llm/final_norm/scale")
    assert work.per_example == count().per_example
    assert work.per_supervised_token == 4 * 42


def test_a_step_counts_examples_and_supervised_tokens():
    work = flops.Work(per_example=10.0, per_supervised_token=2.0, again_per_example=0.0)
    assert work.of_step(batch_size=3, supervised=4.5) == 3 * (10 + 9)


def test_name_of_no_part_is_an_error():
    with pytest.raises(ValueError, match="aud/w belongs to no part"):
        count("aud/w")


def test_devices_are_found_by_a_part_of_their_name():
    assert flops.peak("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak("NVIDIA H100 PCIe") == 756e12
    assert flops.peak("TPU v5 lite") == 197e12
    assert flops.peak("cpu") is None


def test_embeddings_that_are_read_are_no_work_of_the_vision_tower():
    common = dict(text_len=5, trainable={MLP})
    whole = flops.count(MODEL, SHAPES, **common)
    found = flops.count(MODEL, SHAPES, **common, embeds_images=False)
    tower = 2 * PATCHES * (4 * 8 + 4 * 6) + IMG_ATTENTION
    assert whole.per_example - found.per_example == tower
    assert whole.per_supervised_token == found.per_supervised_token


def test_products_that_are_kept_are_not_computed_again():
    common = dict(text_len=5, trainable={ATTN})
    found = flops.count(MODEL, SHAPES, **common, repeats=0.0)
    assert found.again_per_example == 0
    once, oftener = (flops.count(MODEL, SHAPES, **common, repeats=n) for n in (1.0, 1.5))
    assert oftener.again_per_example == 1.5 * once.again_per_example > 0
    assert found.per_example == flops.count(MODEL, SHAPES, **common).per_example
