"""A file of weights is compared with the model before it is read."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import npz, partial_weights
from paligemma_jax.hub import download
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import sharding
from paligemma_jax.settings import load, presets

POSITIONS = "img/pos_embedding"


def test_position_embedding_of_another_width_is_listed(config, tmp_path):
    config.model.img.resample_posemb = True
    small = model_functions.describe(load.typed(config), vocab_size=50)
    params = {name: np.zeros(shape.shape, np.float16) for name, shape in small.shapes().items()}
    npz.write(tmp_path / "good.npz", params | {POSITIONS: np.zeros((1, 4, 8), np.float16)})
    weights.check(load.typed(config), partial_weights.find(tmp_path / "good.npz"), small)
    npz.write(tmp_path / "bad.npz", params | {POSITIONS: np.zeros((1, 4, 7), np.float16)})
    with pytest.raises(ValueError, match=rf"shape: {POSITIONS} is \(1, 1, 7\)"):
        weights.check(load.typed(config), partial_weights.find(tmp_path / "bad.npz"), small)


def check(config):
    weights.check_name(
        load.typed(config),
        model_functions.describe(load.typed(config), vocab_size=variants.VOCAB_SIZE),
    )


def test_name_of_another_model_is_refused_by_its_name():
    config = presets.finetune("paligemma2-3b", res=448)
    check(config)
    config.model_init = "pt_448.f16"
    message = (
        r"'pt_448.f16' is paligemma1-3b at 448 px, .* model.llm.variant='gemma2_2b': "
        r"set model.llm.variant='gemma_2b', or model_init as one of \['pt_3b_448', 'mix_3b_448'\]"
    )
    with pytest.raises(ValueError, match=message):
        check(config)


def test_name_of_another_resolution_is_refused_unless_it_shall_be_resampled():
    config = presets.finetune("paligemma1-3b", res=224)
    config.model_init = "pt_896"
    with pytest.raises(ValueError, match=r"set res=896, or model_init as one of \['pt_224'"):
        check(config)
    config.model.img.resample_posemb = True
    check(config)


def test_name_of_a_released_model_is_refused_for_a_small_one():
    config = presets.from_scratch(res=112, text_len=8, img={"width": 16}, llm={"width": 16})
    config.model_init = "pt_3b_224"
    message = r"model.llm.dims=None, res=224, or model_init=None \(random\)"
    with pytest.raises(ValueError, match=message):
        check(config)


def test_file_of_another_model_is_recognized():
    config = presets.finetune("paligemma1-3b")
    model = model_functions.describe(load.typed(config), vocab_size=variants.VOCAB_SIZE)
    for name, expected in (("paligemma1-3b", ""), ("paligemma2-3b", "a.npz is paligemma2-3b: set")):
        shapes = paligemma.shapes(variants.released(name, res=224))
        found = {key: shape.shape for key, shape in shapes.items()}
        assert weights.recognize(found, config, model, where="a.npz").startswith(expected)
    assert weights.recognize({"a": (3,)}, config, model, where="a.npz") == ""


def test_loading_holds_each_array_once_and_in_the_type_that_stays(config, tmp_path):
    config.model.llm.dims = {**config.model.llm.dims, "mlp_dim": 2**18}
    config.frozen_dtype = "float16"
    settings = load.typed(config)
    model = model_functions.describe(settings, vocab_size=50)
    params = {name: np.ones(shape.shape, np.float32) for name, shape in model.shapes().items()}
    npz.write(tmp_path / "a.npz", params)
    stored = partial_weights.find(tmp_path / "a.npz")
    expected = weights.expected_shapes(settings, model, ["img/head/bias"], stored.arrays)
    where = sharding.shardings(expected, settings.sharding_strategy, weights.make_mesh(settings))
    tracemalloc.start()
    found = weights.load(stored, expected, where, model=model)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {name: array.dtype for name, array in found.items()} == {
        name: shape.dtype for name, shape in expected.items()
    }
    largest = max(array.nbytes for array in params.values())  # in float32
    assert largest >= 2**24
    assert peak < sum(array.nbytes for array in found.values()) + largest / 4


def test_position_embeddings_are_resampled_in_the_type_of_the_file(config, tmp_path):
    config.frozen_dtype, config.model.img.resample_posemb = "float16", True
    settings = load.typed(config)
    model = model_functions.describe(settings, vocab_size=50)
    shapes = model.shapes()
    values = np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32)
    params = {name: np.zeros(shape.shape, np.float32) for name, shape in shapes.items()}
    npz.write(tmp_path / "a.npz", params | {POSITIONS: values})
    stored = partial_weights.find(tmp_path / "a.npz")
    expected = weights.expected_shapes(settings, model, [], stored.arrays)
    where = sharding.shardings(expected, settings.sharding_strategy, weights.make_mesh(settings))
    found = weights.load(stored, expected, where, model=model)[POSITIONS]
    wanted = model.fit(POSITIONS, values).astype(np.float16)
    np.testing.assert_array_equal(found, wanted)


def test_several_processes_gather_an_array_when_the_one_before_is_written(tmp_path, monkeypatch):
    done = []

    def gather(array, *, tiled):
        assert tiled
        done.append(f"gathered {array[0]}")
        return np.asarray(array)

    def write(path, params, *, metadata, progress):
        del metadata, progress
        for name, array in params.items():
            done.append(f"wrote {name} {np.asarray(array)[0]}")
        path.write_bytes(b"")

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(weights.npz, "write", write)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    params = {name: jnp.full(4, number) for number, name in enumerate("ab")}
    weights.save(tmp_path / "final.npz", params, {})
    assert done == ["gathered 0", "wrote a 0", "gathered 1", "wrote b 1"]
    done.clear()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    weights.save(tmp_path / "final.npz", params, {})
    assert done == ["gathered 0", "gathered 1"]


def test_a_damaged_file_of_the_cache_is_fetched_again_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    npz.write(tmp_path / "whole.npz", {"a": np.zeros(3)})
    content, fetched = (tmp_path / "whole.npz").read_bytes(), []

    def fetch(url, path, *, progress):  # in place of the network
        fetched.append(url)
        path.write_bytes(content)

    monkeypatch.setattr(download, "fetch", fetch)
    path = weights.fetch("https://host/a.npz?key=SECRET")
    path.write_bytes(content[:-30])
    capsys.readouterr()
    assert weights.fetch("https://host/a.npz?key=SECRET") == path
    assert path.read_bytes() == content and len(fetched) == 2
    assert capsys.readouterr().err == f"{path}: damaged, removed: it is fetched again\n"
    weights.fetch("https://host/a.npz?key=SECRET")
    assert len(fetched) == 2
    elsewhere = tmp_path / "mine.npz"
    elsewhere.write_bytes(content[:-30])
    assert weights.fetch(str(elsewhere)) == elsewhere and elsewhere.exists()
