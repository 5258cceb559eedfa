"""Adapters both ways: against PEFT's own folders, and the logits that PEFT computes with them."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax.checkpoints import (
    huggingface,
    huggingface_config,
    huggingface_names,
    npz,
    partial_weights,
    peft,
)
from paligemma_jax.models.paligemma import paligemma
from paligemma_jax.params import names

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
TOLERANCES = {"pg1": 1e-4, "pg2": 1e-3}


def read_base(case):
    """Returns the model and weights that PEFT trained its factors on."""
    folder = REFERENCE / f"hf_{case}"
    model = huggingface_config.model(json.loads((folder / "config.json").read_text()), where="")
    shapes = paligemma.shapes(model)
    return model, {k: np.asarray(x) for k, x in huggingface.read(folder, shapes)[0].items()}


def read_adapter(case):
    model, _ = read_base(case)
    return peft.read(REFERENCE / f"lora_{case}" / "trained", paligemma.shapes(model))


@functools.partial(jax.jit, static_argnames="model")
def run_logits(params, inputs, model):
    hidden = paligemma.apply(params, *inputs, model=model, compute=paligemma.Compute(remat="none"))
    return paligemma.logits(params, hidden, model=model)


@pytest.mark.parametrize("case", TOLERANCES)
def test_logits_with_the_adapter_and_with_it_merged_are_pefts(case, load_reference, tmp_path):
    model, base = read_base(case)
    lora, factors = read_adapter(case)
    _, given, _ = load_reference("train_trainer_pg1")
    keys = ("image_u8", "text", "mask_ar", "mask_input")
    image, *text = (given[key][0] for key in keys)
    inputs = image[:, None], np.ones((len(image), 1), bool), *text
    with np.load(REFERENCE / f"lora_{case}" / "expected.npz") as file:
        expected = file["logits"]
    real = text[-1].astype(bool)

    def largest_difference(params, model):
        found = np.asarray(run_logits(params, inputs, model))[..., : expected.shape[-1]]
        return np.abs(found - expected)[real].max()

    with_lora = dataclasses.replace(model, lora=lora)
    assert largest_difference({**base, **factors}, with_lora) <= TOLERANCES[case]
    metadata = {"lora": dataclasses.asdict(lora)}
    npz.write(tmp_path / "whole.npz", {**base, **factors}, metadata=metadata)
    added = partial_weights.merge(partial_weights.find(tmp_path / "whole.npz"))
    assert added.arrays.keys() == base.keys() and "lora" not in added.metadata
    assert largest_difference(added.read(), model) <= TOLERANCES[case]
    assert largest_difference(base, model) > 0.1


@pytest.mark.parametrize("case", TOLERANCES)
def test_what_is_written_is_what_peft_wrote(case, tmp_path):
    model, _ = read_base(case)
    lora, factors = read_adapter(case)
    peft.write(tmp_path, factors, lora, paligemma.shapes(model), base="google/x")
    theirs = REFERENCE / f"lora_{case}" / "trained"
    expected, found = (
        safetensors.numpy.load_file(folder / peft.WEIGHTS) for folder in (theirs, tmp_path)
    )
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    written, original = (
        json.loads((folder / peft.CONFIG).read_text()) for folder in (tmp_path, theirs)
    )
    keys = ("r", "lora_alpha", "lora_dropout", "use_rslora", "peft_type", "task_type", "bias")
    assert [written[key] for key in keys] == [original[key] for key in keys]
    again = peft.read(tmp_path, paligemma.shapes(model))
    assert again[0] == lora
    assert all(np.array_equal(again[1][name], x) for name, x in factors.items())


def test_others_may_read_what_is_written_as_far_as_the_umask_lets_them(tmp_path):
    model, _ = read_base("pg1")
    lora, factors = read_adapter("pg1")
    umask = os.umask(0o027)
    try:
        peft.write(tmp_path, factors, lora, paligemma.shapes(model), base=None)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {peft.CONFIG: 0o640, peft.WEIGHTS: 0o640}


def test_target_modules_are_the_layers_with_factors_and_no_others(tmp_path):
    model, _ = read_base("pg1")
    lora, factors = read_adapter("pg1")
    llm = {name: x for name, x in factors.items() if name.startswith("llm/")}
    peft.write(tmp_path, llm, lora, paligemma.shapes(model), base=None)
    targets = re.compile(json.loads((tmp_path / peft.CONFIG).read_text())["target_modules"])
    lines = (REFERENCE / "hf_pg1" / "keys_in_memory.txt").read_text().split()
    modules = {line.removesuffix(".weight") for line in lines if line.endswith(".weight")}
    hit = {module for module in modules if targets.fullmatch(module)}
    assert len(hit) == 3 * 7 and all("language_model" in module for module in hit)
    written = safetensors.numpy.load_file(tmp_path / peft.WEIGHTS)
    assert {key.removeprefix(peft.PREFIX).split(".lora_")[0] for key in written} == hit


@pytest.fixture
def adapter(tmp_path):
    """A copy of PEFT's folder, and a function that rewrites its tensors and settings."""
    folder = tmp_path / "adapter"
    shutil.copytree(REFERENCE / "lora_pg1" / "trained", folder)

    def change(tensors, **settings):
        stored = safetensors.numpy.load_file(folder / peft.WEIGHTS)
        safetensors.numpy.save_file(tensors(stored), folder / peft.WEIGHTS)
        settings_file = json.loads((folder / peft.CONFIG).read_text())
        (folder / peft.CONFIG).write_text(json.dumps({**settings_file, **settings}))
        return peft.read(folder, paligemma.shapes(read_base("pg1")[0]))

    return change


def test_pefts_usual_q_and_v_leave_k_alone(adapter):
    def only_q_and_v(tensors):
        return {k: x for k, x in tensors.items() if "q_proj" in k or "v_proj" in k}

    _, factors = adapter(only_q_and_v)
    llm = {name for name in factors if name.startswith("llm/")}
    assert llm == {f"llm/layers/attn/{e}_einsum/lora_{f}" for e in ("q", "kv") for f in "ab"}
    for which in "ab":
        keys, values = factors[f"llm/layers/attn/kv_einsum/lora_{which}"].swapaxes(0, 1)
        assert not keys.any() and values.any()


def test_the_spelling_of_transformers_4_is_understood(adapter):
    def as_4(tensors):
        return {
            k.replace("model.language_model.", "language_model.model.").replace(
                "model.vision_tower.", "vision_tower.vision_model."
            ): x
            for k, x in tensors.items()
        }

    _, factors = adapter(as_4)
    expected = read_adapter("pg1")[1]
    assert all(np.array_equal(factors[name], x) for name, x in expected.items())


def test_foreign_and_misshapen_tensors_are_all_listed(adapter):
    def break_two(tensors):
        key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
        return {
            **tensors,
            "base_model.model.model.language_model.layers.7.mlp.up_proj.lora_A.weight": np.ones(3),
            key: np.ones((9, 64), np.float32),
        }

    message = r"(?s)layers.7.mlp.up_proj.lora_A.weight: no such.*q_proj.weight: lora_A .*\(4, 64\)"
    with pytest.raises(ValueError, match=message):
        adapter(break_two)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(use_dora=True), "only plain LoRA is understood"),
        (dict(rank_pattern={"q_proj": 2}), r"q_proj.*lora_A and lora_B are .*expected .*\(2, "),
        (dict(rank_pattern={"q_proj": "2"}), 'rank_pattern is "2", expected a whole number'),
        (dict(rank_pattern={"(a+)+$": 2}), "rank_pattern has the regex .*, expected names"),
        (dict(rank_pattern=[2]), "rank_pattern is .*, expected an object"),
        (dict(peft_type="IA3"), "peft_type is 'IA3'"),
        (dict(init_lora_weights="pissa"), 'init_lora_weights is "pissa", expected true or "gau'),
        (dict(init_lora_weights="pissa_niter_4"), "init_lora_weights"),
        (dict(init_lora_weights="olora"), "save it with path_initial_model_for_weight_conversion"),
        (dict(init_lora_weights="loftq"), "init_lora_weights"),
        (dict(init_lora_weights="corda"), "init_lora_weights"),
        (dict(alpha_pattern={"q_proj": -2}), "alpha_pattern is -2, expected a number from 0"),
        (dict(bias="lora_only"), 'bias is "lora_only", expected "none"'),
        (dict(modules_to_save=["embed_tokens"]), "modules_to_save"),
        (dict(use_qalora=True), "use_qalora is true, and this key is not known"),
        (dict(some_new_trick={"strength": 2}), "some_new_trick is .*, and this key is not known"),
        (dict(r=None), "r is missing, expected a whole number"),
        (dict(r="4"), 'r is "4", expected a whole number'),
        (dict(r=8), r"lora_A and lora_B are .*expected .*\(8, "),
        (dict(lora_alpha=-1), "lora_alpha is -1, expected a number from 0"),
        (dict(lora_alpha=None), "lora_alpha is missing"),
        (dict(use_rslora="yes"), 'use_rslora is "yes", expected true or false'),
        (dict(layers_to_transform=[0]), "contradict each other.*\n.*lacks layer 1"),
        (dict(target_modules=["q_proj", "v_proj"]), "down_proj.*target_modules does not name it"),
        (dict(exclude_modules=["up_proj"]), "up_proj.*exclude_modules names it"),
    ],
)
def test_what_is_no_plain_lora_is_refused(adapter, settings, message):
    with pytest.raises(ValueError, match=rf"(?s)adapter_(config\.json|model\.saf).*{message}"):
        adapter(dict, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(modules_to_save=[], layers_to_transform=[], exclude_modules=[], bias=""),
        dict(rank_pattern=None, layer_replication=[], target_parameters=[], loftq_config=None),
        dict(init_lora_weights="gaussian", use_rslora=None, trainable_token_indices=[]),
        dict(layers_to_transform=[0, 1, 2], target_modules="all-linear", peft_version="0.17.1"),
    ],
)
def test_settings_that_say_nothing_are_as_good_as_absent(adapter, settings):
    lora, factors = adapter(dict, **settings)
    expected_lora, expected = read_adapter("pg1")
    assert lora == expected_lora
    assert all(np.array_equal(factors[name], x) for name, x in expected.items())


def test_ranks_and_alphas_by_pattern_add_what_peft_adds(adapter):
    base = read_base("pg1")[1]
    ranks = {"layers.1.self_attn.q_proj": 2, "^model.language_model.layers.2.mlp.up_proj": 1}
    alphas = {"v_proj": 3.0, "layers.2.mlp.up_proj": 0.5}

    def cut(tensors):
        def rank(key):
            hits = (r for end, r in ranks.items() if f"{end.lstrip('^')}.lora" in key)
            return next(hits, 4)

        return {
            key: x[: rank(key)] if ".lora_A." in key else np.ascontiguousarray(x[:, : rank(key)])
            for key, x in tensors.items()
        }

    lora, factors = adapter(cut, rank_pattern=ranks, alpha_pattern=alphas)
    plain, _ = read_adapter("pg1")
    assert lora == plain and lora.rank == 4
    stored = safetensors.numpy.load_file(REFERENCE / "lora_pg1" / "trained" / peft.WEIGHTS)
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in base.items()}
    layers = {piece.theirs: piece for piece in huggingface_names.pieces(shapes)}
    for key, a in cut(stored).items():
        if ".lora_A." not in key:
            continue
        b = cut(stored)[key.replace(".lora_A.", ".lora_B.")]
        alpha = next((x for end, x in alphas.items() if f"{end}.lora" in key), plain.alpha)
        piece = layers[peft.linear_layer(key)[0]]
        names_of = [names.factor(piece.ours, which) for which in names.FACTORS]
        ours = huggingface_names.factors_to_theirs(piece, *(factors[n] for n in names_of))
        expected = alpha / len(a) * b @ a
        np.testing.assert_allclose(lora.scale * ours[1] @ ours[0], expected, rtol=1e-5, atol=1e-9)


def test_a_tensor_under_two_names_is_an_error(adapter):
    def double(tensors):
        key = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
        other = key.replace("model.language_model.", "language_model.model.")
        return {**tensors, other: tensors[key]}

    with pytest.raises(ValueError, match="the same tensor is there under another name"):
        adapter(double)


@pytest.mark.parametrize("damage", [lambda x: x[:-9], lambda _: b"\xff" * 30, lambda _: b""])
def test_a_damaged_or_missing_file_of_factors_is_named(adapter, tmp_path, damage):
    path = tmp_path / "adapter" / peft.WEIGHTS
    shapes = paligemma.shapes(read_base("pg1")[0])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{path}: cut off, damaged .*copy it again"):
        peft.read(path.parent, shapes)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path}: no such file"):
        peft.read(path.parent, shapes)


def test_weights_that_say_nothing_of_their_factors_are_refused(tmp_path):
    name = names.factor("llm/layers/mlp/linear", "lora_a")
    npz.write(tmp_path / "a.npz", {name: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="does not say how they act"):
        partial_weights.describe_lora(partial_weights.find(tmp_path / "a.npz"))
    npz.write(tmp_path / "b.npz", {"llm/layers/mlp/linear": np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="no LoRA factors, nothing to merge"):
        partial_weights.merge(partial_weights.find(tmp_path / "b.npz"))


ORACLE = """
import sys
import numpy as np, peft, torch, transformers
sys.path.insert(0, sys.argv[1])
import make_lora
base = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
    make_lora.HERE / "hf_pg1", attn_implementation="eager", dtype=torch.float32
)
model = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
with np.load(make_lora.HERE / "train_trainer_pg1.npz") as file:
    batch = {k.removeprefix("in/"): v[0] for k, v in file.items() if k.startswith("in/")}
with torch.no_grad():
    np.save(sys.argv[2] + "/logits.npy", make_lora.loss_and_logits(model, batch)[1].numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["llm/", ""])
def test_peft_computes_our_logits_with_what_is_written(targets, load_reference, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    model, base = read_base("pg1")
    lora, factors = read_adapter("pg1")
    rng = np.random.default_rng(0)
    factors = {
        name: rng.normal(size=x.shape, scale=0.1).astype(np.float32)
        for name, x in factors.items()
        if name.startswith(targets)
    }
    peft.write(tmp_path, factors, lora, paligemma.shapes(model), base=None)
    command = [sys.executable, "-c", ORACLE, str(REFERENCE), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "missing adapter keys" not in done.stderr
    _, given, _ = load_reference("train_trainer_pg1")
    image, *text = (given[key][0] for key in ("image_u8", "text", "mask_ar", "mask_input"))
    inputs = image[:, None], np.ones((len(image), 1), bool), *text
    ours = run_logits({**base, **factors}, inputs, dataclasses.replace(model, lora=lora))
    real = text[-1].astype(bool)
    difference = np.abs(np.asarray(ours) - np.load(tmp_path / "logits.npy"))[real].max()
    assert difference <= TOLERANCES["pg1"], difference
    plain = run_logits(base, inputs, model)
    assert np.abs(plain - ours)[real].max() > 0.1


@pytest.mark.slow
def test_peft_still_trains_as_the_reference_says(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    command = [sys.executable, str(REFERENCE / "make_lora.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for case in TOLERANCES:
        found, expected = (
            np.load(folder / f"lora_{case}" / "expected.npz")["losses"]
            for folder in (tmp_path, REFERENCE)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)
