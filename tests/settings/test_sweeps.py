"""What sweep(add) of a config file asks for becomes runs with names, settings and places."""

import textwrap

import pytest

from paligemma_jax.settings import load, sweeps

CONFIG = """
import numpy as np
from paligemma_jax.settings import parse_arg, presets

def get_config(arg=""):
    arg = parse_arg(arg, steps=3)
    c = presets.finetune(model="paligemma2-3b", res=224, text_len=32, method="attention")
    c.input.data.fname = "train.jsonl"
    c.total_steps = arg.steps
    return c
"""


@pytest.fixture
def write(tmp_path):
    """Returns a writer of a config file whose sweep has the given lines."""

    def write(lines: str, head: str = "def sweep(add):") -> str:
        path = tmp_path / "config.py"
        path.write_text(f"{CONFIG}\n{head}\n{textwrap.indent(lines, '    ')}\n")
        return str(path)

    return write


def test_each_add_is_a_run_with_its_settings(write):
    path = write("for lr in (0.01, 3):\n    add(lr=lr, **{'input.batch_size': 4})")
    runs = sweeps.read(path, ["wd=0.5", "lr=7"])
    assert [run.name for run in runs] == ["lr=0.01,input.batch_size=4", "lr=3,input.batch_size=4"]
    configs = [load.load(run.source, run.overrides) for run in runs]
    assert [(c.lr, c.input.batch_size, c.wd) for c in configs] == [(0.01, 4, 0.5), (3.0, 4, 0.5)]
    assert runs[0].values == {"lr": 0.01, "input.batch_size": 4}


def test_values_of_numpy_texts_none_and_rules_arrive_as_they_are(write):
    rules = [("llm/.*", 0.5), (".*", 1.0)]
    lines = f"add(lr=np.float64(0.5), trainable='llm/.*', grad_clip_norm=None, lr_mults={rules})"
    (run,) = sweeps.read(write(lines))
    config = load.load(run.source, run.overrides)
    assert (config.lr, config.trainable, config.grad_clip_norm) == (0.5, "llm/.*", None)
    assert config.lr_mults == tuple(rules)


def test_config_arg_stands_in_place_of_the_argument(write):
    path = write("add(lr=1.0)\nadd(config_arg='steps=9')")
    runs = sweeps.read(f"{path}:steps=5")
    assert [load.load(r.source, r.overrides).total_steps for r in runs] == [5, 9]
    assert [run.name for run in runs] == ["lr=1.0", "config_arg=steps=9"]


def test_argument_of_the_config_reaches_a_sweep_that_takes_it(write):
    path = write("add(seed=len(arg))", head="def sweep(add, arg=None):")
    assert [run.name for run in sweeps.read(f"{path}:steps=5")] == ["seed=7"]


def test_names_are_names_of_folders_and_differ(write):
    lines = (
        "add(trainable='llm/.*')\nadd(trainable='llm-.*')\nadd(lr_mults=[('.*', 1.0)] * 20)\nadd()"
    )
    names = [run.name for run in sweeps.read(write(lines.replace("'llm-.*'", "'(llm/.*)'")))]
    assert names[-1] == "base"
    assert len(set(names)) == 4
    assert all(len(name) <= sweeps.MAX_NAME and not set(name) & set("/\\*() '") for name in names)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("pass", r"config.py: sweep\(add\) added no run"),
        ("add(lr=1.0); add(lr=1.0)", r"1 of the 2 runs .*\n  lr=1.0: added twice"),
        ("add(lr=1.0); add(lrr=2.0)", r"lrr=2.0: config key 'lrr' is not known. Did you mean"),
        ("add(lr='high')", r"lr=high: lr=high: expected float, found str"),
        ("add(lr=object())", r"expected numbers, texts, lists, dicts or None"),
        ("add(lr=missing)", r"config.py:\d+: name 'missing' is not defined"),
    ],
)
def test_wrong_sweeps_are_errors_that_name_the_run(write, lines, message):
    with pytest.raises(ValueError, match=message):
        sweeps.read(write(lines))


def test_config_without_a_sweep_is_an_error(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    with pytest.raises(ValueError, match=r"defines no sweep\(add\). Write one"):
        sweeps.read(str(tmp_path / "config.py"))
