"""big_vision's side of `compare`: its model and decoding, and its Colab's update rule.

Trained weights are float32 and the others stay 16 bits, as in the Colab; it computes in float32.
"""

import functools

import big_vision_imports
import big_vision_loss
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import on_jax
import optax
import prepare
import serve

from paligemma_jax.console import process
from paligemma_jax.params import names

with big_vision_imports.importable():
    from big_vision import utils
    from big_vision.models import vit  # noqa: F401, imported by its name later
    from big_vision.models.ppp import gemma
    from big_vision.models.proj.paligemma import gemma_bv, paligemma  # noqa: F401, likewise
    from big_vision.trainers.proj.paligemma import predict_fns


def main() -> None:
    process.keep_freed_memory()
    work, arrays = serve.read_work()
    if work.what == "checkpoint":
        run = make_checkpoint(work)
    else:
        image = jnp.asarray(arrays["image"] / np.float32(127.5) - np.float32(1))
        batch = {"image": image, "text": jnp.asarray(arrays["text"])}
        learnt = jnp.asarray(arrays["learnt"], jnp.int32)
        batch |= {"mask_ar": learnt, "mask_loss": learnt}
        make = make_decode if work.what == "decode" else make_step
        run = make(work, make_model(work), batch)
    serve.serve(run, on_jax.about("flax"), on_jax.peak_bytes)


def read(work):
    stored = utils.npload(str(work.folder / prepare.WEIGHTS))
    bfloat16 = jnp.dtype("bfloat16")
    flat = {k: jnp.asarray(x.view(bfloat16) if x.dtype == "V2" else x) for k, x in stored.items()}
    return names.unflatten(flat)


def make_model(work):
    llm, img = work.model["llm"], work.model["img"]
    dims = dict(
        variant=work.size, width=llm["width"], depth=llm["depth"], mlp_dim=llm["mlp_dim"],
        num_heads=llm["num_heads"], num_kv_heads=llm["num_kv_heads"], head_dim=llm["head_dim"],
        norm_eps=1e-6, vocab_size=work.model["vocab_size"], scan=True,
        remat_policy="nothing_saveable", post_norms=llm["post_norms"],
        attn_logits_softcap=llm["attn_logits_softcap"], final_logits_softcap=0.0,
    )  # fmt: skip
    gemma.get_config = lambda _: ml_collections.ConfigDict(dims)
    llm_config = dict(
        variant=work.size, vocab_size=work.model["vocab_size"], cache_dtype=work.dtype
    )
    patch = (img["patch_size"], img["patch_size"])
    img_config = dict(
        width=img["width"], depth=img["depth"], mlp_dim=img["mlp_dim"],
        num_heads=img["num_heads"], patch_size=patch, pool_type="none", scan=True,
    )  # fmt: skip
    frozen = ml_collections.FrozenConfigDict
    return paligemma.Model(llm=frozen(llm_config), img=frozen(img_config))


def make_checkpoint(work):
    """As the Colab does: numpy's own files."""
    params = {}

    def load():
        params.update(read(work))
        jax.block_until_ready(params)

    def save():
        named, _ = utils.tree_flatten_with_names(params)
        np.savez(work.folder / "saved_by_big_vision.npz", **dict(named))
        params.clear()

    return lambda: serve.time_checkpoint(load, save)


def make_step(work, model, batch):
    if work.trains == "lora":
        raise SystemExit("big_vision has no LoRA")

    def is_trained(path) -> bool:
        return work.trains == "all" or [key.key for key in path[:3]] == ["llm", "layers", "attn"]

    loss_fn = functools.partial(big_vision_loss.loss, model)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state)

        def descend(path, param, change):
            return param + change if is_trained(path) else param

        return jax.tree_util.tree_map_with_path(descend, params, updates), opt_state, loss

    def widen(path, param):
        return param.astype(jnp.float32) if is_trained(path) else param

    tx = optax.sgd(work.lr) if work.optimizer == "sgd" else optax.adam(work.lr)
    params = jax.tree_util.tree_map_with_path(widen, read(work))
    opt_state, loss = tx.init(params), None

    def act():
        nonlocal params, opt_state, loss
        params, opt_state, loss = jax.block_until_ready(update(params, opt_state))

    def run():
        times = {"step": serve.seconds(act)}
        return {"seconds": times, "loss": float(loss)}

    return run


def make_decode(work, model, batch):
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
        {"params": read(work)},
        devices=np.array(jax.devices()),
        eos_token=-1,
    )
    return lambda: serve.time_decoding(
        lambda n: jax.block_until_ready(decode(batch=prompts, max_decode_len=n)), work.new_tokens
    )


if __name__ == "__main__":
    main()
