"""The small base in the package: its files fit together, and every config runs on it."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma_jax import train
from paligemma_jax.assembly import assembly, weights
from paligemma_jax.data import tokens
from paligemma_jax.hub import addresses
from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import released_models
from paligemma_jax.reports import run_log
from paligemma_jax.settings import load, presets
from paligemma_jax.tasks import task

ROOT = pathlib.Path(__file__).parents[1]
# The base is a PaliGemma: configs of other families have nothing that it could stand for.
CONFIGS = [
    path
    for path in sorted((ROOT / "configs").glob("*.py"))
    if load.load(str(path)).model.family == "paligemma"
]
BASE = released_models.SHIPPED["tiny_base"]
MAX_BYTES = 16 * 2**20
BOX = "<loc0100><loc0200><loc0500><loc0600>"
ANSWERS = {
    "detection": f"{BOX} fracture",
    "segmentation": f"{BOX}{'<seg003>' * 16} water",
    "vqa": "fall: start",
    "caption": "two dogs play on a beach",
    "json": json.dumps({"3": 2}, indent=2),
}
STEPS = 3  # a config's warm-up takes two


def settings_of(res: int = 112, **changes):
    config = presets.finetune("tiny_base", res=res, method="attention")
    config.input.data.fname, config.total_steps = "train.jsonl", 1
    config.update_from_flattened_dict(changes)
    return load.typed(config)


@pytest.mark.parametrize("name", released_models.SHIPPED_FILES)
def test_files_are_in_the_package_and_small(name):
    path = addresses.resolve(name)
    assert path == addresses.find(name)
    assert 0 < path.stat().st_size <= MAX_BYTES


def test_weights_are_told_by_their_arrays():
    shapes = {name: one.shape for name, one in weights.find(BASE.init).arrays.items()}
    name, model = variants.infer(shapes)
    assert (name, model.res) == ("tiny_base", BASE.resolutions[0])
    assert 3e6 < sum(np.prod(shape) for shape in shapes.values()) < 8e6


@pytest.mark.parametrize("res", BASE.resolutions)
def test_weights_and_tokenizer_fit_the_model_at_each_side(res):
    built = assembly.assemble(settings_of(res))
    weights.check_name(built.settings, built.model)
    stored = weights.find(BASE.init)
    weights.check(built.settings, stored, built.model)
    position = built.model.fit(
        "img/pos_embedding", stored.read(["img/pos_embedding"])["img/pos_embedding"]
    )
    assert position.shape == (1, (res // 14) ** 2, 192)
    assert np.isfinite(np.asarray(position, np.float32)).all()


def test_tokenizer_spells_what_the_base_was_asked_in_few_pieces():
    tokenizer = tokens.load_sentencepiece(addresses.resolve(BASE.tokenizer))
    assert len(tokenizer.loc_ids) == 1024 and len(tokenizer.seg_ids) == 128
    for text, most in (("detect red triangle", 3), ("caption en", 2), ("Schlüssel 7", 12)):
        ids = tokenizer.encode(text)
        assert len(ids) <= most and tokenizer.decode(ids) == text


def test_codec_gives_a_disc_back():
    codec = weights.load_codec(BASE.mask_codec)
    y, x = (np.mgrid[:64, :64] + 0.5) / 32 - 1
    disc = (x**2 + y**2 < 1).astype(np.float32)
    back = codec.decode(codec.encode(disc[None]))[0] > 0
    assert (back & (disc > 0)).sum() / (back | (disc > 0)).sum() > 0.9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"res": 448}, "no weights for res=448: set res=112 or res=224"),
        (
            {"tokenizer": "mine.model"},
            "set tokenizer='tiny_base/tokenizer.model', not 'mine.model'",
        ),
        (
            {"model.llm.variant": "tiny"},
            "set model.llm.variant='tiny_base', not 'tiny'",
        ),
        ({"res": 224}, "set model.img.resample_posemb=True, not False"),
    ],
)
def test_what_the_base_does_not_have_is_an_error_that_names_what_it_has(changes, says):
    changed = load.change(settings_of(), [f"{key}={value}" for key, value in changes.items()])
    with pytest.raises(ValueError, match=says):
        weights.check_name(changed, assembly.assemble(settings_of()).model)


def test_misspelt_name_of_the_base_shows_it():
    with pytest.raises(FileNotFoundError, match="tiny_base"):
        addresses.resolve("tiny_bas")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_keeps_its_recipe_on_the_base(path):
    whole, tiny = load.load(str(path)), load.load(f"{path}:tiny")
    assert (tiny.model_init, tiny.tokenizer, tiny.mask_codec) == (
        BASE.init,
        BASE.tokenizer,
        BASE.mask_codec,
    )
    assert tiny.res in BASE.resolutions
    for key in ("task", "optax_name", "lr", "schedule", "trainable", "lora", "quantize", "wd"):
        assert getattr(tiny, key) == getattr(whole, key), key
    assert tiny.input.batch_size == whole.input.batch_size
    assert tiny.evals.keys() == whole.evals.keys()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """Returns a folder with a data set of each task: TASK.jsonl."""
    folder = tmp_path_factory.mktemp("tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{number}.png")
    for name, answer in ANSWERS.items():
        assert task.look_up(name).check(answer) is None
        row = {"prefix": "count 3 ; 4 and answer in JSON", "suffix": answer}
        rows = [json.dumps({"image": f"{number}.png", **row}) for number in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_runs_on_the_base(path, data, tmp_path):
    settings = load.load(f"{path}:tiny")
    fname = f"{data}/{settings.task}.jsonl"
    changes = {
        **{f"evals.{name}.fname": fname for name in settings.evals},
        **{f"evals.{name}.max_new_tokens": 8 for name in settings.evals},
        **{f"evals.{name}.batch_size": 4 for name in settings.evals},
        **{"input.data.fname": fname, "input.batch_size": 4, "log_training_steps": 1},
        **{"total_examples": None, "total_epochs": None, "total_steps": STEPS},
        **{"res": 112, "model.img.resample_posemb": False},
    }
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    train.main(["--config", f"{path}:tiny", "--workdir", str(tmp_path / "run"), *words])
    rows = run_log.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["step"] == STEPS
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert (tmp_path / "run" / "final.npz").exists()
    assert list((tmp_path / "run").glob("report*.html"))
    jax.clear_caches()
