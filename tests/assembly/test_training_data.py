"""What a run trains on, from settings."""

import json

import pytest

from paligemma_jax.assembly import training_data
from paligemma_jax.data import records, tokens
from paligemma_jax.settings import load


@pytest.fixture(scope="module")
def tokenizer(data_folder):
    return tokens.load_tokenizer(f"{data_folder}/tokenizer.model")


def test_nothing_is_augmented_by_default(config, tokenizer):
    found = training_data.read(load.typed(config), tokenizer)
    assert found.augmentation is None
    config.input.augment.min_visible = 0.9  # says nothing by itself
    assert training_data.make_augmenter(load.typed(config)) is None


def test_settings_reach_the_augmenter(config, tokenizer, capsys):
    load.override(config, ["input.augment.scale=[0.5, 2]", "input.augment.flip_lr=0.5"])
    config.coordinates, config.seed = "1024", 7
    found = training_data.read(load.typed(config), tokenizer).augmentation
    assert (found.settings.flip_lr, found.settings.scale) == (0.5, (0.5, 2))
    assert (found.seed, found.convention) == (7, "1024")
    assert "augmentation: flip_lr 0.5, scale (0.5, 2)" in capsys.readouterr().err


@pytest.fixture
def set_answers(config, tmp_path):
    """A function that makes five rows of these answers the training data."""

    def write(suffix, number=5):
        rows = [{"image": [], "prefix": "cat", "suffix": suffix}] * number
        config.input.data.fname = str(tmp_path / "rows.jsonl")
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def test_words_for_detection_are_one_error_that_names_the_task(config, tokenizer, set_answers):
    set_answers("red")
    with pytest.raises(ValueError, match=r"all 5 answers are words .* set task='vqa'") as caught:
        training_data.read(load.typed(config), tokenizer)
    assert "more likewise" not in str(caught.value)
    set_answers("red", number=2)
    with pytest.raises(ValueError, match="1 more likewise"):
        training_data.read(load.typed(config), tokenizer)


def test_boxes_as_words_are_one_warning(config, tokenizer, set_answers, capsys):
    set_answers("<loc0100><loc0200><loc0500><loc0600> cat")
    examples = training_data.read(load.typed(config), tokenizer).records
    training_data.warn_of_task(load.typed(config), examples)
    assert "warning" not in capsys.readouterr().err
    config.task = "vqa"
    training_data.warn_of_task(load.typed(config), examples)
    said = capsys.readouterr().err
    assert said.startswith("warning: training data: all 5 answers are boxes")
    assert "set task='detection'" in said and said.count("\n") == 1


def test_answers_that_are_not_boxes_are_left_alone(config):
    config.task, config.input.augment.flip_lr = "caption", 0.5
    assert training_data.make_augmenter(load.typed(config)).convention is None


def test_the_first_rows_alone_can_be_trained_on(config, tokenizer):
    everything = training_data.read(load.typed(config), tokenizer).records
    config.input.num_examples = 1
    assert list(training_data.read(load.typed(config), tokenizer).records) == list(everything[:1])


@pytest.fixture
def mixture(config, data_folder):
    """Settings of two sources: two rows, and the same two in other words."""
    config.input.data.fname = None
    config.input.mixture.plain = dict(fname=f"{data_folder}/train.jsonl", weight=3)
    config.input.mixture.all = dict(
        fname=f"{data_folder}/train.jsonl", prefix_template="detect all classes"
    )
    load.typed(config)
    return config


def test_of_a_mixture_the_first_rows_of_each_source_are_taken(mixture, tokenizer):
    mixture.input.num_examples = 1
    found = training_data.read(load.typed(mixture), tokenizer)
    assert [source.num_records for source in found.sources] == [1, 1]
    assert [record.prefix for record in found.records] == ["detect all classes", "detect cat"]


def test_a_mixture_has_the_records_of_all_sources(mixture, tokenizer):
    found = training_data.read(load.typed(mixture), tokenizer)
    prefixes = ["detect all classes"] * 2 + ["detect cat"] * 2  # sources in order of their names
    assert [record.prefix for record in found.records] == prefixes
    assert [(s.name, s.num_records, s.weight) for s in found.sources] == [
        ("all", 2, 1.0),
        ("plain", 2, 3),
    ]


def test_passes_over_each_source_are_told(mixture, tokenizer):
    found = training_data.read(load.typed(mixture), tokenizer)
    assert found.epochs(16) == {"epochs/all": 2.0, "epochs/plain": 6.0}
    said = found.describe(steps=4, batch_size=4)
    assert "training data: 4 examples; 4 steps of 4, 4.0 passes" in said
    assert "plain: 2 examples, weight 3, 6.0 passes" in said


def test_a_single_source_has_no_epochs_of_its_own(config, tokenizer):
    found = training_data.read(load.typed(config), tokenizer)
    assert found.epochs(16) == {}
    assert "\n" not in found.describe(steps=4, batch_size=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weight=0), "input.mixture.plain.weight=0: expected a number above 0"),
        (dict(wieght=2), "Did you mean 'input.mixture.plain.weight'"),
        (dict(fname=None), "input.mixture.plain.fname=None: expected str"),
        (dict(fname="gone.jsonl"), "gone.jsonl: no such file"),
    ],
)
def test_a_wrong_source_is_named(mixture, tokenizer, changes, message):
    mixture.input.mixture.plain = {**mixture.input.mixture.plain, **changes}

    def prepare():
        training_data.read(load.typed(mixture), tokenizer)

    with pytest.raises(ValueError, match=message):
        prepare()


def test_one_source_or_a_mixture(mixture, data_folder):
    mixture.input.data.fname = f"{data_folder}/train.jsonl"
    with pytest.raises(ValueError, match="fname are set: keep one"):
        load.typed(mixture)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "input.augment.flip=0.5",
            "'input.augment.flip' is not known. Did you mean 'input.augment.flip_",
        ),
        ("input.augment.jpg_quality=5", "Did you mean 'input.augment.jpeg_quality'"),
        ("input.augment.crop=2.0", "config: input.augment.crop=2.0: expected 0.01 to 1"),
        ("input.augment.scale=2.0", "input.augment.scale=2.0: expected list or tuple or None"),
        ("input.augment.scale=[2]", r"input.augment.scale=.*: expected \(least, most\)"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_loaded(config, override, message):
    def prepare():
        load.override(config, [override])
        training_data.make_augmenter(load.typed(config))

    with pytest.raises(ValueError, match=message):
        prepare()


def example(prefix, suffix=""):
    return records.Record(images=(), prefix=prefix, suffix=suffix)


BOX = "<loc0001><loc0002><loc0300><loc0400>"


def test_one_prompt_for_all_images_is_what_a_run_asks():
    found = training_data.find_asked("detection", [example("detect dog ; cat", f"{BOX} cat")] * 3)
    assert found == training_data.Asked("detect dog ; cat", ("cat", "dog"))


def test_prompts_of_single_classes_are_asked_together():
    examples = [example("detect dog"), example("detect red panda"), example("detect cat ; dog")]
    assert training_data.find_asked("detection", examples) == training_data.Asked(
        "detect cat ; dog ; red panda", ("cat", "dog", "red panda")
    )


def test_answers_name_the_classes_where_prompts_do_not():
    examples = [example("detect all classes", f"{BOX} {label}") for label in ("dog", "cat")]
    assert training_data.find_asked("detection", examples) == training_data.Asked(
        "detect all classes", ("cat", "dog")
    )


def test_questions_that_differ_are_no_prompt():
    examples = [example("what is it?"), example("how many?")]
    assert training_data.find_asked("vqa", examples) == training_data.Asked(None, ())
    assert training_data.find_asked("caption", [example("caption en")]).prompt == "caption en"


def test_what_a_run_asks_is_in_its_folder(tmp_path):
    asked = training_data.Asked("detect é", ("é",))
    training_data.write_asked(asked, tmp_path)
    assert training_data.read_asked(tmp_path) == asked
    (tmp_path / "prompt.json").write_text("[]")
    with pytest.raises(ValueError, match=r"prompt.json: not what a run writes .*: remove it"):
        training_data.read_asked(tmp_path)
    (tmp_path / "prompt.json").unlink()
    assert training_data.read_asked(tmp_path) == training_data.Asked()
