"""A run is planned for machines that are not here: from shapes, or by their own compilers."""

import dataclasses
import json
import sys

import jax
import pytest

from paligemma_jax.checks import (
    by_shapes,
    checking,
    compilers,
    described_devices,
    device_plan,
    devices,
)
from paligemma_jax.runs import memory_plan
from paligemma_jax.settings import load, machines


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setattr(compilers, "find", lambda _: None)


@pytest.fixture
def tiny(monkeypatch):
    """A machine of eight chips that have as many bytes as is said; returns how to say it."""

    def make(limit: int, count: int = 8) -> machines.Machine:
        chip = dataclasses.replace(machines.TPUS["v5e"], memory_bytes=limit)
        machine = machines.Machine("tiny", chip, count, "2x4")
        monkeypatch.setattr(machines, "look_up", lambda _: machine)
        monkeypatch.setattr(machines, "larger", lambda _: [])
        return machine

    return make


@pytest.mark.slow
def test_a_plan_from_shapes_has_the_bytes_of_the_real_arrays_in_eight_parts(config, tiny):
    config.sharding_strategy = [(".*", "fsdp(axis='data', min_size_to_shard_mb=0)")]
    config.input.batch_size, config.compute_dtype = 8, "auto"
    settings = load.typed(config)
    plan = device_plan.by_name(settings, tiny(2**30))
    alone = device_plan.by_name(settings, dataclasses.replace(tiny(2**30), count=1))
    assert not plan.is_compiled and plan.fits
    # Scales and biases of odd lengths stay whole.
    assert alone.memory.trained / 8 <= plan.memory.trained < alone.memory.trained / 7
    assert plan.memory.batch * 8 == alone.memory.batch
    assert plan.model_flops * 8 == pytest.approx(alone.model_flops)
    assert alone.collective_bytes == {}
    gathered, reduced = (plan.collective_bytes[k] for k in ("all-gather", "reduce-scatter"))
    assert gathered == reduced  # twice in bfloat16, once in float32


def test_a_batch_that_the_chips_cannot_share_is_raised_and_that_is_said(config, tiny, no_compiler):
    tiny(2**30)
    section, problems = devices.look(load.typed(config), "tiny")
    assert problems == []
    facts = dict(next(part for part in section.parts if hasattr(part, "pairs")).pairs)
    assert facts["batch"] == "8 examples (input.batch_size=2, raised: its chips share a batch)"
    assert facts["planned"].startswith("from shapes, an estimate: libtpu is not installed")
    assert facts["computes in"] == "float32"
    assert "examples/s" in facts["step"]


@pytest.mark.slow
def test_changes_that_are_offered_fit_by_the_same_plan(config, tiny, no_compiler):
    config.trainable, config.input.batch_size, config.remat_policy = "llm/.*", 8, "none"
    machine = tiny(2**30, count=1)
    full = device_plan.by_name(load.typed(config), machine).memory.peak
    limit = full - 1000
    machine = tiny(limit, count=1)
    section, [problem] = devices.look(load.typed(config), "tiny")
    assert (problem.severity, problem.kind) == ("error", "does not fit")
    plan = device_plan.by_name(load.typed(config), machine)
    assert plan.changes
    for overrides, peak, _ in plan.changes:
        assert f"--config.{overrides[0]}" in problem.remedy
        changed = load.change(load.typed(config), overrides)
        again = device_plan.by_name(changed, machine)
        assert again.fits and again.memory.peak == peak
    table = next(
        part for part in section.parts if getattr(part, "title", "") == "what makes it fit"
    )
    assert len(table.rows) == len(plan.changes)


def test_the_largest_batch_fits_and_twice_as_much_does_not(config, tiny):
    settings = load.typed(config)
    eight = load.change(settings, ["input.batch_size=64", "remat_policy=segment_inputs_saveable"])
    limit = device_plan.by_name(eight, tiny(2**40)).memory.peak + 1
    machine = tiny(limit)
    assert devices.largest_batch(settings, machine, limit) == 64
    assert devices.largest_batch(settings, machine, 1) == 0


def test_all_machines_are_a_table(config, monkeypatch):
    monkeypatch.setattr(machines, "COMMON", ("t4", "h100x8"))
    settings = load.typed(config)
    section, problems = devices.look(settings, "all")
    assert not problems
    _, table, bars = section.parts
    assert [row[:3] for row in table.rows] == [("t4", "1", "yes"), ("h100x8", "8", "yes")]
    assert [bar.label for bar in bars.bars] == ["t4", "h100x8"]


def test_what_training_would_refuse_is_an_error(config, no_compiler):
    config.model.llm.attention, config.input.text_len = "cudnn", 23
    _, [problem] = devices.look(load.typed(config), "tpu-v5e-1")
    assert "it needs an NVIDIA GPU, found TPU v5 lite" in problem.what


def test_a_device_is_checked_without_data_and_with_nothing_that_looks_at_it(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from paligemma_jax.settings import presets\n"
        "def get_config(arg):\n"
        "    dims = dict(width=8, depth=1, mlp_dim=8, num_heads=1)\n"
        "    llm = dict(**dims, num_kv_heads=1, head_dim=8)\n"
        "    c = presets.from_scratch(res=14, text_len=24, img=dims, llm=llm)\n"
        "    c.input.data.fname, c.tokenizer, c.total_steps = 'nowhere.jsonl', 'none', 2\n"
        "    return c\n"
    )
    options = checking.CheckOptions(config=str(path), device="rtx4090")
    report = checking.check(options)
    assert report.num_errors == 0
    assert "NVIDIA GeForce RTX 4090" in checking.to_text(report)
    with pytest.raises(ValueError, match="not at data: leave out --full"):
        checking.check(dataclasses.replace(options, full=True))
    with pytest.raises(ValueError, match="belong to a --config FILE"):
        checking.check(checking.CheckOptions(device="t4"))


def test_a_plan_survives_the_way_between_processes(config, tiny):
    plan = device_plan.by_name(load.typed(config), tiny(2**30))
    plan = dataclasses.replace(
        plan, operations=(("dot", 0.5),), changes=((("remat_policy=none",), 7, "free"),)
    )
    assert device_plan.from_json(json.loads(json.dumps(device_plan.to_json(plan)))) == plan


def test_interpreters_that_are_named_are_asked_for_the_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(compilers, "PACKAGES", {"here": ("json", ""), "nowhere": ("no_such", "x")})
    monkeypatch.setenv(compilers.PYTHONS, sys.executable)
    find = compilers.find.__wrapped__
    assert find("here") == sys.executable
    assert find("nowhere") is None
    monkeypatch.setenv(compilers.PYTHONS, str(tmp_path / "python"))
    with pytest.raises(ValueError, match=r"COMPILER_PYTHON: .* does not run"):
        find("nowhere")


def test_a_compilers_process_answers_or_its_last_lines_are_the_error(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*KeyError: 'settings'"):
        compilers.run(sys.executable, device_plan.MODULE, {})


def test_a_gpu_is_described_by_its_data_sheet():
    text = described_devices.target(machines.GPUS["t4"])
    assert "cuda_compute_capability { major: 7 minor: 5 }" in text
    assert "shared_memory_per_block_optin: 65536" in text
    assert "core_count: 40" in text
    hopper = described_devices.target(machines.GPUS["h100"])
    assert "shared_memory_per_block_optin: 232448" in hopper
    assert "memory_bandwidth: 3352000000000" in hopper


def test_a_step_that_its_compiler_refuses_for_want_of_memory_is_planned_all_the_same():
    class Lowered:
        def __init__(self, text):
            self.text = text

        def compile(self):
            raise jax.errors.JaxRuntimeError(self.text)

    refusal = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    refusal += "temporaries (180.50G) exceeds available HBM (15.75G)."
    assert memory_plan._compile(Lowered(refusal)) == (None, int(180.5 * 2**30))
    with pytest.raises(jax.errors.JaxRuntimeError):
        memory_plan._compile(Lowered("INTERNAL: something else (3.00G)"))


def test_what_the_backward_pass_keeps_grows_with_the_policy(config, tiny):
    machine = tiny(2**40, count=1)
    config.model.llm.dims = {**config.model.llm.dims, "depth": 4}
    config.model.img.dims = {**config.model.img.dims, "depth": 4}
    sizes = {}
    for policy in ("nothing_saveable", "dots_with_no_batch_dims_saveable", "none"):
        config.remat_policy = policy
        built, planned = device_plan.assemble(
            load.typed(config), described_devices.by_name(machine)
        )
        sizes[policy] = by_shapes.make(built, planned).memory.temporary
    assert list(sizes.values()) == sorted(set(sizes.values())), sizes
