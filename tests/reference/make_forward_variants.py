"""Makes forward_pg2_27b.npz and forward_mha.npz with big_vision, from forward_pg2 and forward_pg1.

    BIG_VISION_DIR=<checkout at commit 0127fb6> python tests/reference/make_forward_variants.py

Only what differs from the file it starts from is stored: the attention weights, and the logits of
all text positions and pieces, padding masked.
"""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, os.environ["BIG_VISION_DIR"])

import jax
import ml_collections
import numpy as np
from big_vision.models.ppp import gemma
from big_vision.models.proj.paligemma import paligemma
from big_vision.utils import recover_tree

HERE = pathlib.Path(__file__).parent
IMG = dict(
    width=48,
    depth=3,
    mlp_dim=96,
    num_heads=4,
    patch_size=(14, 14),
    pool_type="none",
    scan=True,
    head_zeroinit=False,
)
LLM = dict(
    width=64, depth=3, mlp_dim=128, num_heads=4, norm_eps=1e-6, scan=True, vocab_size=256_000
)
GEMMA2 = dict(post_norms=True, final_logits_softcap=30.0, attn_logits_softcap=50.0)
VARIANTS = {
    "pg2_27b": dict(
        num_kv_heads=2, head_dim=8, query_pre_attn_norm="rsqrt_emb_per_head", **LLM, **GEMMA2
    ),
    "mha": dict(num_kv_heads=4, head_dim=16, **LLM),
}
gemma.get_config = lambda name: ml_collections.ConfigDict({"variant": name, **VARIANTS[name]})


def narrow_heads(params: dict) -> dict:
    """Cuts the heads of forward_pg2 from 16 to 8: fewer than width / num_heads, as in the 27B."""
    attn = "llm/layers/attn"
    return {
        f"{attn}/q_einsum/w": params[f"{attn}/q_einsum/w"][..., :8],
        f"{attn}/kv_einsum/w": params[f"{attn}/kv_einsum/w"][..., :8],
        f"{attn}/attn_vec_einsum/w": params[f"{attn}/attn_vec_einsum/w"][:, :, :8],
    }


def unshare_heads(params: dict) -> dict:
    """Gives each of the four query heads of forward_pg1 its own keys and values."""
    q = params.pop("llm/layers/attn/q_einsum/w")
    kv = params.pop("llm/layers/attn/kv_einsum/w")
    kv = np.concatenate([kv, -0.5 * kv, np.roll(kv, 1, axis=3), np.roll(kv, 2, axis=4)], axis=2)
    return {"llm/layers/attn/qkv_einsum/w": np.concatenate([q[:, None], kv], axis=1)}


def masked_logits(module, image, text, mask_ar, input_mask):
    """Returns logits of the text positions, with padding masked as in decoding."""
    (x, input_mask, mask_ar), out = module.embed_image_and_text(
        image, text, input_mask=input_mask, mask_ar=mask_ar
    )
    _, out_llm = module._llm(x, mask=paligemma.make_attn_mask(input_mask, mask_ar))
    return module._llm.compute_logits(out_llm["pre_logits"][:, out["img/zimg"].shape[1] :])


def make(variant: str, start: str, change) -> None:
    with np.load(HERE / f"forward_{start}.npz") as file:
        arrays = dict(file)
    params = {k.removeprefix("params/"): v for k, v in arrays.items() if k.startswith("params/")}
    changed = {k: np.ascontiguousarray(v) for k, v in change(params).items()}
    params.update(changed)
    llm = dict(variant=variant, vocab_size=1400, cache_dtype="float32")
    model = paligemma.Model(**ml_collections.FrozenConfigDict({"llm": llm, "img": IMG}))
    image = arrays["in/image_u8"].astype(np.float32) / np.float32(127.5) - np.float32(1)
    logits = jax.jit(
        lambda tree: model.apply(
            {"params": tree},
            image,
            arrays["in/text"],
            arrays["in/mask_ar"],
            arrays["in/mask_input"].astype(bool),
            method=masked_logits,
        )
    )(recover_tree(list(params), list(params.values())))
    np.savez_compressed(
        HERE / f"forward_{variant}.npz",
        **{f"params/{name}": value for name, value in changed.items()},
        **{"out/text_logits": np.asarray(logits)},
    )


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    make("pg2_27b", "pg2", narrow_heads)
    make("mha", "pg1", unshare_heads)
