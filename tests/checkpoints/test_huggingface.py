"""Hugging Face weights both ways: against transformers' own files and logits, and bit for bit."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax.checkpoints import huggingface, huggingface_config, npz, partial_weights
from paligemma_jax.models.paligemma import paligemma, variants

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
CASES = {"pg1": "tiny", "pg2": "tiny2"}
TOLERANCES = {"pg1": 1e-4, "pg2": 1e-3}


def make_model(case: str) -> variants.PaliGemma:
    return variants.make("tiny/14", CASES[case], res=56, vocab_size=1400, final_logits_softcap=0.0)


def read_all(folder, model, **settings):
    arrays, metadata = huggingface.read(folder, paligemma.shapes(model), **settings)
    return {name: np.asarray(array) for name, array in arrays.items()}, metadata


def export(tmp_path, params, **settings):
    """Writes params as an npz file and that as a folder of safetensors, which it returns."""
    npz.write(tmp_path / "source.npz", params)
    layout = huggingface.plan(npz.read_header(tmp_path / "source.npz").arrays, **settings)
    folder = tmp_path / "hf"
    folder.mkdir(exist_ok=True)
    huggingface.write(partial_weights.find(tmp_path / "source.npz"), folder, layout)
    return folder


def assert_bit_equal(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        bits = f"u{array.dtype.itemsize}"
        np.testing.assert_array_equal(found[name].view(bits), array.view(bits), err_msg=name)


@functools.partial(jax.jit, static_argnames="model")
def run_logits(params, inputs, model):
    hidden = paligemma.apply(params, *inputs, model=model, compute=paligemma.Compute(remat="none"))
    return paligemma.logits(params, hidden, model=model)


@pytest.mark.parametrize("case", CASES)
def test_weights_saved_by_transformers_give_its_logits(case):
    folder = REFERENCE / f"hf_{case}"
    given = json.loads((folder / "config.json").read_text())
    model = huggingface_config.model(given, where="config.json")
    assert model == make_model(case)
    params, _ = read_all(folder, model)
    with np.load(folder / "expected.npz") as file:
        given = dict(file)
    skip = model.num_image_tokens
    valid = given["attention_mask"][:, skip:].astype(bool)
    image = given["image_u8"][:, None]
    text = given["input_ids"][:, skip:].astype("int32")
    inputs = image, np.ones((5, 1), bool), text, given["token_type_ids"][:, skip:], valid
    found = np.asarray(run_logits(params, inputs, model))
    np.testing.assert_allclose(
        found[valid], given["text_logits"][valid], rtol=0, atol=TOLERANCES[case]
    )


@pytest.mark.parametrize("case", CASES)
def test_weights_saved_by_transformers_are_the_ones_that_big_vision_had(case, load_reference):
    params, _ = read_all(REFERENCE / f"hf_{case}", make_model(case))
    assert_bit_equal(params, load_reference(f"forward_{case}")[0])


@pytest.mark.parametrize("case", CASES)
def test_exported_tensors_have_the_names_and_shapes_of_the_hub(tmp_path, case, load_reference):
    folder = export(tmp_path, load_reference(f"forward_{case}")[0])
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    lines = (REFERENCE / f"hf_{case}" / "keys_hub_style.txt").read_text().splitlines()
    found = [f"{name}\t{','.join(map(str, x.shape))}" for name, x in sorted(tensors.items())]
    assert found == sorted(lines)


@pytest.mark.parametrize("case", CASES)
def test_exported_tensors_are_those_that_transformers_saved(tmp_path, case, load_reference):
    ours = safetensors.numpy.load_file(
        export(tmp_path, load_reference(f"forward_{case}")[0]) / "model.safetensors"
    )
    theirs = safetensors.numpy.load_file(REFERENCE / f"hf_{case}" / "model.safetensors")
    theirs = {huggingface.huggingface_names.hub_name(name): x for name, x in theirs.items()}
    extra = "language_model.model.embed_tokens.weight"
    np.testing.assert_allclose(ours[extra][1400:], theirs[extra][1400:], rtol=0, atol=1e-6)
    ours[extra], theirs[extra] = ours[extra][:1400], theirs[extra][:1400]
    assert_bit_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", ["forward_pg1", "forward_pg2"])
def test_there_and_back_is_bit_exact(tmp_path, case, dtype, load_reference):
    params = {name: x.astype(dtype) for name, x in load_reference(case)[0].items()}
    folder = export(tmp_path, params, metadata={"task": "detection", "dtypes": {}})
    found, metadata = read_all(folder, make_model(case.removeprefix("forward_")))
    assert_bit_equal(found, params)
    assert metadata == {"task": "detection"}


def test_unshared_heads_and_mixed_dtypes_come_back(tmp_path):
    model = variants.make("tiny/14", "tiny_mha", res=56, vocab_size=1400)
    rng = np.random.default_rng(0)
    shapes = paligemma.shapes(model).items()
    params = {name: rng.normal(size=x.shape).astype("float32") for name, x in shapes}
    for name in ("llm/embedder/input_embedding", "img/head/bias"):
        params[name] = params[name].astype("float16")
    found, _ = read_all(export(tmp_path, params, shard_bytes=100_000), model)
    assert_bit_equal(found, params)


@pytest.mark.parametrize("spelling", ["hub_style", "in_memory"])
def test_every_spelling_of_names_is_read(tmp_path, spelling, load_reference):
    params = load_reference("forward_pg1")[0]
    source = safetensors.numpy.load_file(export(tmp_path, params) / "model.safetensors")
    source["lm_head.weight"] = source["language_model.model.embed_tokens.weight"].copy()
    lines = (REFERENCE / "hf_pg1" / f"keys_{spelling}.txt").read_text().splitlines()
    names = [line.partition("\t")[0] for line in lines]
    hub_name = huggingface.huggingface_names.hub_name
    spelled = {name: source[hub_name(name)] for name in names}
    safetensors.numpy.save_file(spelled, tmp_path / "model.safetensors")
    found, _ = read_all(tmp_path, make_model("pg1"))
    assert_bit_equal(found, params)


def test_a_head_that_is_not_the_embedding_is_refused(tmp_path, load_reference):
    folder = export(tmp_path, load_reference("forward_pg1")[0])
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"] + 1
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="differs from the embedding"):
        huggingface.read(folder, paligemma.shapes(make_model("pg1")))


def test_missing_and_extra_tensors_are_listed_with_near_misses(tmp_path, load_reference):
    folder = export(tmp_path, load_reference("forward_pg1")[0])
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    tensors[name.replace("up_proj", "upproj")] = tensors.pop(name)
    tensors["vision_tower.vision_model.head.probe"] = np.zeros(3, "float32")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        huggingface.read(folder, paligemma.shapes(make_model("pg1")))
    assert f"missing: {name} (is it 'language_model.model.layers.1.mlp.upproj" in str(caught.value)
    assert "extra: vision_tower.vision_model.head.probe (3,)" in str(caught.value)


def test_arrays_without_a_place_in_transformers_are_named():
    shapes = {"llm/layers/attn/q_einsum/lora_a": jax.ShapeDtypeStruct((3, 4), jnp.float32)}
    with pytest.raises(ValueError, match=r"no place for .*lora_a"):
        huggingface.plan(shapes)


def test_no_extra_row_can_have_the_largest_logit(tmp_path, load_reference):
    params = load_reference("forward_pg1")[0]
    params["llm/embedder/input_embedding"] -= 1  # so that a row of zeros would often win
    folder = export(tmp_path, params)
    table = safetensors.numpy.load_file(folder / "model.safetensors")
    table = table["language_model.model.embed_tokens.weight"]
    hidden = np.random.default_rng(0).normal(size=(100, 64)).astype("float32")
    assert (hidden @ table.T).argmax(-1).max() < 1400
