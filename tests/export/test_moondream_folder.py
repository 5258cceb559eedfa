"""The authors' model.safetensors in and out: same bytes, and clear words for what is none."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from paligemma_jax import convert
from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import npz, partial_weights
from paligemma_jax.models.moondream import as_family, variants
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names
from tests.data import test_tokenizer_json

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "moondream"
TINY = "--variant=tiny/14,tiny"
DIMS = variants.Moondream(variants.VITS["tiny/14"], variants.PHIS["tiny"], 56, 320)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "theirs").mkdir()
    shutil.copy(REFERENCE / "model.safetensors", tmp_path / "theirs")
    return tmp_path / "theirs"


def test_to_npz_and_back_gives_the_same_tensors(source, tmp_path):
    convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
    arrays = npz.read(tmp_path / "ours.npz")
    metadata = npz.read_header(tmp_path / "ours.npz").metadata
    assert arrays["text/layers/attn/qkv/kernel"].shape == (3, 64, 3, 4, 16)
    assert (metadata["res"], metadata["vocab_size"], metadata["rotary_dim"]) == (56, 320, 8)
    convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "again")])
    first, second = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (source, tmp_path / "again")
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture
def adapted(source, tmp_path) -> pathlib.Path:
    """An npz file of factors beside base.npz."""
    convert.main([str(source), str(tmp_path / "base.npz"), TINY])
    lora = lora_lib.Lora("text/layers/.*/kernel|img/blocks/attn/qkv/kernel", 2, 4.0)
    model = as_family.Model(dataclasses.replace(DIMS, lora=lora))
    rng = np.random.default_rng(3)
    factors = {
        name: rng.normal(size=x.shape, scale=0.1).astype(np.float32)
        for name, x in model.shapes().items()
        if names.is_factor(name)
    }
    base = partial_weights.find(tmp_path / "base.npz")
    metadata = {
        **weights.model_metadata(model),
        partial_weights.NUM_ARRAYS: len(base.arrays) + len(factors),
        partial_weights.BASE: partial_weights.describe_base(str(base.path), base, dtype=None),
    }
    npz.write(tmp_path / "adapted.npz", factors, metadata=metadata)
    return tmp_path / "adapted.npz"


def test_factors_are_added_into_the_weights(adapted, tmp_path):
    convert.main([str(adapted), str(tmp_path / "whole.npz"), "--merge"])
    whole, base = npz.read(tmp_path / "whole.npz"), npz.read(tmp_path / "base.npz")
    factors = npz.read(adapted)
    assert whole.keys() == base.keys()
    changed = {name for name in base if not np.array_equal(whole[name], base[name])}
    assert changed == set(lora_lib.pairs(factors))
    name = "text/layers/attn/qkv/kernel"
    a, b = (factors[one].astype(np.float64) for one in lora_lib.pairs(factors)[name])
    added = 2.0 * np.einsum("LDr,LrcNH->LDcNH", a, b)
    np.testing.assert_allclose(whole[name], base[name] + added, rtol=0, atol=1e-5)
    convert.main([str(adapted), str(tmp_path / "folder"), "--merge"])
    assert "text_model.lm_head.ln.weight" in safetensors.numpy.load_file(
        tmp_path / "folder" / "model.safetensors"
    )


def test_an_adapter_goes_to_peft_and_back(adapted, tmp_path):
    convert.main([str(adapted), str(tmp_path / "adapter")])
    tensors = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    layer = "base_model.model.text_model.transformer.h.1.mixer.Wqkv"
    assert tensors[f"{layer}.lora_A.weight"].shape == (2, 64)
    assert tensors[f"{layer}.lora_B.weight"].shape == (192, 2)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "text_model.transformer.h.1.mixer.Wqkv" in settings["target_modules"]
    words = [str(tmp_path / "adapter"), str(tmp_path / "again.npz")]
    with pytest.raises(ValueError, match="--base"):
        convert.main(words)
    convert.main([*words, f"--base={tmp_path / 'base.npz'}"])
    one, other = npz.read(adapted), npz.read(tmp_path / "again.npz")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    convert.main([str(tmp_path / "again.npz"), str(tmp_path / "merged.npz"), "--merge"])
    convert.main([str(adapted), str(tmp_path / "whole.npz"), "--merge"])
    one, other = npz.read(tmp_path / "merged.npz"), npz.read(tmp_path / "whole.npz")
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_peft_adds_of_the_adapter_what_merging_adds(adapted, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    convert.main([str(adapted), str(tmp_path / "adapter")])
    convert.main([str(adapted), str(tmp_path / "merged"), "--merge"])
    base = safetensors.numpy.load_file(REFERENCE / "model.safetensors")
    root = torch.nn.Module()
    for name in (name for name, x in base.items() if x.ndim == 2 and name.endswith(".weight")):
        *path, last, _ = name.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        outputs, inputs = base[name].shape
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        linear.weight.data = torch.from_numpy(base[name].copy())
        module.add_module(last, linear)
    adapter = peft.PeftModel.from_pretrained(root, str(tmp_path / "adapter"))
    theirs = adapter.merge_and_unload().state_dict()
    ours = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name, x in theirs.items() if not np.array_equal(x.numpy(), base[name])}
    assert len(changed) == 3 * 4 + 3  # of three blocks each: four layers of text, one of images
    for name, x in theirs.items():
        np.testing.assert_allclose(x.numpy(), ours[name], rtol=0, atol=1e-5)


def test_the_folder_says_what_the_authors_classes_ask(source, tmp_path, capsys):
    convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
    convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "bare")])
    assert "--tokenizer FILE" in capsys.readouterr().err
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["phi_config"] == {
        "model_type": "phi",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "partial_rotary_factor": 0.5,
    }
    (tmp_path / "any.name").write_bytes(test_tokenizer_json.make_small())
    words = [str(tmp_path / "ours.npz"), str(tmp_path / "whole")]
    convert.main([*words, f"--tokenizer={tmp_path / 'any.name'}"])
    stored = json.loads((tmp_path / "whole" / "tokenizer_config.json").read_text())
    assert stored["eos_token"] == "<|endoftext|>"
    loaded = tokenizers.Tokenizer.from_file(str(tmp_path / "whole" / "tokenizer.json"))
    assert loaded.decode(loaded.encode("in the coin").ids) == "in the coin"


def test_16_bits_are_written_where_they_are_asked_for(source, tmp_path):
    convert.main([str(source), str(tmp_path / "ours.npz"), TINY, "--dtype=float16"])
    assert {x.dtype.name for x in npz.read(tmp_path / "ours.npz").values()} == {"float16"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant=tiny/14,gemma_2b"], "expected moondream2-2024-04-02"),
        ([], "theirs"),  # the released size: all that is misshapen is listed
        ([TINY, "--openpi"], "--openpi"),
        ([TINY, "--verify"], "--verify"),
    ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, words, message):
    with pytest.raises(ValueError) as caught:
        convert.main([str(source), str(tmp_path / "ours.npz"), *words])
    assert message in str(caught.value)
    assert not (tmp_path / "ours.npz").exists()


def test_a_later_release_is_read_without_its_model_of_regions(source, tmp_path, capsys):
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    name = "vision_encoder.projection.mlp.fc1.weight"
    tensors[name] = np.concatenate([tensors[name]] * 2, axis=1)
    regions = {"region_model.position_features.weight": np.ones((2, 3), np.float32)}
    safetensors.numpy.save_file(tensors | regions, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"projection\.mlp\.fc1"):
        convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
    convert.main([str(source), str(tmp_path / "ours.npz"), "--variant=tiny/14_crops,tiny"])
    assert "1 tensors of its region_model.* are left out" in capsys.readouterr().err
    convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "again")])
    again = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in again)


def test_a_missing_tensor_is_named(source, tmp_path):
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    del tensors["text_model.lm_head.ln.bias"]
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.ln\.bias"):
        convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
