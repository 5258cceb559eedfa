"""Wrong uses of the commands: each ends in one error, in words, with what to do; none in a
traceback."""

import json
import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from paligemma_jax import __main__
from paligemma_jax.data import tokens
from paligemma_jax.settings import load

TRAIN = "train --config mine.py --workdir new"
# Words of a command, in a folder that `place` fills -> what the error says, the remedy in it.
USES = {
    # No command, or half of one
    "evaluat --run run": r"'evaluat' is no command\. Did you mean 'evaluate'",
    "train": r"--data FOLDER --model NAME, or --config FILE --workdir FOLDER",
    "train --data data": r"required: --model",
    "train --config mine.py": r"required: --workdir",
    f"{TRAIN} --lr=0.1": r"lr is a key of the settings: --config\.lr=V",
    f"{TRAIN} --config.lr 0.1": r"write --config\.lr=VALUE, without a",
    "evaluate": r"give one of --run FOLDER and --config FILE",
    "predict --run run": r"required: images",
    "import_data coco new": r"required: --task",
    "fetch": r"nothing to fetch: give names, as pt_3b_224 or tokenizer",
    "val --run done": r"'val' is no command\. Did you mean 'evaluate'",
    "detect --run done a.png": r"Did you mean 'predict'",
    "export --run done": r"Did you mean 'convert'",
    "yolo predict": r"'yolo' is no command\. There are: check, train",
    # Words of other programs
    "train data=data model=tiny": r"data=data: write --data data",
    "train --data data --model tiny --imgsz 448": r"Did you mean '--res'",
    "train --data data --model tiny --batch 8": r"Did you mean '--batch_size'",
    "train --data data --model tiny --learning_rate 1e-4": r"settings: --config\.lr=VALUE",
    "train --data data --model tiny --output_dir new": r"Did you mean '--workdir'",
    "train --data data --model tiny --num-train-epochs 3": r"Did you mean '--epochs'",
    "train --data data --model tiny --device 0": r"--help lists what there is",
    "train --data data/train.jsonl data/valid.jsonl --model tiny": r"behind the name .*: --data",
    f"{TRAIN} --resume": r"Did you mean '--resume_anyway'",
    f"{TRAIN} --epochs 3": r"--epochs 3\. Did you mean|--help lists what there is",
    "predict --model done a.png": r"Did you mean '--run'",
    "predict --run done --source a.png": r"--help lists what there is",
    "predict --run done/final.npz a.png": r"Is done/final\.npz the --workdir of a run",
    "evaluate done": r"unrecognized arguments: done\. Each stands behind .*--data, --run",
    "evaluate --run done --split test": r"Did you mean '--data'",
    "check mine.py": r"behind the name of an option: --config",
    # A run without a config
    "train --data data --model tiny --epochs 0": r"--epochs 0: expected more than 0",
    "train --data data --model tiny --batch_size 0": r"--batch_size 0: expected more than 0",
    "train --data nowhere --model tiny": r"SRC nowhere: no such file or folder",
    "train --data notes --model tiny": r"no data set of a known format .*Force one: --format coco",
    "train --data data --model tinny": r"--model tinny is not known\. Did you mean 'tiny'",
    "train --data data --model tiny --method lora": r"'tiny' starts from nothing.*leave --method",
    "train --data data --model paligemma2-3b --res 300": r"has weights for 224, 448, 896 pixels",
    "train --data data --model paligemma2-3b --method lorra": r"Did you mean 'lora'",
    "train --data data --model notes": r"notes: expected weights: a run \(final\.npz\)",
    "train --data data --model tiny --task detect": r"--task detect is unknown\. Did you mean 'det",
    "train --data data --model tiny --classes a": r"--classes a: for data sets of other.*leave it",
    # A config, and its keys
    "train --config min.py --workdir new": r"no file min\.py\. Did you mean 'mine\.py'",
    "train --config fracture_24 --workdir new": r"Did you mean 'fracture_224'",
    "train --config mine.py:overfit --workdir new": r"makes nothing of the argument .*parse_arg",
    "train --config a.png --workdir new": r"a\.png is no Python file.*Expected FILE\.py",
    "train --config broken.py --workdir new": r"broken\.py:1: not Python",
    f"{TRAIN} --config.lrr=1": r"'lrr' is not known\. Did you mean 'lr'",
    f"{TRAIN} --config.lr=high": r"lr=high: expected float, found str",
    f"{TRAIN} --config.input.batch_size=0": r"expected 1 or more",
    f"{TRAIN} --config.task=detect": r"Did you mean 'detection'",
    f"{TRAIN} --config.total_epochs=3": r"total_steps and total_epochs ",
    f"{TRAIN} --config.tokenizer=spm": r"config key tokenizer names",
    f"{TRAIN} --config.model_init=pt_3b_22": r"Nearest: pt_3b_224",
    f"{TRAIN} --config.trainable=lm/.*": r"matches no parameter.*Near",
    f"{TRAIN} --config.input.text_len=4": r"; set input\.text_len=16, shorten",
    # Data
    f"{TRAIN} --config.input.data.fname=data/trian.jsonl": (
        r"no such file; did you mean data/train\.jsonl"
    ),
    f"{TRAIN} --config.input.data.fname=data": r"JSONL files in data: ",
    f"{TRAIN} --config.input.data.fname=coco/a.json": r"Import it: pyth",
    f"{TRAIN} --config.input.data.fname=bad.jsonl": (r"bad\.jsonl:2: key 'suffix' missing"),
    # The folder of a run
    "train --config mine.py --workdir mine.py": r"mine\.py is a file; choose another",
    "train --config mine.py --workdir data": r"lies in it\. Choose a folder of the run's own",
    "train --config mine.py --workdir done": r"done holds a finished run.*choose another --workdir",
    "train --config mine.py --workdir run --config.lr=7": r"lr: 0\.001 there, 7\.0 now.*another",
    # What a run is used for
    "evaluate --run nowhere": r"config\.json: not found\. Is nowhere the --workdir of a run",
    "evaluate --run run": r"so the run did not end\. .*--checkpoint=last",
    "evaluate --run run --checkpoint best": r"checkpoints holds none",
    "evaluate --config mine.py --checkpoint last": r"--checkpoint is of a run: give --run FOLDER",
    "evaluate --run done --data data/test.jsonl": r"no such file.*JSONL files in data: ",
    "evaluate --run run --weights wights.npz": r"neither a file nor a published name",
    "evaluate --run done --eval.samper=beam": r"Did you mean 'evals\.\w+\.sampler'",
    "evaluate --run done --name valid --out done": r"of a training run: choose another --out",
    "predict --run done --eval.scores=map a.png": r"--eval\.scores has no effect on predictions",
    "predict --run done --every 0 a.png": r"--every 0: expected 1 or more",
    "predict --run done --frames a.png": r"--frames says what --pictures writes: give that",
    "predict --run done nowhere.png": r"nowhere\.png",
    "predict --run done --pictures mine.py a.png": r"mine\.py is a file; choose another folder",
    # The other commands
    "check --config broken.py": r"broken\.py:1: not Python",
    "check --config mine.py --device h1000": r"h1000.*Known|h1000.*[Dd]id you mean",
    "convert nowhere new.npz": r"no such file or folder; nothing is downloaded here\. expected an",
    "convert notes new.npz": r"expected an \.npz file, a run's folder.*it holds a\.txt",
    "convert a.png new.npz": r"expected an \.npz file",
    "convert coco new --task detection": r"data sets have a command of their own: paligemma-jax",
    "convert done new --openpi": r"--openpi writes an npz file: DST must end in \.npz",
    "import_data coco new --task detect": r"invalid choice: 'detect' \(choose from",
    "import_data nowhere new --task detection": r"SRC nowhere: no such file or folder",
    "import_data coco coco/new --task detection": r"lie in one another: choose another place",
    "import_data coco notes --task detection": r"is there already; --overwrite replaces it",
    "import_data coco notes --task detection --overwrite": r"Choose another place, or empty it",
    "import_data coco new --task detection --seed 3": r"add --split train=0\.8,valid=0\.2",
    "import_data coco new --task detection --split train=0.9,valid=0.9": r"above 0 and sum to 1",
    "import_data coco new --task vqa": r"has no texts for --task vqa; it gives detection",
    "sweep --config mine.py --workdir new": r"defines no sweep\(add\)\. Write one",
    "sweep --config sweeps.py --workdir new --only 7": r"--only 7: the sweep has runs 0 to 1",
    "fetch pt_3b_22": r"Did you mean 'pt_3b_224'",
    "label nothere": r"nothere: no such file or folder; expected JSONL",
    "label . --host 0.0.0.0": r"lets other machines in: add --token",
    "launch -- train --config mine.py": r"--tpu --slurm --hosts is required",
    "launch --tpu v5e-16 -- train --config mine.py": r"--tpu needs --zone, as",
    "launch --slurm": r"stands behind --, as: -- train",
    "launch --hosts a,b -- dance": r"only train and evaluate can",
    "configs fracture": r"Did you mean 'fracture_224'",
    "new mine": r"write mine\.py",
    "new mine.py": r"mine\.py is there already: choose another name",
    "new other.py --task detect": r"invalid choice: 'detect' \(choose from",
}
FEWEST = 40
CONFIG = """
from paligemma_jax.settings import presets


def get_config(arg=""):
    dims = dict(width=8, depth=1, mlp_dim=8, num_heads=1)
    c = presets.from_scratch(
        res=14, text_len=32, img=dims, llm={**dims, "num_kv_heads": 1, "head_dim": 8}
    )
    c.input.data.fname = "data/train.jsonl"
    c.input.batch_size = 2
    c.tokenizer = "data/tokenizer.model"
    c.total_steps = 2
    c.evals.valid = dict(fname="data/train.jsonl")
    return c
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, a COCO export, configs, a run that did not end and one that did."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("data", "coco", "notes", "run", "done"):
        (folder / name).mkdir()
    for name in ("a.png", "data/a.png", "coco/a.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    row = {"image": "a.png", "prefix": "detect cat", "suffix": "<loc0100>" * 2 + "<loc0500>" * 2}
    row["suffix"] += " cat"
    (folder / "data/train.jsonl").write_text((json.dumps(row) + "\n") * 6)
    (folder / "bad.jsonl").write_text(json.dumps(row) + '\n{"image": "a.png", "prefix": "x"}\n')
    tokens.train_tokenizer(["detect cat"], folder / "data/tokenizer.model", vocab_size=1500)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    image = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    coco = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco/a.json").write_text(json.dumps(coco))
    (folder / "notes/a.txt").write_text("milk\n")
    (folder / "broken.py").write_text("def get_config(:\n")
    (folder / "mine.py").write_text(CONFIG)
    sweep = "\n\ndef sweep(add):\n    add(lr=0.1)\n    add(lr=0.2)\n"
    (folder / "sweeps.py").write_text(CONFIG + sweep)
    settings = load.load(str(folder / "mine.py"))
    for name in ("run", "done"):
        kept = json.dumps(load.to_keep(settings, folder / name))
        (folder / name / "config.json").write_text(kept.replace(f"{pathlib.Path.cwd()}/", ""))
    (folder / "done/final.npz").touch()
    (folder / "done/metrics.json").write_text('{"step": 2}')
    return folder


@pytest.mark.parametrize("use", USES)
def test_a_wrong_use_ends_in_one_error_with_a_remedy(use, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["paligemma-jax"])
    monkeypatch.delenv("PALIGEMMA_JAX_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        __main__.main(use.split())
    text = capsys.readouterr().err
    if isinstance(ended.value.code, str):  # which Python writes to standard error
        text += ended.value.code
    else:
        assert ended.value.code == 2
    assert "Traceback" not in text
    assert len(re.findall(r"(?m)^(?:[\w -]+: )?error: ", text)) == 1, text
    assert re.search(USES[use], text.rpartition("error: ")[2], re.DOTALL), text
    assert not (place / "new").exists()


def test_there_are_enough_of_them():
    doors = {use.split()[0] for use in USES}
    assert len(USES) >= FEWEST and doors >= set(__main__.DOORS) - {"finetune"}
