"""What every test shares; and two images, a tokenizer, and the settings of a tiny run on them.

float32 products are exact here: references were made so.
"""

import json
import os
import pathlib

# Read when jax and tensorflow are imported, and by the programs that a test starts. What is
# compiled is kept for the next run of the tests, and compiled in haste: most programs run once.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}.items():
    os.environ.setdefault(name, value)

import hypothesis
import jax
import numpy as np
import pytest
from PIL import Image

from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.settings import presets

say.show_on_stderr()  # as every door does: rooms are tested without one
jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run, and no time limit per example: the machine may be busy.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=100
)
hypothesis.settings.load_profile("repeatable")

# Reasons for which a test may skip itself where CI=true. Any other skip is a failure there.
SKIPS_IN_CI = {
    "the allocator is glibc's": "elsewhere than on Linux with glibc there is nothing to measure",
    "compares with a checkout": "big_vision comes from no package index; its numbers are stored",
    "npm is not installed": "Gemma's vocabulary is in an npm package",
    "node is not installed": "a program of the system, not of Python",
    "chromium and chromedriver are not installed": "programs of the system, not of Python",
}


class KnownSkips:
    """A plugin: where CI=true, a skip for a reason that SKIPS_IN_CI does not list is a failure."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self):
        return self.judge((yield))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_make_collect_report(self):
        return self.judge((yield))

    @staticmethod
    def judge(report):
        is_skip = report.skipped and not hasattr(report, "wasxfail")
        if is_skip and os.environ.get("CI") == "true":
            _, _, message = report.longrepr
            reason = message.removeprefix("Skipped: ")
            if reason not in SKIPS_IN_CI:
                report.outcome = "failed"
                report.longrepr = (
                    f"{report.nodeid} skips itself in CI: {reason}. Let it run there: make "
                    "test-slow installs the oracles. Or list the reason: SKIPS_IN_CI in "
                    "tests/conftest.py."
                )
        return report


def pytest_configure(config):
    config.pluginmanager.register(KnownSkips(), "known_skips")


REFERENCE = pathlib.Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def reference_folder() -> pathlib.Path:
    return REFERENCE


@pytest.fixture(scope="session")
def reference_arrays():
    """Returns a loader of `tests/reference/{name}.npz`: arrays by name."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(REFERENCE / f"{name}.npz") as file:
            return dict(file)

    return load


@pytest.fixture(scope="session")
def load_reference(reference_arrays):
    """Returns a loader of `tests/reference/{name}.npz`: (params, inputs, outputs)."""

    def load(name: str) -> tuple[dict, dict, dict]:
        arrays = reference_arrays(name)

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

        return part("params/"), part("in/"), part("out/")

    return load


SUFFIX = "<loc0100><loc0200><loc0500><loc0600> cat"


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A folder with train.jsonl, two.jsonl (two images in its second row) and eos.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    rows = [
        {"image": name, "prefix": "detect cat", "suffix": SUFFIX} for name in ("a.png", "b.png")
    ]
    two = [rows[0], rows[1] | {"image": ["a.png", "b.png"]}]
    eos = [row | {"prefix": "<bos>detect cat\n", "suffix": f"{SUFFIX}<eos>"} for row in rows]
    for name, written in {"train": rows, "two": two, "eos": eos}.items():
        text = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{name}.jsonl").write_text(text)
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    return folder


@pytest.fixture
def config(data_folder):
    """Settings of a run on that data, with one evaluation."""
    dims = dict(width=8, depth=1, mlp_dim=8, num_heads=1)
    config = presets.from_scratch(
        res=14, text_len=24, img=dims, llm={**dims, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{data_folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{data_folder}/tokenizer.model"
    config.total_steps = 2
    config.evals.val = dict(fname=f"{data_folder}/train.jsonl")
    return config
