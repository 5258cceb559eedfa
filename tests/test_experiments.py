"""Every script of experiments/ runs: slow, with the tiniest settings it has, on shared data."""

import ast
import dataclasses
import json
import os
import pathlib
import re
import shlex
import string
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments"


@dataclasses.dataclass(frozen=True)
class Command:
    """What is run, from the root of the repository.

    Attributes:
      words: after `python`. {out} is a folder of the command's own, {NAME} that of another one,
        which is run before.
      says: regexes of what it prints.
      writes: files in its folder that are there afterwards, and not empty.
    """

    words: str
    says: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def needs(self) -> set[str]:
        fields = {field for _, field, _, _ in string.Formatter().parse(self.words) if field}
        return fields - {"out", "python"}


SPLITS = tuple(f"_annotations.{split}.jsonl" for split in ("train", "valid", "test"))
COMMANDS = {
    "demo": Command(
        "experiments/demo/make_data.py --out {out} --train 16 --valid 4 --test 8",
        says=("train.jsonl: 16 images", "test.jsonl: 8 images"),
        writes=(*SPLITS, "tokenizer.model", "test_00007.png"),
    ),
    "digits": Command(
        "experiments/digits/make_data.py --out {out} --placement cells --faint "
        "--train 32 --valid 4 --test 8",
        says=("train.jsonl: 32 scenes", r"test.jsonl: 8 scenes, \d+ digits"),
        writes=(*SPLITS, "tokenizer.model"),
    ),
    "segmentation": Command(
        "experiments/segmentation/make_data.py --out {out} --train 8 --valid 4 --test 40",
        says=("test.jsonl: 40 scenes; shapes asked for fill [1-9]",),
        writes=(*SPLITS, "tokenizer.model"),
    ),
    "baselines": Command(
        "experiments/segmentation/baselines.py --data {segmentation}/_annotations.test.jsonl "
        "--results {out}",
        says=(r'"true_tokens": 0\.9',),  # what the codec keeps of any shape
        writes=("baselines.json",),
    ),
    "tiny_base": Command(
        "experiments/tiny_base/make_data.py --out {out} --train 8 --valid 8",
        says=(r"train.jsonl: \d\d rows",),
        writes=(*SPLITS[:2], "_annotations.detect.jsonl", "tokenizer.model"),
    ),
    "tiny_base_tower": Command(
        "experiments/tiny_base/tower.py --data {out} --scenes 64 --passes 25",
        says=(r"step 50: background \d",),
        writes=("tower.npz",),
    ),
    "tiny_base_start": Command(
        "experiments/tiny_base/start.py --data {tiny_base} --tower {tiny_base_tower}/tower.npz "
        "--out {out}/start.npz",
        says=(r"start.npz: [345],\d{3},\d{3} parameters",),
        writes=("start.npz",),
    ),
    "tiny_base_figures": Command(
        "experiments/tiny_base/figures.py --data {tiny_base} --run {noise_boxes}/runs/noise-0 "
        "--out {out}",
        says=('"steps": 2',),
        writes=("curve.png", "mixture.png", "pretraining.json"),
    ),
    "tiny_base_new_tasks": Command(
        "experiments/tiny_base/new_tasks.py --out {out} --train 8 --test 4",
        writes=("words/_annotations.train.jsonl", "counting/_annotations.test.jsonl"),
    ),
    "tiny_base_transfer": Command(
        "experiments/tiny_base/transfer.py --data {demo} --out {out}/runs --results {out} "
        "--methods attention --lr 0.05 --examples 8 --steps 2 --test 4",
        says=(r"\| fracture; zero-shot; map50 \| 0\.\d", r"\| fracture; attention; 8 .*lr 0\.05"),
        writes=("results.json",),
    ),
    "coco": Command(
        "experiments/import_coco/make_data.py --out {out} --images 4 --boxes 20",
        writes=("annotations/instances_train2017.json", "train2017/000000000003.jpg"),
    ),
    "mask_codec": Command(
        "experiments/mask_codec/train.py --out {out} --steps 2 --shapes 64",
        says=("1064 shapes drawn", r'"iou": 0\.\d.*"steps": 2'),
        writes=("codec.npz", "results.json", "round-trip.png"),
    ),
    "noise_boxes": Command(
        "experiments/noise_boxes/run.py --data {digits} --out {out}/runs --results {out} "
        "--steps 2 --seeds 0 --arms noise",
        says=(r"\| noise, 1 seeds \|",),
        writes=("results.json", "curve.png", "pictures.png"),
    ),
    "summarize": Command(
        "experiments/summarize.py --run {noise_boxes}/runs/noise-0 --out {out} --name noise",
        writes=("noise.json", "noise-curve.png", "noise-pictures.png"),
    ),
    "adapters": Command(
        "experiments/adapters/make_data.py --out {out} --train 64 --test 8",
        writes=("base/train.jsonl", "new/test.jsonl", "tokenizer.model"),
    ),
    "adapters_run": Command(
        "experiments/adapters/run.py --data {adapters} --out {out}/runs --results {out} "
        "--base_steps 2 --steps 2 --seeds 0 --kinds float32 --arms 'LoRA r=16, NF4'",
        says=("base in float32 on new scenes", r"\| LoRA r=16, NF4 \|"),
        writes=("results.json", "scores.png"),
    ),
    "adapters_memory": Command(
        "experiments/adapters/memory.py --results {out} --models paligemma2-3b "
        "--methods 'LoRA, 16 bit' --devices 1",
        says=(r"\| paligemma2-3b, LoRA, 16 bit \| \d+\.\d\d / \d+\.\d\d \|",),
        writes=("memory.json",),
    ),
    "compare_qwix": Command(
        "experiments/adapters/compare_qwix.py --shape 64 128 --tokens 4",
        says=('"name": "ours"', "qwix, scales in bfloat16|qwix is not installed: ours alone"),
    ),
    "faults": Command(
        "experiments/faults/kill.py --out {out}/runs --results {out} --runs sgd-1 --kills 1"
        " --steps 40",
        says=(r'"arrays_equal": 32,.*"rows_of_metrics_equal": 40,',),
        writes=("results.json",),
    ),
    "systems_data": Command(
        "experiments/systems/make_data.py --out {out}",
        writes=("fracture/_annotations.train.jsonl", "caption/photos.csv"),
    ),
    "systems": Command(
        "experiments/systems/run.py --workdir {out} --only vqa",
        says=(r"\| vqa \| \[vqa_448\]\S+ \| 8 \| \d+ \| 100% \| exact_match 1 \|",),
        writes=("vqa/final.npz", "vqa/evaluation-input/report.html"),
    ),
    "real_size": Command(
        "experiments/real_size/make_weights.py --out {out}/random.npz --model tiny --res 28",
        writes=("random.npz",),
    ),
    "load_and_save": Command(
        "experiments/real_size/load_and_save.py --config configs/colab_longcap_224.py "
        "--workdir {out}/run --config.model_init={real_size}/random.npz --config.res=28 "
        "--config.model.img.variant=tiny/14 --config.model.llm.variant=tiny --config.ckpt_steps=64 "
        "--config.input.data.fname={demo}/_annotations.train.jsonl --config.evals={{}} "
        "--config.task=detection --config.tokenizer={demo}/tokenizer.model",
        says=(r'"held_gb": \d.*"load_gb": \d.*"save_gb": \d',),
        writes=("run/final.npz",),
    ),
    "measure": Command("experiments/real_size/measure.py {python} -c 'print(6 * 7)'", says=("42",)),
    "compare": Command(
        "experiments/benchmarks/compare.py --size tiny --rounds 1 --out {out} "
        "--what 'attention-only step' help",
        says=(r"tiny, \d+ cores? of", r"\| attention-only step \| paligemma_jax \|", r"\| help \|"),
        writes=("results.json", "table.md", "plot.svg"),
    ),
    "first_step": Command(
        "experiments/benchmarks/first_step.py --data {demo} --rounds 1",
        says=(r'"cold_s": \d.*"warm_s": \d.*"quotient": [1-9]',),
    ),
    "help_time": Command(
        "experiments/benchmarks/help_time.py --rounds 1", says=(r'"help_s": \d.*"quotient": \d',)
    ),
    "sweep_time": Command(
        "experiments/benchmarks/sweep_time.py --data {digits} --steps 1 --rounds 1",
        says=(r'"medians": {\s*"processor_s": [1-9]',),
    ),
    "augment_time": Command(
        "experiments/benchmarks/augment_time.py --size 64 48 --res 28 --batch_size 4 --steps 2",
        says=('"chain": "none".*"relative": 1.0', '"chain": "all"'),
    ),
    "input_time": Command(
        "experiments/benchmarks/input_time.py --cores 1 --size 64 48 --res 28 --batch_size 4 "
        "--steps 2 --rounds 1",
        says=(r'"cores": 1, "ours_per_s": [1-9].*"bare_per_s": [1-9]',),
    ),
    "rows_start": Command(
        "experiments/benchmarks/rows_start.py --folder {out} --rows 200",
        says=('"rows": 200', '"cold": {"read_s"', '"cached": {"read_s"'),
    ),
    "npz_io": Command(
        "experiments/benchmarks/npz_io.py --file {real_size}/random.npz --rounds 1 "
        "--out {out}/npz_io.json",
        says=(r'"load_over_load_numpy": \d', r'"save_over_write_synced": \d'),
        writes=("npz_io.json",),
    ),
    "remat_time": Command(
        "experiments/benchmarks/remat_time.py --size tiny --rounds 1 --trainable .* "
        "--optimizer scale_by_adam --policies nothing_saveable dots_saveable",
        says=("nothing_saveable", "dots_saveable"),
    ),
    "plan_memory": Command(
        "experiments/benchmarks/plan_memory.py --size tiny",
        says=(r'"planned_mib": \d+, "taken_mib": \d+',),
    ),
    "step_memory": Command(
        "experiments/benchmarks/step_memory.py --res 28 --batch_size 1 --text_len 8",
        says=(r'"side": "paligemma_jax".*"temp_gb": \d',),
    ),
    "compiled": Command(
        'experiments/benchmarks/compiled.py --out {out} --case "v5e 2x4, attention-only SGD"',
        says=(r"attention-only SGD \| paligemma_jax \| (\d\.\d GB \| 0\.\d+ s|left out: no comp)",),
        writes=("results.json", "table.md"),
    ),
    "attention_time": Command(
        "experiments/benchmarks/attention_time.py --rounds 1",
        says=("vision, mid, forwards", "language, 3B, and backwards"),
    ),
    "decode_bytes": Command(
        "experiments/benchmarks/decode_bytes.py --model mid --batch_size 1", says=('"copies": {}',)
    ),
    "constrained_valid": Command(
        "experiments/benchmarks/constrained.py --what valid --answers 10 --samplers nucleus "
        "--grammars detection json",
        # Held to it, all are well formed.
        says=(r"detection +nucleus +10 +10 +\d", r"json +nucleus +10 +10 +\d"),
    ),
    "constrained_compile": Command(
        "experiments/benchmarks/constrained_compile.py --schemas text_80 nested "
        "--tokenizer tests/reference/tiny_spm.model",
        says=(r"paligemma_jax \| text_80 \| \d", r"paligemma_jax \| nested \| \d"),
    ),
    "constrained_cost": Command(
        "experiments/benchmarks/constrained.py --what cost --size tiny --rounds 1 --new_tokens 4",
        says=("free", "detection", "segmentation", "answers", "json", "texts"),
    ),
}
# What compare starts, with what the table says where a peer is not installed: these come from no
# package index (big_vision), or would bring a second version of what is installed (the others).
SIDES = {
    "paligemma_jax": ("side_ours.py", None),
    "big_vision": ("side_big_vision.py", "BIG_VISION_DIR does not name a checkout of big_vision"),
    "transformers": ("side_transformers.py", "ModuleNotFoundError: No module named 'torch'"),
    "keras_hub": ("side_keras_hub.py", "ModuleNotFoundError: No module named 'keras_hub'"),
}
STARTED = {f"benchmarks/{file}" for file, _ in SIDES.values()} | {
    "benchmarks/prepare.py",
    "benchmarks/compiled_case.py",
}
# Run by a test of its own: tests/test_pretraining.py.
ELSEWHERE = {"tiny_base/pretrain.py"}


class Runner:
    """Runs commands, each of them once, in folders below one."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.said: dict[str, str] = {}

    def run(self, name: str) -> str:
        """Returns what a command says, once it has run and those that it needs before it."""
        if name in self.said:
            return self.said[name]
        command = COMMANDS[name]
        folders = {other: self.folder / other for other in command.needs}
        for other in sorted(folders):
            self.run(other)
        (self.folder / name).mkdir()
        words = command.words.format(out=self.folder / name, python=sys.executable, **folders)
        before = recorded()
        done = subprocess.run(
            [sys.executable, *shlex.split(words)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"python {words}:\n{done.stderr[-4000:]}"
        assert recorded() == before, f"python {words} writes into experiments/"
        self.said[name] = done.stdout
        return done.stdout


def recorded() -> dict[pathlib.Path, int]:
    """Returns when the results and texts of experiments/ were written."""
    files = (path for path in FOLDER.rglob("*") if path.suffix not in (".py", ".pyc"))
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture(scope="session")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("experiments"))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_script_runs(runner, name):
    command = COMMANDS[name]
    said = runner.run(name)
    for pattern in command.says:
        assert re.search(pattern, said), f"{pattern} is not in:\n{said}"
    for file in command.writes:
        assert (runner.folder / name / file).stat().st_size, file


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_side_of_compare_finds_our_loss_or_says_what_it_lacks(runner, side):
    runner.run("compare")
    results = json.loads((runner.folder / "compare" / "results.json").read_text())
    case = results["cases"]["attention-only step"]
    if side in case["sides"]:
        ours = case["sides"]["paligemma_jax"]["loss"]
        assert case["sides"][side]["loss"] == pytest.approx(ours, rel=0.05)
        assert case["sides"][side]["seconds"][0]["step"] > 0
    else:
        assert case["left_out"][side] == SIDES[side][1]


def test_every_script_has_a_smoke_test():
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.py")}
    words = [shlex.split(command.words)[0] for command in COMMANDS.values()]
    run = {word.removeprefix("experiments/") for word in words if word.startswith("experiments/")}
    tested = run | STARTED | ELSEWHERE
    assert tested <= files, "these are no files"
    assert files - used_by(tested) == set(), "neither run by a test nor used by what is"


def used_by(scripts: set[str]) -> set[str]:
    """Returns the scripts, and all files without a main function that they import or load."""
    found, new = set(), set(scripts)
    while new:
        found |= new
        new = {file for script in new for file in mentioned(FOLDER / script)} - found
    return found


def mentioned(path: pathlib.Path) -> set[str]:
    """Returns what of its own folder a file imports, or names in a string that is no docstring."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    said = ast.unparse(tree)
    return {
        str(other.relative_to(FOLDER))
        for other in path.parent.glob("*.py")
        if "__main__" not in other.read_text()
        and re.search(rf"^\s*(import|from) {other.stem}\b|\b{other.name}\b", said, re.MULTILINE)
    }
