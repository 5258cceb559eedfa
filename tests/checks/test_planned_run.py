"""The check says what the settings ask for and cannot have."""

from paligemma_jax.checks import planned_run
from paligemma_jax.runs import auto_remat, memory_plan
from paligemma_jax.settings import load
from paligemma_jax.training import flops


def test_a_kernel_that_the_machine_lacks_is_an_error(config):
    config.model.img.attention = "cudnn"
    _, found, _ = planned_run.look(load.typed(config), None, examples=[])
    assert "model.img.attention='cudnn': it needs an NVIDIA GPU, found cpu; or use 'xla'" in [
        finding.what for finding in found if finding.severity == "error"
    ]


def fake_plan(monkeypatch, *, limit):
    """Plans without compiling; returns the assemblies that were planned."""
    planned_for = []

    def make(built, planned):
        planned_for.append(built)
        memory = memory_plan.at_least(built, planned)
        return memory_plan.Planned(memory, limit, {24: flops.Work(1.0, 1.0, 1.0)}, 1, 2, print, "")

    monkeypatch.setattr(memory_plan, "make", make)
    return planned_for


def test_plan_of_weights_that_are_not_here_takes_the_type_that_their_name_tells(
    config, monkeypatch
):
    planned_for = fake_plan(monkeypatch, limit=None)
    config.model_init = "somewhere/weights.f16.npz"
    config.trainable = "llm/.*"
    section, found = planned_run.look_at_memory(load.typed(config))
    assert not found
    assert dict(section.parts[0].pairs).keys() >= {"peak", "work of a step"}
    assert planned_for[0].settings.frozen_dtype == "bfloat16"
    assert config.model_init == "somewhere/weights.f16.npz"


def test_run_that_does_not_fit_is_an_error_with_what_would(config, monkeypatch):
    planned_for = fake_plan(monkeypatch, limit=1)
    fits = memory_plan.Memory(1, 1, 1, 1, 1, 1)
    change = auto_remat.Change(("accumulation_steps=2",), "same result")
    monkeypatch.setattr(auto_remat, "find_changes", lambda *_, **__: [(change, fits)])
    _, [found] = planned_run.look_at_memory(load.typed(config))
    assert found.severity == "error"
    assert "has 1 B" in found.what
    assert "--config.accumulation_steps=2 (then the peak is 5 B; same result)" in found.remedy
    assert len(planned_for) == 1


def test_settings_that_training_does_not_plan_are_an_error(config):
    config.profile_steps = 100
    section, [error] = planned_run.look_at_memory(load.typed(config))
    assert error.severity == "error" and "profile_steps=100" in error.what
    assert section.parts[0].pairs == (("not planned", "mend the errors first"),)
