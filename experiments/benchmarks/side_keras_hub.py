"""KerasHub's side of `compare`, on JAX. Needs keras-hub and jax, and nothing of ours."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import keras_hub
import numpy as np
import on_jax
import serve

# Of the language model's blocks; the vision tower's layers have other names.
ATTENTION = ("query", "key", "value", "attention_output")
MLP = ("ffw_gating", "ffw_gating_2", "ffw_linear")


def main() -> None:
    work, arrays = serve.read_work()
    if work.what == "checkpoint":
        run = make_checkpoint(work)
    elif work.what == "decode":
        run = make_decode(work, arrays)
    else:
        run = make_step(work, arrays)
    serve.serve(run, on_jax.about("keras", "keras-hub"), on_jax.peak_bytes)


def make_backbone(work):
    llm, img = work.model["llm"], work.model["img"]
    return keras_hub.models.PaliGemmaBackbone(
        vocabulary_size=work.model["vocab_size"],
        image_size=work.model["res"],
        num_layers=llm["depth"],
        num_query_heads=llm["num_heads"],
        num_key_value_heads=llm["num_kv_heads"],
        hidden_dim=llm["width"],
        intermediate_dim=2 * llm["mlp_dim"],  # of both halves together
        head_dim=llm["head_dim"],
        use_post_ffw_norm=llm["post_norms"],
        use_post_attention_norm=llm["post_norms"],
        attention_logit_soft_cap=llm["attn_logits_softcap"] or None,
        vit_patch_size=img["patch_size"],
        vit_num_heads=img["num_heads"],
        vit_hidden_dim=img["width"],
        vit_num_layers=img["depth"],
        vit_intermediate_dim=img["mlp_dim"],
        dtype=work.dtype,
    )


def read(work):
    """Returns the model with the weights of our file."""
    backbone = make_backbone(work)
    with np.load(work.folder / "weights.npz") as file:
        stored = {name: wide(x) for name, x in file.items()}
    for variable, x in [*vision(backbone, stored), *language(backbone, stored)]:
        variable.assign(x.reshape(variable.shape))
    return keras_hub.models.PaliGemmaCausalLM(backbone=backbone, preprocessor=None)


def wide(x):
    """Returns an array as float32; bfloat16 comes out of npz files as two opaque bytes."""
    return (x.view(jnp.bfloat16) if x.dtype == "V2" else x).astype(np.float32)


def vision(backbone, stored):
    """Yields (variable, our array) of the vision tower and of its head."""
    tower, head = (
        backbone.vit_encoder.get_layer(name) for name in ("image_encoder", "image_classifier")
    )
    embed = tower.vision_embeddings
    yield embed.patch_embedding.kernel, stored["img/embedding/kernel"]
    yield embed.patch_embedding.bias, stored["img/embedding/bias"]
    yield embed.position_embedding.embeddings, stored["img/pos_embedding"]
    yield tower.encoder_layer_norm.gamma, stored["img/Transformer/encoder_norm/scale"]
    yield tower.encoder_layer_norm.beta, stored["img/Transformer/encoder_norm/bias"]
    yield head.kernel, stored["img/head/kernel"]
    yield head.bias, stored["img/head/bias"]
    for number, block in enumerate(tower.resblocks):
        ours = "img/Transformer/encoderblock"
        norms = {"LayerNorm_0": block.layer_norm_1, "LayerNorm_1": block.layer_norm_2}
        for name, layer in norms.items():
            yield layer.gamma, stored[f"{ours}/{name}/scale"][number]
            yield layer.beta, stored[f"{ours}/{name}/bias"][number]
        heads = f"{ours}/MultiHeadDotProductAttention_0"
        dense = {
            f"{ours}/MlpBlock_0/Dense_0": block.mlp_dense_1,
            f"{ours}/MlpBlock_0/Dense_1": block.mlp_dense_2,
            f"{heads}/query": block.attn.query_proj,
            f"{heads}/key": block.attn.key_proj,
            f"{heads}/value": block.attn.value_proj,
            f"{heads}/out": block.attn.out_proj,
        }
        for name, layer in dense.items():
            yield layer.kernel, stored[f"{name}/kernel"][number]
            yield layer.bias, stored[f"{name}/bias"][number]


def language(backbone, stored):
    """Yields (variable, our array) of the language model."""
    yield backbone.token_embedding.embeddings, stored["llm/embedder/input_embedding"]
    yield backbone.layer_norm.scale, stored["llm/final_norm/scale"]
    for number, block in enumerate(backbone.transformer_layers):
        ours = {
            name.removeprefix("llm/layers/"): x[number]
            for name, x in stored.items()
            if name.startswith("llm/layers/")
        }
        attention = block.attention
        yield attention.query_dense.kernel, ours["attn/q_einsum/w"]
        yield attention.key_dense.kernel, ours["attn/kv_einsum/w"][0]
        yield attention.value_dense.kernel, ours["attn/kv_einsum/w"][1]
        yield attention.output_dense.kernel, ours["attn/attn_vec_einsum/w"]
        yield block.gating_ffw.kernel, ours["mlp/gating_einsum"][0]
        yield block.gating_ffw_2.kernel, ours["mlp/gating_einsum"][1]
        yield block.ffw_linear.kernel, ours["mlp/linear"]
        for name in ("pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm"):
            if f"{name}/scale" in ours:
                yield getattr(block, name).scale, ours[f"{name}/scale"]


def pixels(arrays):
    return jnp.asarray(arrays["image"] / np.float32(127.5) - np.float32(1))


def make_checkpoint(work):
    """Its own weights file; made first, as ours is."""
    path = str(work.folder / "keras_hub.weights.h5")
    read(work).backbone.save_weights(path)
    loaded = []

    def load():
        backbone = make_backbone(work)
        backbone.load_weights(path)
        loaded.append(backbone)
        jax.block_until_ready([variable.value for variable in backbone.variables])

    saved = str(work.folder / "saved_by_keras_hub.weights.h5")
    return lambda: serve.time_checkpoint(load, lambda: loaded.pop().save_weights(saved))


def make_step(work, arrays):
    model = read(work)
    if work.trains == "lora":
        model.backbone.enable_lora(work.lora_rank, target_layer_names=[*ATTENTION, *MLP])
    else:
        for variable in model.variables:
            is_attention = "decoder_block" in variable.path and "/attention/" in variable.path
            variable.trainable = work.trains == "all" or is_attention
    make = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}[work.optimizer]
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    )
    model.compile(optimizer=make(work.lr), loss=loss, weighted_metrics=[])
    text, learnt = arrays["text"], arrays["learnt"].astype(np.int32)
    batch = {
        "images": pixels(arrays),
        "token_ids": jnp.asarray(text[:, :-1]),
        "padding_mask": jnp.ones_like(text[:, :-1]),
        "response_mask": jnp.asarray(learnt[:, :-1]),
    }
    targets, weights = jnp.asarray(text[:, 1:]), jnp.asarray(learnt[:, 1:], jnp.float32)

    def update():
        nonlocal loss
        loss = float(model.train_on_batch(batch, targets, sample_weight=weights))
        jax.block_until_ready([variable.value for variable in model.trainable_variables])

    def run():
        times = {"step": serve.seconds(update)}
        return {"seconds": times, "loss": loss}

    return run


def make_decode(work, arrays):
    model = read(work)
    model.compile(sampler="greedy")
    prompt, image = arrays["text"][:, :-1], pixels(arrays)
    length = prompt.shape[1]

    def decode(count):
        room = ((0, 0), (0, count))
        inputs = {
            "images": image,
            "token_ids": jnp.asarray(np.pad(prompt, room)),
            "padding_mask": jnp.asarray(np.pad(np.ones_like(prompt), room)),
        }
        found = model.generate(inputs, stop_token_ids=None)
        return np.asarray(found["token_ids"])[:, length:]

    return lambda: serve.time_decoding(decode, work.new_tokens)


if __name__ == "__main__":
    main()
