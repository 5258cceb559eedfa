"""The recipes of configs/transfers equal big_vision's, number for number, and each can be run."""

import importlib.util
import json
import os
import pathlib
import re

import pytest

from paligemma_jax.settings import load, transfers

ROOT = pathlib.Path(__file__).parents[1]
MAKER = ROOT / "tests/reference/make_transfers.py"
REFERENCE = json.loads(MAKER.with_name("transfers.json").read_text())
CONFIGS = REFERENCE["configs"]
EVALUATORS = {
    "vqa": {"exact_match", "vqa_accuracy", "anls"},
    "vqav2": {"vqav2_accuracy"},
    "chartqa": {"relaxed_accuracy"},
    "coco_caption": {"cider", "bleu4", "rouge_l"},
    "pope": {"pope_accuracy"},
    "rsvqa": {"rsvqa_accuracy"},
    "science_qa": {"scienceqa_accuracy"},
    "tallyqa": {"tallyqa_accuracy"},
}
# What its rows call what ours call otherwise.
THEIR_KEYS = {
    "prefix": ("question", "question_text", "sentence"),
    "choices": ("ansstr",),
    "options": ("indexed_choices",),
}


def test_there_is_one_for_each():
    assert len(CONFIGS) == 32
    assert sorted(load.TRANSFERS) == sorted(CONFIGS)


@pytest.mark.parametrize("name", load.TRANSFERS)
def test_numbers_are_big_visions(name):
    theirs, ours = CONFIGS[name], load.load(f"transfers/{name}:best=False")
    schedule = theirs.get("schedule")
    assert name == "pope" or flat(ours.schedule) == flat(schedule)
    assert ours.optax_name == {"identity": "sgd"}.get(theirs["optax_name"], theirs["optax_name"])
    for key in ("lr", "wd", "grad_clip_norm", "total_epochs", "total_steps", "total_examples"):
        expected = theirs.get(key)
        assert getattr(ours, key) == (expected if expected is None else pytest.approx(expected))
    assert ours.label_smoothing == theirs.get("label_smoothing", 0.0)
    assert ours.optax == theirs["optax"]
    assert (ours.res, init(ours)) == (theirs["res"], theirs["model_init"])
    assert ours.input.batch_size == theirs["batch_size"]
    # Theirs counts a token more, which its trainer takes off.
    assert ours.input.text_len == theirs["text_len"] - 1
    assert ours.model.llm.dropout == theirs["dropout"]
    assert ours.model.llm.vocab_size == theirs["vocab_size"]
    assert ours.input.max_images == (theirs["num_frames"] or (2 if name == "nlvr2" else 1))
    assert recipe(name).stride == theirs["stride"]
    if theirs["antialias"]:
        assert [ours.input.antialias] == theirs["antialias"]
    assert name == "refcoco_seg" or ours.input.draw_answers == theirs["draws_answers"]
    weights = [float(weight) for weight in theirs["sources"].values()]
    if theirs["num_frames"] is None and name != "pope":
        assert [source.weight for source in ours.input.mixture.values()] == weights


@pytest.mark.parametrize("name", load.TRANSFERS)
def test_prompts_are_big_visions(name):
    theirs = CONFIGS[name]["prompt"]
    ours = load.load(f"transfers/{name}").input.data.prefix_template or "{prefix}"
    for key, others in THEIR_KEYS.items():
        for other in others:
            theirs = theirs and theirs.replace(f"{{{other}}}", f"{{{key}}}")
    assert ours == (theirs or "{prefix}")


@pytest.mark.parametrize("name", load.TRANSFERS)
def test_evaluations_are_big_visions(name):
    theirs = CONFIGS[name]["evals"][recipe(name).tuned_on]
    ours = load.load(f"transfers/{name}:best=False")
    for chosen in ours.evals.values():
        assert chosen.log_percent == theirs["log_percent"]
        assert chosen.batch_size == theirs["batch_size"]
        assert chosen.max_new_tokens == theirs["max_decode_len"]
        assert (chosen.sampler == "beam") == ("beam_size" in theirs)
        assert chosen.sampler != "beam" or chosen.beam_size == theirs["beam_size"]
        if theirs["evaluator"] == "segmentation":
            assert (ours.task, chosen.scores) == ("segmentation", None)
        else:
            assert set(chosen.scores or ()) <= EVALUATORS[theirs["evaluator"]]
            assert chosen.scores
    is_aliased = recipe(name).antialias and theirs["antialias"] == [False]
    assert is_aliased == ("without antialiasing" in recipe(name).unlike)


@pytest.mark.parametrize("name", load.TRANSFERS)
def test_the_best_of_each_resolution_is_its_sweeps(name):
    best = {one["res"]: one for one in CONFIGS[name]["best"]}
    assert sorted(recipe(name).best) == sorted(best)
    usual = load.load(f"transfers/{name}:best=False")
    for res, theirs in best.items():
        ours = load.load(f"transfers/{name}:res={res}")
        assert (ours.res, init(ours)) == (res, f"pt_{res}")
        for key in ("lr", "wd", "total_epochs", "total_examples", "label_smoothing"):
            expected = theirs.get(key, getattr(usual, key))
            assert getattr(ours, key) == (expected if expected is None else pytest.approx(expected))
        dropout = theirs.get("model.llm.dropout", usual.model.llm.dropout)
        assert ours.model.llm.dropout == dropout
        assert ours.input.batch_size == theirs.get("input.batch_size", usual.input.batch_size)
        is_frozen = theirs.get("freeze_vit", recipe(name).freeze_vit)
        assert (flat(ours.schedule)[0][1] is None) == is_frozen


def test_published_scores_are_its_readmes():
    rows = {shorten(name): values for name, values in REFERENCE["published"].items()}
    for name in load.TRANSFERS:
        one = recipe(name)
        assert list(one.published.values()) == rows[one.published_as], name
        assert list(one.published) == [224, 448, 896][: len(one.published)]


def test_the_page_has_the_table():
    assert transfers.markdown() in (ROOT / "docs/transfers.md").read_text()


def test_what_the_data_must_be_is_said_where_it_is_missing(tmp_path, monkeypatch):
    from paligemma_jax.assembly import datasets
    from paligemma_jax.checks import data_sets

    def found(settings):
        return " ".join(one.remedy for one in data_sets.look(settings, None, full=False)[1])

    monkeypatch.chdir(tmp_path)
    settings = load.load("transfers/tallyqa:data=counts,tiny")
    with pytest.raises(ValueError, match="no such file") as error:
        datasets.read_records(settings, settings.input.data.fname, key="input.data.fname")
    for part in ("counts", "train.jsonl, valid.jsonl", "`issimple`", "--task vqa"):
        assert part in str(error.value)
    assert "rows with `image`, `prefix` the question" in found(settings)
    (tmp_path / "counts").mkdir()
    row = {"image": "a.png", "suffix": "3"}
    (tmp_path / "counts/train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="'prefix' missing") as error:
        datasets.read_records(settings, settings.input.data.fname, key="input.data.fname")
    assert "`prefix` the question" in str(error.value)
    assert "with `image`, `prefix` the question" in found(settings)


def test_arguments_choose_folder_model_batch_and_further_files():
    given = "data=d,res=448,version=2,batch_size=8,also=test+mmvp"
    ours = load.load(f"transfers/vqav2:{given}")
    assert (init(ours), ours.input.batch_size) == ("pt_3b_448", 8)
    files = {name: (one.fname, one.log_percent) for name, one in ours.evals.items()}
    assert files == {
        "val": ("d/valid.jsonl", 0.25),
        "test": ("d/test.jsonl", 1.0),
        "mmvp": ("d/mmvp.jsonl", 1.0),
    }
    pope = load.load("transfers/pope")
    assert sorted(pope.evals) == ["adversarial", "popular", "random"]


@pytest.mark.skipif("BIG_VISION_DIR" not in os.environ, reason="compares with a checkout")
def test_the_stored_numbers_are_a_checkouts():
    spec = importlib.util.spec_from_file_location("make_transfers", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    made = maker.make(pathlib.Path(os.environ["BIG_VISION_DIR"]))
    assert json.loads(json.dumps(made)) == REFERENCE


def recipe(name: str) -> transfers.Recipe:
    with load.reading(f"transfers/{name}") as module:
        return module.RECIPE


def init(settings) -> str:
    """Returns the name of the starting weights without the type that its file has."""
    return settings.model_init.partition(".")[0]


def flat(schedule):
    """Returns a schedule as rules of both towers."""
    if schedule is None or isinstance(schedule, dict):
        return [("img/.*", schedule), ("llm/.*", schedule)]
    return [(regex, inner) for regex, inner in schedule]


def shorten(name: str) -> str:
    """Returns the name of a published score without its address."""
    return re.sub(r" \(https?://[^)]*\)", "", name)
