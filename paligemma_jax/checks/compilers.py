"""Compilers of machines that are not here: where one is installed, and a program run beside it.

libtpu compiles for TPUs, jax's plugin for CUDA for GPUs; neither needs its chip. Both cannot be in
one process, nor in every environment: each program is a child process, of this interpreter or of
one that PALIGEMMA_JAX_COMPILER_PYTHON names. An environment with jax and the compiler alone will
do: what else is imported comes from this one.
"""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
from typing import Any

from paligemma_jax.settings import machines

PYTHONS = "PALIGEMMA_JAX_COMPILER_PYTHON"
# Platform -> the package that its compiler is in, and the extra that installs it.
PACKAGES = {machines.TPU: ("libtpu", "tpu"), machines.GPU: ("jax_cuda12_plugin", "cuda12")}
TIMEOUT_S = 3600
# Compiling asks nothing of a chip, a metadata server or a lock on the chip.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
GPU_FLAGS = "--xla_gpu_autotune_level=0"  # choosing kernels by trying them needs the GPU
LAST_LINES = 15  # of what a program says that fails

_LOOK = (
    "import importlib.util as u, sys; "
    "print(sys.version_info[:2] == tuple(map(int, sys.argv[2].split('.'))), "
    "u.find_spec(sys.argv[1]) is not None)"
)
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); "
    "import runpy; sys.argv = sys.argv[3:]; runpy.run_module(sys.argv[0], run_name='__main__')"
)


@functools.cache
def find(platform: str) -> str | None:
    """Returns the interpreter that has the compiler of a platform; None: none of them has.

    Raises:
      ValueError: one that PALIGEMMA_JAX_COMPILER_PYTHON names and that is none.
    """
    package, _ = PACKAGES[platform]
    if importlib.util.find_spec(package) is not None:
        return sys.executable
    version = ".".join(map(str, sys.version_info[:2]))
    for python in filter(None, os.environ.get(PYTHONS, "").split(os.pathsep)):
        try:
            answer = subprocess.run(
                [python, "-c", _LOOK, package, version], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise ValueError(
                f"{PYTHONS}: {python} does not run ({error}): expected the path of a Python "
                f"{version}, several joined by '{os.pathsep}'"
            ) from error
        is_same, has_package = answer.stdout.split()
        if has_package == "True" and is_same == "True":
            return python
    return None


def how_to_install(platform: str) -> str:
    """Returns what to do for a compiler that is missing."""
    _, extra = PACKAGES[platform]
    return (
        f"pip install 'paligemma_jax[{extra}]' here, or in another environment of this Python "
        f"whose interpreter {PYTHONS} names"
    )


def run(python: str, module: str, request: Any) -> Any:
    """Returns what a module answers to a request, both JSON, run by an interpreter with a compiler.

    The module is called with the paths of the request and of the answer to write.

    Raises:
      RuntimeError: it failed; with the end of what it said.
    """
    root = pathlib.Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = (pathlib.Path(folder) / name for name in ("asked.json", "answer.json"))
        asked.write_text(json.dumps(request))
        command = [python, "-c", _START, str(root), sysconfig.get_path("purelib"), module]
        flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), GPU_FLAGS)))
        done = subprocess.run(
            [*command, str(asked), str(answered)],
            env={**os.environ, **ENVIRONMENT, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if done.returncode or not answered.exists():
            end = "\n".join(done.stderr.splitlines()[-LAST_LINES:])
            raise RuntimeError(f"the compiler's process ended with {done.returncode}:\n{end}")
        return json.loads(answered.read_text())
