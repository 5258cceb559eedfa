"""What a run trains on, from settings."""

import pytest

from paligemma_jax.build import training_data
from paligemma_jax.config import presets, settings
from paligemma_jax.data import tokens


@pytest.fixture(scope="module")
def tokenizer(data_folder):
    return tokens.load_tokenizer(f"{data_folder}/tokenizer.model")


def test_nothing_is_augmented_by_default(config, tokenizer):
    found = training_data.read(config, tokenizer)
    assert found.augmentation is None
    config.input.augment.min_visible = 0.9  # says nothing by itself
    assert training_data.make_augmenter(config) is None


def test_settings_reach_the_augmenter(config, tokenizer, capsys):
    settings.override(config, ["input.augment.scale=[0.5, 2]", "input.augment.flip_lr=0.5"])
    presets.validate(config)
    config.coordinates, config.seed = "1024", 7
    found = training_data.read(config, tokenizer).augmentation
    assert found.settings.describe() == "flip_lr 0.5, scale [0.5, 2]"
    assert (found.seed, found.convention) == (7, "1024")
    assert "augmentation: flip_lr 0.5, scale [0.5, 2]" in capsys.readouterr().err


def test_answers_that_are_not_boxes_are_left_alone(config):
    config.task, config.input.augment.flip_lr = "caption", 0.5
    assert training_data.make_augmenter(config).convention is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("input.augment.flip=0.5", "'input.augment.flip' is not known. Did you mean 'flip_"),
        ("input.augment.jpg_quality=5", "Did you mean 'jpeg_quality'"),
        ("input.augment.crop=2.0", "config: input.augment.crop=2.0: expected 0.01 to 1"),
        ("input.augment.scale=2.0", "input.augment.scale=2.0: expected list or tuple or None"),
        ("input.augment.scale=[2]", r"input.augment.scale=.*: expected \(least, most\)"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_loaded(config, override, message):
    def prepare():
        settings.override(config, [override])
        presets.validate(config)
        training_data.make_augmenter(config)

    with pytest.raises(ValueError, match=message):
        prepare()
