"""The predict door, on random weights: what comes out of images, videos and broken files."""

import json
import types

import numpy as np
import pytest
from PIL import Image

import paligemma_jax
from paligemma_jax import predict
from paligemma_jax.assembly import training_data
from paligemma_jax.checkpoints import npz
from paligemma_jax.data import pipeline, records, tokens
from paligemma_jax.evaluation import prediction_rows
from paligemma_jax.hub import addresses
from paligemma_jax.prediction import annotated, predicting, queries, video
from paligemma_jax.reports import drawing
from paligemma_jax.settings import load, presets

DIMS = dict(width=8, depth=1, mlp_dim=8, num_heads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the settings of a run, three images of which b.png is none, and a video."""
    folder = tmp_path_factory.mktemp("predict")
    config = presets.from_scratch(
        res=14, text_len=24, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
    )
    config.total_steps = 1
    config.tokenizer = f"{folder}/tokenizer.model"
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    (folder / "config.json").write_text(load.to_json(load.typed(config)))
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for name in ("a", "c"):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "in" / f"{name}.png")
    (folder / "in" / "b.png").write_bytes(b"no image")
    with video.VideoFile(folder / "in" / "clip.mp4", rate=4) as file:
        for _ in range(5):
            file.append(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)))
    return folder


def run(folder, *words):
    arguments = [f"--run={folder}", "--weights=none", "--eval.max_new_tokens=2", *words]
    predict.main([*arguments, "--eval.batch_size=2"])


def test_a_broken_image_costs_its_own_answer_and_the_exit_status(folder, capsys):
    out = folder / "out"
    with pytest.raises(SystemExit) as stopped:
        run(folder, "--prompt=detect cat", f"--pictures={out}", "--every=2", f"{folder}/in")
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["index"] for row in rows] == list(range(6))
    assert [row["images"][0].rpartition("/")[2] for row in rows[:3]] == ["a.png", "b.png", "c.png"]
    assert ["error" in row for row in rows] == [False, True, False, False, False, False]
    (keys,) = {tuple(row) for row in rows if "error" not in row and "frame" not in row}
    assert not {"suffix", "truths", "score", "correct"} & set(keys)
    assert None not in [value for row in rows for value in row.values()]
    assert f"pictures: 3 files in {out}" in printed.err
    assert rows[1]["error"].startswith("cannot read image") and "prediction" not in rows[1]
    assert [(row["frame"], row["time_s"]) for row in rows[3:]] == [(0, 0.0), (2, 0.5), (4, 1.0)]
    assert all(np.isfinite(row["logp"]) for row in rows if "error" not in row)
    assert (
        "b.png: cannot read image" in printed.err
        and "1 of 6 could not be read, or not drawn" in printed.err
    )
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png", "clip.mp4"]
    written = video.scan(out / "clip.mp4")
    assert len(written.frames) == 3 and written.rate == pytest.approx(2)


def test_images_together_are_one_question_as_in_a_notebook(folder, capsys):
    paths = [f"{folder}/in/a.png", f"{folder}/in/c.png"]
    run(folder, "--prompt=cat", "--together", *paths)
    printed = capsys.readouterr()
    (row,) = [json.loads(line) for line in printed.out.splitlines()]
    assert row["images"] == paths
    assert "2 images at once: in training there were 1" in printed.err
    decoding = {"max_new_tokens": 2, "batch_size": 2}
    loaded = paligemma_jax.load(str(folder), weights="none", decoding=decoding)
    arrays = tuple(np.asarray(Image.open(path)) for path in paths)
    (by_array,) = loaded.predict([arrays], "cat")
    assert by_array["logp"] == pytest.approx(row["logp"], rel=1e-5)
    assert row["logp"] != pytest.approx(loaded.predict(paths[0], "cat")[0]["logp"], rel=1e-5)
    with pytest.raises(ValueError, match=r"cannot read image .*b.png"):
        loaded.predict([paths[0], f"{folder}/in/b.png"], "cat")
    with pytest.raises(ValueError, match="image 0: paths and arrays in one example"):
        loaded.predict([(paths[0], arrays[0])], "cat")


def test_where_nothing_can_be_read_no_model_runs_and_every_line_says_so(folder, capsys):
    with pytest.raises(SystemExit):
        run(folder, "--prompt=cat", f"{folder}/in/b.png", f"{folder}/tokenizer.model")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in row for row in rows] == [True, True]


def test_a_run_knows_what_to_ask_and_says_it(folder, tmp_path, capsys):
    asked = training_data.Asked("detect cat ; dog", ("cat", "dog"))
    training_data.write_asked(asked, folder)
    try:
        run(folder, f"{folder}/in/a.png")
        printed = capsys.readouterr()
        assert json.loads(printed.out)["prefix"] == "detect cat ; dog"
        assert "prompt: 'detect cat ; dog', as in training (--prompt asks" in printed.err
        run(folder, "--prompt=detect dog", f"{folder}/in/a.png")
        printed = capsys.readouterr()
        assert json.loads(printed.out)["prefix"] == "detect dog"
        assert "as in training" not in printed.err
        loaded = paligemma_jax.load(str(folder), weights="none", decoding={"max_new_tokens": 2})
        assert loaded.predict(f"{folder}/in/a.png")[0]["prefix"] == "detect cat ; dog"
    finally:
        (folder / "prompt.json").unlink()
    with pytest.raises(ValueError, match=r"a.png: a prompt is missing: give --prompt"):
        run(folder, f"{folder}/in/a.png")


def test_boxes_are_in_pixels_of_the_file_too():
    box = {"box_yxyx": [0.25, 0.1, 0.5, 1.0], "label": "cat", "score": 0.5}
    row = prediction_rows.in_pixels({"prediction": "x", "detections": [box]}, (100, 300))
    assert row["detections"] == [{**box, "xyxy": [30.0, 25.0, 300.0, 50.0]}]
    assert "xyxy" not in box
    assert prediction_rows.in_pixels({"prediction": "x"}, (1, 1)) == {"prediction": "x"}


def test_the_size_of_every_image_is_known_before_it_is_answered(folder):
    settings = load.from_json(folder / "config.json")
    paths = [f"{folder}/in/{name}.png" for name in "abc"]
    made, _ = queries.find([*paths, f"{folder}/in/clip.mp4"], settings, prompt="cat", every=4)
    made += queries.from_notebook([np.zeros((9, 7, 3), np.uint8)], settings, prompt="cat")
    broken, sizes = {}, {}
    tokenizer = tokens.load_tokenizer(f"{folder}/tokenizer.model")
    spec = pipeline.BatchSpec(res=14, text_len=24, batch_size=2)
    batches = list(queries.make_batches(made, tokenizer, spec, broken, sizes))
    assert len(batches) == 3 and list(broken) == [1]
    assert sizes == {0: (20, 30), 2: (20, 30), 3: (20, 30), 4: (20, 30), 5: (9, 7)}


def test_a_class_has_its_colour_whatever_else_a_picture_shows(tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    made = [queries.Query(records.Record((str(tmp_path / "a.png"),), "detect cat ; dog"))]
    box = {"box_yxyx": [0.5, 0.5, 1, 1], "score": 0.5}
    for labels in (["dog"], ["cat", "dog"], ["eel", "dog"]):
        row = {"index": 0, "detections": [{**box, "label": label} for label in labels]}
        with annotated.Annotator(tmp_path / "out", made, {}, ["cat", "dog"]) as pictures:
            pictures.add(row)
        pixels = np.asarray(Image.open(tmp_path / "out" / "a.png"))
        expected = drawing.choose_colors(["cat", "dog"])["dog"]
        assert "#" + bytes(pixels[39, 45].tolist()).hex() == expected


ROW = {
    **{"index": 0, "source": "a.png", "prediction": "<loc0000> cat", "logp": -1.234, "tokens": 5},
    **{"stopped": True, "dropped": {"loc_count": 2}},
    "detections": [{"label": "cat", "score": 0.5, "box_yxyx": [0.1, 0.2, 0.3, 0.4]}],
}


def test_a_person_reads_the_answer_its_boxes_and_how_sure_it_is():
    assert predicting.describe(ROW).splitlines() == [
        "a.png",
        "  <loc0000> cat",
        "",
        "  label  score    top   left  bottom  right",
        "  -----------------------------------------",
        "  cat     0.50  0.100  0.200   0.300  0.400",
        "",
        "  (logp -1.23; 5 tokens; left out: 2 loc_count)",
    ]
    cut = predicting.describe({**ROW, "stopped": False, "detections": [], "prediction": ""})
    assert "(empty)" in cut and "5 tokens, cut off there: --eval.max_new_tokens" in cut
    assert predicting.describe({"source": "b.png", "error": "gone"}) == "b.png\n  error: gone"


@pytest.mark.parametrize(("as_json", "num_lines"), [(True, 1), (False, 9)])
def test_lines_come_as_they_are_ready(as_json, num_lines, capsys):
    def iterate(_, progress):
        yield ROW
        assert capsys.readouterr().out.count("\n") == num_lines
        yield {"index": 1, "source": "b.png", "error": "gone"}

    opened = types.SimpleNamespace(iterate=iterate)
    assert predicting.answer(opened, [], None, as_json=as_json) == 1


def test_pictures_of_one_name_are_told_apart_and_answers_in_words_stand_below(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (60, 40)).save(tmp_path / name / "a.png")
    paths = [str(tmp_path / name / "a.png") for name in ("x", "y")]
    made = [queries.Query(records.Record((path,), "why?")) for path in paths]
    made.append(queries.Query(records.Record(tuple(paths), "both?")))
    out = tmp_path / "out"
    with annotated.Annotator(out, made, {}) as pictures:
        for index, text in enumerate(("short", "a longer answer of some words", "")):
            pictures.add({"index": index, "prediction": text})
    assert sorted(path.name for path in out.iterdir()) == [f"a-00000{n}.png" for n in range(3)]
    sizes = [drawing.open_rgb(out / f"a-00000{n}.png").size for n in range(3)]
    assert sizes[0][0] == sizes[1][0] == 60 and 40 < sizes[0][1] < sizes[1][1]
    assert sizes[2][0] == 120


def test_a_picture_that_cannot_be_drawn_into_stops_nothing(tmp_path, capsys):
    (tmp_path / "b.png").write_bytes(b"no image")
    Image.new("RGB", (60, 40)).save(tmp_path / "c.png")
    paths = [str(tmp_path / name) for name in ("b.png", "c.png")]
    made = [queries.Query(records.Record((path,), "why?", source=path)) for path in paths]
    rows = [ROW | {"index": index} for index in range(2)]
    opened = types.SimpleNamespace(iterate=lambda *_, **__: iter(rows))
    with annotated.Annotator(tmp_path / "out", made, {}) as pictures:
        assert predicting.answer(opened, made, pictures, as_json=True) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.png"]
    assert "b.png: cannot be drawn: UnidentifiedImageError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--every=0"], "--every 0: expected 1 or more"),
        (["--frames"], "--frames says what --pictures writes"),
    ],
)
def test_options_that_say_nothing_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        predict.parse_args(["--run=r", "--prompt=p", *words, "a.mp4"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["num_examples", "decode", "log_steps", "fname"])
def test_key_without_effect_on_predictions_is_refused(key):
    with pytest.raises(ValueError, match=f"--eval.{key} has no effect"):
        predicting.check_decoding([f"{key}=1"])
    predicting.check_decoding(["sampler=beam", "max_new_tokens=4"])


def test_weights_alone_are_asked_as_they_are(tmp_path, capsys):
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    words = ["--weights=tiny_base", "--eval.max_new_tokens=6", "--eval.batch_size=1"]
    predict.main([*words, "--prompt=detect circle", f"{tmp_path}/a.png"])
    printed = capsys.readouterr()
    assert "detections" in json.loads(printed.out)
    assert "settings: those of tiny_base at 112 px" in printed.err
    predict.main([*words, "--prompt=caption en", f"{tmp_path}/a.png"])
    assert "detections" not in json.loads(capsys.readouterr().out)
    loaded = paligemma_jax.load("tiny_base", decoding={"max_new_tokens": 6}, task="detection")
    assert "detections" in loaded.predict(f"{tmp_path}/a.png", "detect circle")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--weights=mix_3b_488"], "neither a file nor a published name. Nearest: mix_3b_448"),
        (["--weights=none"], "give one of --run FOLDER and --config FILE, or --weights alone"),
        ([], "or --weights alone"),
    ],
)
def test_weights_that_are_not_there_are_named(words, message, tmp_path):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        predict.main([*words, "--prompt=cat", f"{tmp_path}/a.png"])


def test_a_file_alone_is_asked_where_it_is_of_a_released_model(tmp_path, capsys):
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    own = tmp_path / "own.npz"
    own.write_bytes(addresses.resolve("tiny_base").read_bytes())
    (tmp_path / "tokenizer.model").write_bytes(
        addresses.resolve("tiny_base/tokenizer.model").read_bytes()
    )
    words = ["--prompt=caption en", "--eval.max_new_tokens=2", f"{tmp_path}/a.png"]
    predict.main([f"--weights={own}", *words])
    assert "prediction" in json.loads(capsys.readouterr().out)
    npz.write(own, {"llm/a": np.zeros(1, "float32")})
    with pytest.raises(ValueError, match="weights of none of the released models"):
        predict.main([f"--weights={own}", *words])
