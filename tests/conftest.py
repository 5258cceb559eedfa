"""What every test shares. float32 products are exact here: references were made so."""

import os
import pathlib

# Read when jax and tensorflow are imported, and by the programs that a test starts. What is
# compiled is kept for the next run of the tests.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(__file__).parents[1] / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}.items():
    os.environ.setdefault(name, value)

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_default_matmul_precision", "highest")

# The same examples in every run, and no time limit per example: the machine may be busy.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, max_examples=100
)
hypothesis.settings.load_profile("repeatable")

# Reasons for which a test may skip itself where CI=true. Any other skip is a failure there.
SKIPS_IN_CI = {
    "the allocator is glibc's": "elsewhere than on Linux with glibc there is nothing to measure",
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
