"""What is missing on a machine is said with what to do."""

import importlib.metadata

import pytest

from paligemma_jax.assembly import weights
from paligemma_jax.checks import environment
from paligemma_jax.hub import sites

KEYS = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "GOOGLE_APPLICATION_CREDENTIALS", "BV_GEMMA_DIR")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with no GPU, no keys and nothing fetched; returns a setter of its GPUs."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sites, "has_credentials", lambda: {"kaggle": False, "hf": False})

    def set_gpus(*names):
        script = tmp_path / "nvidia-smi"
        script.write_text("#!/bin/sh\n" + "".join(f"echo '{name}'\n" for name in names))
        script.chmod(0o755)
        monkeypatch.setattr(environment, "NVIDIA_SMI", (str(script),))

    monkeypatch.setattr(environment, "NVIDIA_SMI", (str(tmp_path / "nothing"),))
    return set_gpus


def by_kind(found):
    return {one.kind: one for one in found}


def test_packages_are_those_that_the_project_asks_for_with_their_tested_versions():
    found = {package.name: package for package in environment.find_packages()}
    asked = importlib.metadata.requires(environment.PROJECT)
    assert {"jax", "flax", "numpy"} <= found.keys() and "pytest" not in found
    assert f"jax{found['jax'].needed}" in asked
    assert all(package.tested for package in found.values())


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ("0.10.2", None),
        ("0.10.1", None),
        ("0.11.0", ("note", "jax 0.11.0 is newer than the tested 0.10.2")),
        ("0.9.9", ("error", "jax 0.9.9 is too old, >=0.10 is needed")),
        (None, ("error", "jax is not installed, jax>=0.10 is needed")),
    ],
)
def test_versions_outside_the_tested_range_are_said(installed, expected):
    assert environment.Package("jax", installed, ">=0.10", "0.10.2").problem() == expected


def test_a_gpu_that_jax_does_not_use_is_an_error_said_loudly(machine):
    machine("NVIDIA T4, 15360 MiB, 550.54")
    _, found = environment.look([])
    problem = by_kind(found)["GPU not used"]
    assert problem.severity == "error" and "THE GPU IS NOT USED" in problem.what
    assert "NVIDIA T4" in problem.what and "[cuda12]" in problem.remedy


def test_a_gpu_hidden_on_purpose_is_a_warning_that_names_the_variable(machine, monkeypatch):
    machine("NVIDIA T4, 15360 MiB, 550.54")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    problem = by_kind(environment.look([])[1])["GPU not used"]
    assert problem.severity == "warning" and "JAX_PLATFORMS='cpu'" in problem.remedy


def test_a_machine_without_a_gpu_is_a_note(machine):
    assert by_kind(environment.look([])[1])["on the CPU"].severity == "note"


def test_a_device_that_jax_cannot_start_is_an_error(machine, monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(weights, "describe_devices", fail)
    problem = by_kind(environment.look([])[1])["jax finds no device"]
    assert problem.severity == "error" and problem.what == "Unable to initialize backend 'cuda'"


@pytest.mark.parametrize(
    ("source", "severity", "pages"),
    [
        ("pt_224.f16", "error", ["kaggle.com/settings", "huggingface.co/settings/tokens"]),
        ("kaggle://google/paligemma/jax/mine/1/a.npz", "warning", ["kaggle.com/settings"]),
        ("hf://mine/model/a.npz", "warning", ["huggingface.co/settings/tokens"]),
        ("gs://mine/a.npz", "note", ["gcloud auth application-default login"]),
    ],
)
def test_a_missing_key_is_named_with_the_page_where_it_is_made(machine, source, severity, pages):
    _, found = environment.look([source])
    problem = by_kind(found)["key missing"]
    assert (problem.severity, problem.subject) == (severity, source)
    assert all(page in problem.remedy for page in pages)


@pytest.mark.parametrize(
    "source", ["gs://big_vision/paligemma_tokenizer.model", "https://host/a.npz"]
)
def test_what_needs_no_key_asks_for_none(machine, source):
    assert "key missing" not in by_kind(environment.look([source])[1])


def test_one_of_two_keys_is_enough(machine, monkeypatch):
    monkeypatch.setattr(sites, "has_credentials", lambda: {"kaggle": False, "hf": True})
    assert "key missing" not in by_kind(environment.look(["pt_224.f16"])[1])


def test_a_file_that_is_here_needs_no_key_and_a_path_that_is_not_is_an_error(machine, tmp_path):
    (tmp_path / "a.npz").touch()
    here, gone = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    section, found = environment.look([here, gone])
    assert (here, f"here: {here}") in section.parts[0].pairs
    assert [one.subject for one in found if one.kind == "no such file"] == [gone]
    assert (gone, "not found") in section.parts[0].pairs
