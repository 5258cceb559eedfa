"""The check door: what it finds in a spoilt data set, in a clean one, and without a config."""

import json
import textwrap

import numpy as np
import pytest
from PIL import Image

from paligemma_jax import check
from paligemma_jax.data import tokens

BOX = "<loc0100><loc0200><loc0500><loc0600>"
PREFIX = "detect cat ; dog"
PARTS = (("a", "train"), ("b", "val"))


def row(image, suffix=f"{BOX} cat", prefix=PREFIX):
    return {"image": image, "prefix": prefix, "suffix": suffix}


CLEAN = {
    "train": [row(f"{i}.png") for i in range(3)] + [row("3.png", f"{BOX} dog")],
    "val": [row("4.png"), row("5.png", f"{BOX} dog ; {BOX} cat")],
}
# Line of the file -> the row, and the kinds of findings that it is spoilt for.
SPOILT_TRAIN = {
    5: (row("6.png", "<loc0100><loc0200><loc0100><loc0600> cat"), {"box of zero area"}),
    6: (row("7.png", "<loc0100><loc0200><loc1024><loc0600> cat"), {"box out of range"}),
    7: (row("8.png", f"{BOX} CAT", "detect CAT"), {"class spelt in several ways"}),
    8: (row("9.png", " ; ".join([f"{BOX} cat"] * 8)), {"no room for eos"}),
    9: (row("10.png", f"{BOX} cat", "detect dog"), {"prefix names no class"}),
    10: (row("11.png", f"{BOX} cat ; {BOX} bird"), {"class not asked for"}),
    11: (row("12.png", ""), {"empty suffix"}),
    12: (row("0.png"), {"same row twice"}),
    13: (row("1.png", f"{BOX} dog"), {"two answers to one question"}),
    14: (row("gone.png"), {"image not found"}),
    15: (row("empty.png"), {"empty image file"}),
    16: (row("broken.png"), {"image that cannot be decoded"}),
    17: (row(["13.png", "14.png"]), {"too many images"}),
}
SPOILT_VAL = {
    3: (row("copy of 2.png"), {"same row in two data sets"}),
    4: (row("3.png", f"{BOX} dog", "detect dog"), {"same image in two data sets"}),
    5: (row("15.png", f"{BOX} fish", "detect fish"), {"class never trained"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a tokenizer, clean and spoilt files, and a config that takes either."""
    folder = tmp_path_factory.mktemp("check")
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "copy of 2.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "empty.png").touch()
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    spoilt = {"train": SPOILT_TRAIN, "val": SPOILT_VAL}
    for split, rows in CLEAN.items():
        lines = [json.dumps(one) for one in rows]
        more = [json.dumps(one) for one, _ in spoilt[split].values()]
        (folder / f"clean-{split}.jsonl").write_text("\n".join(lines))
        (folder / f"spoilt-{split}.jsonl").write_text("\n".join(lines + more))
    tokens.train_tokenizer([PREFIX, "cat", "dog"], folder / "tokenizer.model", vocab_size=1500)
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import parse_arg, presets

        def get_config(arg=""):
            arg = parse_arg(arg, data="clean")
            c = presets.from_scratch(
                res=28,
                text_len=32,
                img=dict(width=16, depth=2, mlp_dim=16, num_heads=2),
                llm=dict(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8),
            )
            c.input.data.fname = f"{folder}/{{arg.data}}-train.jsonl"
            c.input.batch_size = 4
            c.tokenizer = "{folder}/tokenizer.model"
            c.total_steps = 4
            c.evals.val = dict(fname=f"{folder}/{{arg.data}}-val.jsonl")
            return c
        """)
    )
    return folder


def run(folder, *argv):
    """Returns (exit status, check.json) of a check of the config."""
    status = 0
    out = folder / "out"
    try:
        check.main([*argv, f"--out={out}"])
    except SystemExit as stop:
        status = stop.code
    return status, json.loads((out / "check.json").read_text())


def rows_of(report):
    """Returns {kind: {"train:5", ...}} of the findings that are at rows."""
    found = {}
    for one in report["findings"]:
        for place in one["places"]:
            file, _, line = place.partition(" (")[0].rpartition(":")
            split = file.rpartition("-")[2].removesuffix(".jsonl")
            found.setdefault(one["kind"], set()).add(f"{split}:{line}")
    return found


def test_every_finding_is_made_by_the_rows_that_are_spoilt_for_it(folder, capsys):
    status, report = run(folder, f"--config={folder}/config.py:data=spoilt", "--full")
    expected = {}
    for split, rows in {"train": SPOILT_TRAIN, "val": SPOILT_VAL}.items():
        for line, (_, kinds) in rows.items():
            for kind in kinds:
                expected.setdefault(kind, set()).add(f"{split}:{line}")
    assert rows_of(report) == expected
    assert status == 1
    severities = [one["severity"] for one in report["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    text = capsys.readouterr().out
    assert "spoilt-train.jsonl:5\n    -> draw it again" in text
    assert text.splitlines()[-2].startswith("5 warnings, ")
    assert text.splitlines()[-1] == "10 errors"


def test_a_clean_data_set_has_no_findings_at_rows_and_status_0(folder, capsys):
    status, report = run(folder, f"--config={folder}/config.py", "--full")
    assert status == 0
    assert rows_of(report) == {}
    assert {one["severity"] for one in report["findings"]} <= {"note"}
    data = report["sections"]["data"]
    assert data["image sizes"] == "6 decoded: 40x30 to 40x30, median 40x30"
    assert data["Classes"][0] == {
        "class": "cat",
        "training data": "3 in 3 rows",
        "evals.val": "2 in 2 rows",
    }
    assert report["sections"]["run"]["length"] == "4 steps of 4, 4.0 passes"
    assert capsys.readouterr().out.splitlines()[-1] == "READY"


def test_every_class_that_prompts_name_is_counted_and_one_without_objects_is_a_warning(
    folder, capsys
):
    rows = [row("0.png", prefix=f"{PREFIX} ; bird"), row("1.png", f"{BOX} dog")]
    (folder / "rare-train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [row("4.png", prefix="detect cat ; fish")]
    (folder / "rare-val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    status, report = run(folder, f"--config={folder}/config.py:data=rare")
    table = {one.pop("class"): one for one in report["sections"]["data"]["Classes"]}
    assert list(table) == ["cat", "dog", "bird", "fish"]
    assert table["cat"] == {"training data": "1 in 1 row", "evals.val": "1 in 1 row"}
    for label in ("bird", "fish"):
        assert table[label] == {"training data": "0 in 0 rows", "evals.val": "0 in 0 rows"}
    (warning,) = (one for one in report["findings"] if one["severity"] == "warning")
    assert warning["what"].startswith("'bird': named by prompts, and in no answer")
    *_, counts, verdict = capsys.readouterr().out.splitlines()
    assert (status, counts.split(",")[0], verdict) == (0, "1 warning", "READY")


def test_an_example_is_explained_with_its_picture(folder):
    _, report = run(folder, f"--config={folder}/config.py", "--example=4")
    example = report["sections"]["example"]
    assert example["row"].endswith("clean-train.jsonl:4")
    assert example["read back"] == repr(f"{BOX} dog")
    first = example["Tokens"][0]
    assert (first["piece"], first["position"]) == ("<image> x 4", "0-3")
    assert [t["piece"] for t in example["Tokens"] if t["mask_loss"] == "1"][:2] == [
        *("<loc0100>", "<loc0200>")
    ]
    page = (folder / "out" / "check.html").read_text()
    assert "data:image/png;base64," in page and "boxes read back from the tokens" in page


@pytest.mark.parametrize(
    ("override", "subject", "message"),
    [
        ("trainable=llm/layers/atn/.*", "optimizer", "matches no parameter"),
        ("accumulation_steps=3", "mesh", "is not divisible by"),
        ("evals.val.temperature=-1.0", "evals.val", "temperature"),
        ("res=30", "model", "30"),
        ("input.data.fname=gone.jsonl", "training data", "no such file"),
        ("tokenizer=gone.model", "tokenizer", "gone.model"),
        ("stop_at=[('val/loss', 1.0)]", "stop_at", "runs only after the last step"),
        ("save=trainable", "save", "random ones are in no other file"),
        ("input.augment.crop=7.0", "input.augment", "crop"),
        ("input.augment.scale=(2.0, 0.5)", "input.augment", "expected (least, most)"),
        ("evals.val.scores=['anls']", "run", "has its own scores"),
        ("evals.val.constrain=task", "run", "set max_new_tokens"),
        ("profile_steps=100", "run", "profile_steps=100"),
        ("model_init=gone.npz", "gone.npz", "neither a file nor a published name"),
    ],
)
def test_settings_that_training_would_refuse_are_errors(folder, override, subject, message):
    overrides = [f"--config.{override}"]
    if "temperature" in override:
        overrides.append("--config.evals.val.sampler=temperature")
    if "constrain" in override:
        overrides.append("--config.evals.val.max_new_tokens=2")
    status, report = run(folder, f"--config={folder}/config.py", *overrides)
    errors = [one for one in report["findings"] if one["severity"] == "error"]
    assert status == 1
    assert any(one["subject"] == subject and message in one["what"] for one in errors), errors


def test_a_source_of_a_mixture_without_weight_is_an_error_as_in_training(folder):
    source = {"fname": f"{folder}/clean-train.jsonl", "weight": 0}
    mixture = [f"--config.input.mixture={ {'a': source} }", "--config.input.data.fname=None"]
    status, report = run(folder, f"--config={folder}/config.py", *mixture)
    assert status == 1
    errors = [one["what"] for one in report["findings"] if one["severity"] == "error"]
    assert errors == ["config: input.mixture.a.weight=0: expected a number above 0"]


def test_without_a_tokenizer_all_else_is_checked_and_what_is_left_out_is_said(folder):
    spoilt, gone = f"--config={folder}/config.py:data=spoilt", "--config.tokenizer=gone.model"
    status, report = run(
        folder, spoilt, gone, "--config.model.llm.vocab_size=1500", "--config.trainable=llm/x"
    )
    found = {one["kind"]: one for one in report["findings"]}
    assert status == 1
    assert "token lengths, one example, how" in found["no tokenizer"]["what"]
    assert {"box of zero area", "class spelt in several ways", "settings"} <= found.keys()
    assert "optimizer" in {one["subject"] for one in report["findings"]}
    assert "parameters" in report["sections"]["run"]["model"]
    assert report["sections"]["memory"] == {"not planned": "mend the errors first"}
    _, report = run(folder, spoilt, gone)
    (what,) = (f["what"] for f in report["findings"] if f["kind"] == "no tokenizer")
    assert "the model's size" in what and "model" not in report["sections"]["run"]


def test_what_is_wrong_with_the_model_is_said_beside_a_missing_tokenizer(folder):
    config, gone = f"--config={folder}/config.py", "--config.tokenizer=gone.model"
    for override, subject in (
        ("model.img.variant=B/99", "model"),
        ("res=30", "model"),
        ("trainable=llm/x", "optimizer"),
    ):
        _, report = run(folder, config, gone, f"--config.{override}")
        wrong = {one["subject"] for one in report["findings"] if one["severity"] == "error"}
        assert wrong >= {subject, "tokenizer"}


def test_a_mask_codec_that_is_not_there_is_a_finding_beside_the_others(folder):
    config, gone = f"--config={folder}/config.py", "--config.mask_codec=gone.npz"
    status, report = run(folder, config, gone, "--config.task=segmentation")
    found = {one["kind"]: one for one in report["findings"]}
    assert "--config.mask_codec=experiments/mask_codec" in found["no mask codec"]["remedy"]
    assert status == 1 and "answers of another task" in found


def test_a_file_that_cannot_be_read_is_the_one_error_of_the_data(folder):
    (folder / "coco.json").write_text(json.dumps({"images": [], "annotations": []}))
    fname = f"--config.input.data.fname={folder}/coco.json"
    _, report = run(folder, f"--config={folder}/config.py", fname)
    (error,) = (one for one in report["findings"] if one["severity"] == "error")
    assert f"paligemma_jax.import_data {folder}/coco.json {folder}/coco_jsonl" in error["what"]
    assert report["sections"]["run"]["length"].startswith("not known")


def test_a_task_of_other_answers_is_one_finding_that_names_the_right_one(folder):
    config = f"--config={folder}/config.py"
    status, report = run(folder, config, "--config.task=json")
    errors = [one for one in report["findings"] if one["severity"] == "error"]
    (error,) = (one for one in errors if one["subject"] == "training data")
    assert error["kind"] == "answers of another task" and "task='detection'" in error["remedy"]
    assert status == 1
    status, report = run(folder, config, "--config.task=vqa")
    (found,) = (one for one in report["findings"] if one["severity"] == "warning")
    assert found["kind"] == "answers of another task" and "task='detection'" in found["remedy"]
    assert status == 0


def test_rows_that_an_evaluation_cannot_score_are_an_error(folder):
    (folder / "asked.jsonl").write_text(json.dumps(row("0.png", "red", "answer en colour?")))
    status, report = run(
        folder,
        f"--config={folder}/config.py",
        "--config.task=vqa",
        f"--config.evals.val.fname={folder}/asked.jsonl",
        "--config.evals.val.scores=('vqav2_accuracy',)",
    )
    found = [one for one in report["findings"] if one["kind"] == "rows cannot be scored"]
    assert status == 1 and [one["subject"] for one in found] == ["evals.val"]


def test_hostile_text_is_shown_as_what_it_is(folder, capsys):
    hidden = "\u202etac\u202c"
    rows = [row("0.png", f"{BOX} {hidden}", f"detect {hidden}"), row("\ud800.png")]
    (folder / "hidden.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    config = folder / "config.py"
    argv = ["--config", str(config), f"--config.input.data.fname={folder}/hidden.jsonl"]
    with pytest.raises(SystemExit):
        check.main([*argv, f"--out={folder}/hidden"])
    shown = capsys.readouterr().out
    assert r"\u202etac\u202c" in shown and r"\ud800.png" in shown
    assert not set(shown) & set("\u202e\u202c\ud800")
    page = (folder / "hidden" / "check.html").read_text(encoding="utf-8")
    assert r"\ud800.png" in page


def test_every_source_of_a_mixture_is_training_data(folder):
    status, report = run(
        folder,
        f"--config={folder}/config.py:data=spoilt",
        "--config.input.data.fname=None",
        *(f"--config.input.mixture.{n}={{'fname': '{folder}/clean-{f}.jsonl'}}" for n, f in PARTS),
    )
    assert [*report["sections"]["data"]][:2] == ["input.mixture.a", "input.mixture.b"]
    # The spoilt evaluation begins with the rows of the second source.
    leaks = next(one for one in report["findings"] if one["kind"] == "same row in two data sets")
    assert leaks["subject"] == "evals.val" and "input.mixture" in leaks["what"]
    assert status == 1


def test_examples_that_are_trained_and_evaluated_on_are_no_leak(folder):
    status, report = run(
        folder,
        f"--config={folder}/config.py",
        "--config.evals.val.fname=input",
        "--config.input.num_examples=2",
    )
    (facts,) = (v for k, v in report["sections"]["data"].items() if k == "training data")
    assert facts.startswith("2 rows")
    assert not [one for one in report["findings"] if "two data sets" in one["kind"]]
    assert status == 0


def test_without_a_config_the_machine_alone_is_checked(folder, capsys):
    _, report = run(folder)
    assert list(report["sections"]) == ["environment"]
    assert "jax sees" in capsys.readouterr().out


def test_a_sheet_shows_what_augmentation_does(folder):
    sheet = folder / "sheet.png"
    status, _ = run(
        folder,
        f"--config={folder}/config.py",
        f"--augment={sheet}",
        "--config.input.augment.crop=0.5",
    )
    assert status == 0
    with Image.open(sheet) as picture:
        assert picture.width > picture.height


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--full"], "belong to a --config FILE"),
        (["--augment=a.png"], "belong to a --config FILE"),
        (["--config={folder}/config.py", "--augment=a.png"], "no augmentation is on"),
        (["--config=gone.py"], "no file gone.py"),
        (["--config={folder}/config.py", "--example=99"], "lines: 1 to 4"),
    ],
)
def test_what_cannot_be_checked_is_an_error(folder, argv, message):
    with pytest.raises(ValueError, match=message):
        check.main([word.format(folder=folder) for word in argv])
