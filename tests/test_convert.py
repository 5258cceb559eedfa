"""Conversion through the door: there and back, what it infers, what it refuses."""

import functools
import json
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from paligemma_jax import convert
from paligemma_jax.checkpoints import huggingface, npz
from paligemma_jax.data import tokens
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.settings import load, presets

REFERENCE = pathlib.Path(__file__).parent / "reference"
SWITCHES = {
    "query_scale": "head_dim",
    "attn_logits_softcap": 50.0,
    "final_logits_softcap": 30.0,
}


@pytest.fixture
def weights(tmp_path, load_reference):
    """An npz file of a tiny PaliGemma 2 with metadata, without a tokenizer."""
    params = load_reference("forward_pg2")[0]
    npz.write(tmp_path / "weights.npz", params, metadata={**SWITCHES, "task": "detection"})
    return tmp_path / "weights.npz"


def run(capsys, *words) -> dict:
    """Runs the door and returns what it prints, with what it says as `printed`."""
    convert.main([str(word) for word in words])
    out, printed = capsys.readouterr()
    return {**json.loads(out), "printed": printed}


def read_json(path):
    return json.loads(path.read_text())


def test_there_and_back_keeps_every_bit_and_the_metadata(weights, tmp_path, capsys):
    result = run(capsys, weights, tmp_path / "hf")
    size = (tmp_path / "hf" / "model.safetensors").stat().st_size
    assert (result["arrays"], result["bytes"]) == (34, size)
    assert "soft-caps: attention 50, final 30" in result["printed"]
    text = read_json(tmp_path / "hf" / "config.json")["text_config"]
    assert (text["attn_logit_softcapping"], text["final_logit_softcapping"]) == (50.0, 30.0)
    run(capsys, tmp_path / "hf", tmp_path / "back.npz")
    expected, one = npz.read(weights), npz.read(tmp_path / "back.npz")
    assert sorted(one) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(one[name], array, err_msg=name)
    metadata = npz.read_header(tmp_path / "back.npz").metadata
    assert metadata.items() >= {**SWITCHES, "task": "detection", "res": 56}.items()


def test_weights_saved_by_transformers_become_an_npz(tmp_path, capsys, load_reference):
    run(capsys, REFERENCE / "hf_pg1", tmp_path / "a.npz", "--dtype", "bfloat16")
    for name, array in load_reference("forward_pg1")[0].items():
        arrays = npz.read(tmp_path / "a.npz", names=[name])[name]
        np.testing.assert_array_equal(arrays, array.astype(ml_dtypes.bfloat16), err_msg=name)


def write_run(folder):
    """Writes what a run leaves, weights of 0; returns its tokenizer."""
    tokenizer = tokens.load_tokenizer(REFERENCE / "tiny_spm.model")
    model = variants.make("tiny/14", "tiny", res=28, vocab_size=tokenizer.vocab_size)
    params = {name: np.zeros(x.shape, "float16") for name, x in paligemma.shapes(model).items()}
    metadata = {**SWITCHES, "attn_logits_softcap": 0.0, "final_logits_softcap": 0.0}
    npz.write(folder / "final.npz", params, metadata=metadata)
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    return tokenizer


# Without these, tools that pack a folder of safetensors ask whether to go on.
PACKED = {"preprocessor_config.json", "special_tokens_map.json", "tokenizer_config.json"}
PACKED |= {"tokenizer.json"}


def test_a_run_brings_its_tokenizer(tmp_path, capsys):
    tokenizer = write_run(tmp_path)
    run(capsys, tmp_path, tmp_path / "hf")
    assert {path.name for path in (tmp_path / "hf").iterdir()} >= PACKED
    special = read_json(tmp_path / "hf" / "special_tokens_map.json")
    assert (special["bos_token"], special["additional_special_tokens"]) == ("<s>", ["<image>"])
    config = read_json(tmp_path / "hf" / "config.json")
    assert (config["dtype"], config["image_token_index"]) == ("float16", tokenizer.vocab_size)
    assert config["text_config"]["model_type"] == "gemma"
    added = read_json(tmp_path / "hf" / "tokenizer_config.json")["added_tokens_decoder"]
    names = {int(number): token["content"] for number, token in added.items()}
    assert names[tokenizer.loc_ids[7]] == "<loc0007>"
    assert names[tokenizer.vocab_size] == "<image>"
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == tokenizer.model
    assert read_json(tmp_path / "hf" / "preprocessor_config.json")["image_seq_length"] == 4


@pytest.mark.slow
def test_transformers_reads_a_prompt_as_the_model_was_taught(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    tokenizer = write_run(tmp_path)
    run(capsys, tmp_path, tmp_path / "hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.is_fast
    image = Image.fromarray(np.full((40, 60, 3), 200, np.uint8))
    for prefix in ("detect cat ; dog", "where  is <loc0012>?"):
        read = processor(text=f"<image>{prefix}", images=image, suffix="<loc0001> cat")
        ids = np.ravel(read["input_ids"]).tolist()
        answer = [*tokenizer.encode("<loc0001> cat"), tokenizer.eos]
        assert ids[4:] == [*tokenizer.encode_prompt(prefix), *answer]
        assert ids[:4] == [tokenizer.vocab_size] * 4
        assert np.shape(read["pixel_values"])[-2:] == (28, 28)


def test_a_tokenizer_of_another_size_is_refused_before_anything_is_written(weights, tmp_path):
    spm = str(REFERENCE / "tiny_spm.model")
    with pytest.raises(ValueError, match="1572 pieces, the embedding 1400 rows"):
        convert.main([str(weights), str(tmp_path / "hf"), "--tokenizer", spm])
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


def test_openpi_gets_its_prefix_and_float32(tmp_path, capsys):
    params = {"img/head/bias": np.ones(3, "float16")}
    npz.write(tmp_path / "a.npz", params)
    run(capsys, tmp_path / "a.npz", tmp_path / "b.npz", "--openpi")
    with np.load(tmp_path / "b.npz") as file:
        assert {name: file[name].dtype for name in file} == {"params/img/head/bias": "float32"}


def test_casts_keep_the_metadata(weights, tmp_path, capsys):
    run(capsys, weights, tmp_path / "half.npz", "--dtype", "float16")
    header = npz.read_header(tmp_path / "half.npz")
    assert {array.dtype for array in header.arrays.values()} == {np.dtype("float16")}
    assert header.metadata["task"] == "detection"


def test_what_arrays_cannot_tell_must_be_said(tmp_path, capsys, load_reference):
    source, folder = tmp_path / "bare.npz", tmp_path / "hf"
    npz.write(source, load_reference("forward_pg2")[0])
    with pytest.raises(ValueError, match="these arrays are none of"):
        convert.main([str(source), str(folder)])
    run(capsys, source, folder, "--variant", "tiny/14,tiny2")
    text = read_json(folder / "config.json")["text_config"]
    assert (text["attn_logit_softcapping"], text["final_logit_softcapping"]) == (50.0, None)
    cap = ("--final_logits_softcap", 30, "--overwrite")
    run(capsys, source, folder, "--variant", "tiny/14,tiny2", *cap)
    text = read_json(folder / "config.json")["text_config"]
    assert text["final_logit_softcapping"] == 30.0


def test_a_released_paligemma_2_without_metadata_asks_for_the_variant(tmp_path, monkeypatch):
    monkeypatch.setitem(variants.RELEASED, "paligemma2-0b", ("tiny/14", "tiny2"))
    model = variants.make("tiny/14", "tiny2", res=28, vocab_size=8)
    params = {name: np.zeros(x.shape, "float16") for name, x in paligemma.shapes(model).items()}
    npz.write(tmp_path / "a.npz", params)
    with pytest.raises(ValueError, match="Give --variant paligemma2-0b"):
        convert.main([str(tmp_path / "a.npz"), str(tmp_path / "hf")])


def test_a_run_without_metadata_is_described_by_its_config(tmp_path, capsys, load_reference):
    npz.write(tmp_path / "final.npz", load_reference("forward_pg2")[0])
    config = presets.finetune(model="paligemma2-3b", res=56)
    config.model.img.variant, config.model.llm.variant = "tiny/14", "tiny2"
    config.model.llm.vocab_size = 1400
    (tmp_path / "config.json").write_text(load.to_json(load.typed(config)))
    run(capsys, tmp_path, tmp_path / "hf")
    text = read_json(tmp_path / "hf" / "config.json")["text_config"]
    assert (text["attn_logit_softcapping"], text["final_logit_softcapping"]) == (50.0, None)


def test_missing_packages_are_said_before_the_work(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("paligemma_jax.export.parity.PACKAGES", ("torch_of_nobody",))
    with pytest.raises(ValueError, match="pip install torch_of_nobody"):
        convert.main([str(weights), str(tmp_path / "hf"), "--verify"])
    assert not (tmp_path / "hf").exists()


def test_two_npz_files_cannot_be_verified(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("paligemma_jax.export.parity.PACKAGES", ())
    with pytest.raises(ValueError, match="must be such a folder"):
        convert.main([str(weights), str(tmp_path / "a.npz"), "--verify"])


def test_a_variant_of_other_dimensions_says_what_differs(weights, tmp_path):
    with pytest.raises(ValueError, match=r"llm\.width 64 instead of 2304"):
        convert.main([str(weights), str(tmp_path / "hf"), "--variant", "paligemma2-3b"])


def test_nothing_is_overwritten_unless_asked(weights, tmp_path, capsys):
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("README.md", "model-00001-of-00002.safetensors"):
        (folder / name).write_text("old")
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        convert.main([str(weights), str(folder)])
    run(capsys, weights, folder, "--overwrite")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
    }
    assert (folder / "README.md").read_text() == "old"
    with pytest.raises(ValueError, match="is where SRC is"):
        convert.main([str(weights), str(weights), "--overwrite"])


def test_a_failed_export_leaves_what_was_there(tmp_path, load_reference, capsys):
    params = load_reference("forward_pg1")[0]
    params["llm/final_norm/scale"][0] = 1e6
    npz.write(tmp_path / "a.npz", params)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    words = [tmp_path / "a.npz", folder, "--variant", "tiny/14,tiny", "--overwrite"]
    with pytest.raises(ValueError, match="'llm/final_norm/scale' holds numbers up to 1e"):
        run(capsys, *words, "--dtype", "float16")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "hf"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.npz", "hf"], "no such file or folder; nothing is downloaded"),
        (["empty", "hf"], "it holds nothing"),
        (["weights.npz", "hf", "--variant", "paligemma3"], "expected one of"),
        (["weights.npz", "hf", "--variant", "tiny/14,gemma5"], "no language model named"),
    ],
)
def test_what_cannot_be_converted_is_said(weights, tmp_path, monkeypatch, words, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        convert.main(words)


@pytest.mark.parametrize("source", ["coco", "roboflow://a/b/3"])
def test_a_data_set_as_source_names_the_command_that_imports_it(source, tmp_path, monkeypatch):
    monkeypatch.chdir(REFERENCE / "datasets")
    with pytest.raises(
        ValueError, match=rf"\.import_data {source} {source}_jsonl --task detection"
    ):
        convert.main([source, str(tmp_path / "out")])


@pytest.mark.parametrize("task", [["--task", "vqa"], ["--task=vqa"]])
def test_a_task_ends_with_the_command_for_data_sets(task, capsys):
    with pytest.raises(SystemExit) as ended:
        convert.main(["my data", "out", *task, "--split", "train=0.8,valid=0.2"])
    command = f"'my data' out {' '.join(task)} --split train=0.8,valid=0.2"
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: data sets have a command of their own: paligemma-jax import_data {command}\n"
    )


def test_several_files_are_read_through_their_index(weights, tmp_path, capsys, monkeypatch):
    small = functools.partial(huggingface.plan, shard_bytes=300_000)
    monkeypatch.setattr(huggingface, "plan", small)
    run(capsys, weights, tmp_path / "hf")
    assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 3
    run(capsys, tmp_path / "hf", tmp_path / "back.npz")
    arrays = npz.read(tmp_path / "back.npz")
    for name, array in npz.read(weights).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


# (language model, max difference): as transformers is from big_vision with the same weights.
TRANSFORMERS = {"pg1": ("tiny", 1e-4), "pg2": ("tiny2", 1e-3)}


@pytest.fixture
def verify(tmp_path, load_reference):
    """Runs the door with --verify in a process of its own, on the weights of a reference."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")

    def verify(case, *options):
        npz.write(tmp_path / "a.npz", load_reference(f"forward_{case}")[0])
        variant = f"tiny/14,{TRANSFORMERS[case][0]}"
        words = [tmp_path / "a.npz", tmp_path / "hf", "--verify", "--variant", variant, *options]
        command = [sys.executable, "-m", "paligemma_jax.convert", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return verify


@pytest.mark.slow
@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers_gives_the_same_logits(case, verify):
    done = verify(case)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_logit_difference"] <= TRANSFORMERS[case][1]
    assert "0.001 of it is allowed" in done.stderr


@pytest.mark.slow
def test_a_cast_is_verified_within_what_16_bits_round(verify):
    done = verify("pg1", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "0.01 of it is allowed" in done.stderr


@pytest.mark.slow
def test_a_cast_that_changes_the_logits_more_is_refused(verify):
    """bfloat16, of weights that amplify rounding on purpose: 4% of the largest logit."""
    done = verify("pg2", "--dtype", "bfloat16")
    assert done.returncode != 0
    assert "16 bits may make 0.01. Do not use what was written" in done.stderr
    assert "convert with --dtype float32" in done.stderr


def test_integers_are_not_written_for_transformers_and_their_file_is_named(weights, tmp_path):
    with np.load(weights) as file:
        arrays = dict(file)
    name = "img/Transformer/encoder_norm/bias"
    arrays[name] = arrays[name].astype(np.int8)
    metadata = {k: v for k, v in npz.read_header(weights).metadata.items() if k != "dtypes"}
    npz.write(tmp_path / "a.npz", arrays, metadata=metadata)
    with pytest.raises(ValueError, match=r"a\.npz: 'img/.*bias' is int8, .*give --dtype"):
        convert.main([str(tmp_path / "a.npz"), str(tmp_path / "hf"), "--tokenizer=none"])


def test_a_base_that_is_not_there_is_said_to_be_the_base(weights, tmp_path):
    with np.load(weights) as file:
        arrays = dict(list(file.items())[:2])
    metadata = {"num_arrays_with_base": 9, "base": {"path": "x", "fingerprint": "y"}}
    npz.write(tmp_path / "a.npz", arrays, metadata=metadata)
    words = [str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--base", "nope.npz"]
    with pytest.raises(ValueError, match=r"the base of .*a\.npz: .*nope\.npz"):
        convert.main(words)
