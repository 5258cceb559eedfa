"""Every config is complete: its model exists, and its rules match that model's parameters."""

import ast
import math
import pathlib
import sys

import pytest

from paligemma_jax.assembly import model_functions
from paligemma_jax.params import released_models
from paligemma_jax.runs import optimization, run_length
from paligemma_jax.settings import load
from paligemma_jax.tasks import task

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_layers as layers

CONFIGS = sorted(load.shipped_configs().values())
TRAINED = {  # parameters that the published recipe trains
    "fracture_224": 2 * 18 * (8 * 256 * 2048) + 18 * (2 * 256 * 2048),
    "water_segmentation_224": 2 * 18 * (8 * 256 * 2048) + 18 * (2 * 256 * 2048),
    "caption_224": 2_923_335_408,
    "colab_longcap_224": 2 * 26 * (8 * 256 * 2304) + 26 * (2 * 4 * 256 * 2304),
    "structured_vqa_448": 11_876_352,
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_builds(path):
    config = load.load(str(path))
    vocab_size = config.model.llm.vocab_size or 1500
    model = model_functions.describe(config, vocab_size=vocab_size)
    cache_dtype, _ = model_functions.choose_dtype(config.cache_dtype)
    model.functions(model_functions.make_compute(config), cache_dtype=cache_dtype)
    shapes = model.shapes()
    steps = run_length.total_steps(config, data_size=1000)
    made = optimization.make(config, shapes, steps=steps, data_size=1000)
    assert made.trainable
    assert task.look_up(config.task)
    # Of other families no npz file is published: a conversion makes it.
    is_converted = config.model.family != "paligemma" and config.model_init.endswith(".npz")
    assert is_converted or config.model_init in (None, *released_models.FILES)
    if path.stem in TRAINED:
        assert sum(shapes[name].size for name in made.trainable) == TRAINED[path.stem]


@pytest.mark.parametrize(
    ("config", "count", "lr"),
    [
        ("fracture_224.py:lora=llm", 9_805_824, 1e-4),
        ("counting_224.py:lora=llm", 10_383_360, 1e-4),
        ("vqa_448.py:lora=hf_compat,version=1", 11_298_816, 2e-5),
        ("vqa_448.py:qlora,version=1", 11_298_816, 2e-5),
        ("structured_vqa_448.py:qlora", 11_876_352, 2e-5),
    ],
)
def test_recipes_can_be_run_with_lora(config, count, lr):
    shapes, made = optimizer_of(config)
    assert sum(shapes[name].size for name in made.trainable) == count
    assert set(made.lrs.values()) == {lr}
    found = load.load(f"{CONFIGS[0].parent}/{config}").quantize
    assert found == ("nf4" if "qlora" in config else None)


def test_counting_recipe_is_the_guides():
    _, made = optimizer_of("counting_224.py")
    assert {name.split("/")[0] for name in made.trainable} == {"llm"}
    assert set(made.lrs.values()) == {3e-5}
    (schedule,) = set(made.schedules.values())
    assert [float(schedule(step)) for step in (0, 10, 55, 100)] == pytest.approx(
        [0.1, 1, 0.55, 0.1]
    )
    _, twice = optimizer_of("counting_224.py:batch_size=48")
    assert [*set(twice.lrs.values())] == pytest.approx([1.4 * 3e-5])


def test_counting_with_moondream_is_its_notebooks():
    _, made = optimizer_of("moondream_counting.py", vocab_size=50_257)
    assert {name.split("/")[0] for name in made.trainable} == {"text"}
    (schedule,) = set(made.schedules.values())

    def notebook(x):
        if x < 0.1:
            return 0.1 + 0.9 * x / 0.1
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (x - 0.1))) / 2

    for step in (0, 3, 10, 11, 55, 99):
        assert float(schedule(step)) == pytest.approx(notebook(step / 100), abs=1e-6)
    assert set(made.lrs.values()) == {3e-5}
    shapes, made = optimizer_of("moondream_counting.py:lora,bits=4", vocab_size=50_257)
    # Rank 8 on the four linear layers of 24 blocks, of widths 2048 and 8192.
    per_layer = 8 * (2048 + 3 * 2048) + 8 * (2048 + 2048) + 2 * 8 * (2048 + 8192)
    assert sum(shapes[name].size for name in made.trainable) == 24 * per_layer


def optimizer_of(config: str, *, vocab_size: int = 257_152):
    """Returns (shapes of the parameters, optimizer) of a config, for 100 steps."""
    loaded = load.load(f"{CONFIGS[0].parent}/{config}")
    shapes = model_functions.describe(loaded, vocab_size=vocab_size).shapes()
    return shapes, optimization.make(loaded, shapes, steps=100, data_size=1000)


def test_colab_recipe_is_the_notebooks():
    config = load.load(str(CONFIGS[0].parent / "colab_longcap_224.py"))
    made = optimization.make(
        config,
        model_functions.describe(config, vocab_size=257_152).shapes(),
        steps=64,
        data_size=90,
    )
    (schedule,) = made.schedules.values()
    # big_vision's schedule of 65 steps with 10% warm-up (6), counted from 1: see schedules.json.
    assert float(schedule(0)) == pytest.approx(1 / 6)
    assert float(schedule(5)) == pytest.approx(1.0)
    assert 0 < float(schedule(63)) < 0.01
    assert set(made.lrs.values()) == {0.03}


def test_fine_tuning_computes_in_what_the_device_has_units_for_but_the_colab():
    for path in CONFIGS:
        config = load.load(str(path))
        is_finetuned = config.model_init is not None and path.stem != "colab_longcap_224"
        expected = "auto" if is_finetuned else "float32"
        assert (config.compute_dtype, config.cache_dtype) == (expected, expected), path.stem


def test_configs_import_only_the_settings_room():
    wrong = [
        f"{path}:{item.line}: imports {item.module}"
        for path in CONFIGS
        for item in layers.imports(ast.parse(path.read_text()))
        if item.module != f"{layers.PACKAGE}.settings"
        and item.module not in sys.stdlib_module_names
    ]
    assert not wrong, "\n".join(wrong)
