"""big_vision's side of `compare`: its model and decoding, and its Colab's update rule."""

import functools
import os
import pathlib
import sys

sys.path.insert(0, os.environ["BIG_VISION_DIR"])

import compare
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import serve
from big_vision.models.ppp import gemma
from big_vision.models.proj.paligemma import paligemma
from big_vision.trainers.proj.paligemma import predict_fns

from paligemma_jax.build.process import host_memory
from paligemma_jax.checkpoints import npz
from paligemma_jax.params import names


def main() -> None:
    host_memory.keep_freed()
    case, folder, new_tokens = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    arrays = dict(np.load(folder / "batch.npz"))
    params = names.unflatten(npz.read(folder / "weights.npz", place=lambda _, x: jnp.asarray(x)))
    image = jnp.asarray(arrays["image"] / np.float32(127.5) - np.float32(1))
    batch = {"image": image, "text": jnp.asarray(arrays["text"])}
    batch |= {name: jnp.asarray(arrays["learnt"], jnp.int32) for name in ("mask_ar", "mask_loss")}
    model = make_model()
    if case == "decode":
        serve.serve(make_decode(model, params, batch, new_tokens))
    else:
        serve.serve(make_step(model, params, batch, attention_only=case != "full step"))


def make_model():
    llm, img = compare.LLM, compare.VIT
    dims = dict(
        variant="mid", width=llm.width, depth=llm.depth, mlp_dim=llm.mlp_dim,
        num_heads=llm.num_heads, num_kv_heads=llm.num_kv_heads, head_dim=llm.head_dim,
        norm_eps=1e-6, vocab_size=compare.MID.vocab_size, scan=True,
        remat_policy="nothing_saveable",
    )  # fmt: skip
    gemma.get_config = lambda _: ml_collections.ConfigDict(dims)
    return paligemma.Model(
        llm=ml_collections.FrozenConfigDict(
            {"variant": "mid", "vocab_size": compare.MID.vocab_size, "cache_dtype": "float32"}
        ),
        img=ml_collections.FrozenConfigDict(
            {
                "width": img.width, "depth": img.depth, "mlp_dim": img.mlp_dim,
                "num_heads": img.num_heads, "patch_size": (14, 14), "pool_type": "none",
                "scan": True,
            }
        ),
    )  # fmt: skip


def make_step(model, params, batch, *, attention_only: bool):
    def loss_fn(params):
        text, mask = batch["text"], batch["mask_loss"][:, 1:]
        logits, _ = model.apply(
            {"params": params}, batch["image"], text[:, :-1], batch["mask_ar"][:, :-1], train=True
        )
        one_hot = jax.nn.one_hot(text[:, 1:], logits.shape[-1])
        token_logp = jnp.sum(jax.nn.log_softmax(logits, axis=-1) * one_hot, axis=-1)
        return jnp.mean(-jnp.sum(token_logp * mask, axis=-1) / jnp.clip(jnp.sum(mask, -1), 1))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(params):
        loss, grads = jax.value_and_grad(loss_fn)(params)

        def descend(path, param, grad):
            is_attention = tuple(key.key for key in path[:3]) == ("llm", "layers", "attn")
            return param - 1e-3 * grad if is_attention or not attention_only else param

        return jax.tree_util.tree_map_with_path(descend, params, grads), loss

    def run():
        nonlocal params
        params, loss = update(params)
        jax.block_until_ready((params, loss))

    return lambda: {"step": serve.seconds(run)}


def make_decode(model, params, batch, new_tokens):
    text = batch["text"][:, :-1]
    prompts = {
        "image": batch["image"],
        "text": text,
        "mask_ar": jnp.zeros_like(text),
        "mask_input": jnp.ones(text.shape, bool),
        "_mask": np.ones(len(text), bool),
    }
    decode = functools.partial(
        predict_fns.get_all(model)["decode"],
        {"params": params},
        devices=np.array(jax.devices()),
        eos_token=-1,
    )
    return lambda: serve.decode_times(
        lambda n: jax.block_until_ready(decode(batch=prompts, max_decode_len=n)), new_tokens
    )


if __name__ == "__main__":
    main()
