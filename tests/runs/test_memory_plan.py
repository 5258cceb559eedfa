"""A run's memory and work are known before its weights are read."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from paligemma_jax.assembly import assembly, datasets, model_functions
from paligemma_jax.console import process
from paligemma_jax.data import pipeline
from paligemma_jax.runs import auto_remat, memory_plan, training_log, training_run
from paligemma_jax.settings import load
from paligemma_jax.training import flops, step

FASTER, BETWEEN, SMALLER, SMALLEST = (
    model_functions.FASTER,
    model_functions.BETWEEN,
    model_functions.SMALLER,
    model_functions.SMALLEST,
)


def prepare(config):
    built = assembly.assemble(load.typed(config))
    return built, training_run.plan(built)


@pytest.fixture
def adam(config):
    config.trainable = "llm/.*"
    config.frozen_dtype = "float32"
    config.input.batch_size = 8
    return config


def test_plan_counts_the_arrays_of_the_run_and_compiles_its_step(adam):
    built, planned = prepare(adam)
    found = memory_plan.make(built, planned)
    trainable = planned.optimizer.trainable
    layout = assembly.lay_out(built, planned.base, tuple(trainable))
    state = step.init_state(assembly.load(built, layout), trainable, planned.optimizer.tx)
    assert found.memory.trained == sum(x.nbytes for x in state.trainable.values())
    assert found.memory.frozen == sum(x.nbytes for x in state.frozen.values())
    assert found.memory.optimizer == sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert found.memory.temporary >= found.memory.trained  # gradients
    assert found.memory.logits == 8 * 16 * built.model.vocab_size * 4
    assert found.fits
    spec = datasets.spec(built.settings)
    batches = pipeline.train_batches(
        planned.data.records, built.tokenizer, spec, seed=0, total_steps=2
    )
    with process.counting() as count:
        for number, batch in enumerate(datasets.on_mesh(batches, built.mesh)):
            assert found.memory.batch == sum(x.nbytes for x in batch.values())
            state, metrics = found.train_step(state, batch, number)
    assert int(state.step) == 2
    assert len(jax.tree.leaves(metrics)) == 1  # one array comes to the host
    assert np.isfinite(metrics.to_host()["loss"])
    assert count.programs == 0
    with pytest.raises(TypeError, match="compiled with"):  # not compiled again
        found.train_step(state, {"text": batch["text"]}, 2)


def test_evaluation_has_its_cache_and_the_blocks_once_more(adam):
    built, planned = prepare(adam)
    found = memory_plan.at_least(built, planned)
    one, _ = planned.evaluations[0]
    blocks = sum(
        x.size * 4 for name, x in built.model.shapes().items() if name.startswith("llm/layers/")
    )
    _, cache = jax.eval_shape(
        lambda p, b: built.functions.prefill(p, b, max_new_tokens=one.max_new_tokens),
        built.model.shapes(),
        {
            "image": jax.ShapeDtypeStruct((8, 1, 14, 14, 3), np.uint8),
            "mask_image": jax.ShapeDtypeStruct((8, 1), bool),
            "text": jax.ShapeDtypeStruct((8, one.prompts.text_len), np.int32),
            "mask_ar": jax.ShapeDtypeStruct((8, one.prompts.text_len), bool),
            "mask_input": jax.ShapeDtypeStruct((8, one.prompts.text_len), bool),
        },
    )
    slots = sum(x.size * 4 for x in (*cache.keys, *cache.values))
    assert found.evaluation == blocks + slots + 8 * built.model.vocab_size * 4


def test_every_candidate_of_an_answer_has_a_cache_of_its_own(adam):
    one = memory_plan.at_least(*prepare(adam)).evaluation
    adam.evals.val.update(sampler="beam", beam_size=2)
    two = memory_plan.at_least(*prepare(adam)).evaluation
    adam.evals.val.update(sampler="nucleus", beam_size=4, best_of=3)
    three = memory_plan.at_least(*prepare(adam)).evaluation
    assert three - two == two - one > 0


def test_results_in_the_memory_of_arguments_need_none_of_their_own():
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    kept, donated = (
        memory_plan.temporary_bytes(jax.jit(lambda x: x * 2, **donation).lower(x).compile())
        for donation in ({}, {"donate_argnums": 0})
    )
    assert kept - donated == 4000


@pytest.fixture
def fake_compiler(monkeypatch):
    """Plans without compiling: temporary memory is gradients, and logits of a micro-batch."""

    def make(built, planned):
        memory = memory_plan.at_least(built, planned)
        memory = dataclasses.replace(memory, temporary=memory.temporary + memory.logits)
        return memory_plan.Planned(memory, None, {24: flops.Work(1.0, 1.0, 1.0)}, 1, 8, print, "")

    monkeypatch.setattr(memory_plan, "make", make)
    return make


def test_changes_that_fit_are_found_by_planning_them(adam, fake_compiler):
    built, planned = prepare(adam)
    full = fake_compiler(built, planned)
    limit = full.memory.peak - full.memory.logits * 5 // 8
    changes = auto_remat.find_changes(built, planned, limit=limit)
    # The least accumulation that fits; then the greatest batch.
    assert [change.overrides[0] for change, _ in changes] == [
        "accumulation_steps=4",
        "input.batch_size=2",
    ]
    assert all(memory.peak <= limit for _, memory in changes)
    short = dataclasses.replace(full, limit=limit)
    with pytest.raises(
        ValueError, match=r"(?s)more memory.*accumulation_steps=4.*over_memory=True"
    ):
        auto_remat.require_fit(built, planned, short)


def test_changes_are_taken_together_where_none_is_enough(adam, fake_compiler):
    built, planned = prepare(adam)
    full = fake_compiler(built, planned).memory
    frozen_half = full.frozen // 2
    limit = full.peak - full.logits * 7 // 8 - frozen_half
    [(change, memory)] = auto_remat.find_changes(built, planned, limit=limit)
    smallest = f"remat_policy={SMALLEST}"  # which counts for nothing with this compiler
    assert change.overrides == (smallest, "accumulation_steps=8", "frozen_dtype=bfloat16")
    assert memory.frozen == frozen_half


def test_training_attention_alone_is_among_the_changes_of_a_run_that_trains_all(adam):
    changes = list(auto_remat._candidates(*prepare(adam)))
    assert ("trainable=llm/layers/attn/.*",) in [change.overrides for change in changes]


@pytest.fixture
def plan_with(adam, monkeypatch):
    """Plans an automatic policy on a host of so many bytes; returns what was compiled for it too.

    Products take 10**12 bytes, half of them an MLP's inner ones, beside `least` in any case.
    """
    assert adam.remat_policy == "auto"
    built, planned = prepare(adam)
    least = memory_plan.at_least(built, planned)
    compiled = []

    def make(built, planned):
        compiled.append(built.functions.compute.remat)
        kept = {FASTER: 10**12, BETWEEN: 10**12 // 2, SMALLER: 10**10, SMALLEST: 0}[compiled[-1]]
        memory = dataclasses.replace(least, temporary=least.temporary + kept)
        limit = memory_plan.device_limit()
        return memory_plan.Planned(memory, limit, {24: flops.Work(1.0, 1.0, 1.0)}, 1, 8, print, "")

    def run(limit):
        monkeypatch.setattr(memory_plan, "device_limit", lambda: limit)
        chosen, changed, needed = auto_remat.plan_run(built, planned)
        assert changed.settings == chosen.settings
        return chosen, needed, compiled

    monkeypatch.setattr(memory_plan, "make", make)
    return run


def test_an_automatic_remat_policy_keeps_products_where_half_a_host_holds_them(plan_with):
    chosen, needed, compiled = plan_with(2 * 10**12 + 10**9)
    assert compiled == [FASTER]  # once
    assert chosen.functions.compute.remat == chosen.settings.remat_policy == FASTER
    assert needed.memory.temporary > 10**12
    assert f"remat_policy: {FASTER} (auto: its products fit)" in memory_plan.describe(needed)


def test_an_automatic_remat_policy_keeps_nothing_where_products_leave_no_room(plan_with):
    chosen, needed, compiled = plan_with(2 * 10**12)
    assert compiled == [FASTER, SMALLER]
    assert chosen.functions.compute.remat == chosen.settings.remat_policy == SMALLER
    assert needed.memory.temporary < 10**12
    why = "would need 931.32 GiB, and may take 931.32 GiB of 1862.65 GiB"
    assert f"{SMALLER} (auto: {FASTER} {why})" in memory_plan.describe(needed)


def test_an_automatic_remat_policy_may_take_nine_tenths_of_a_devices_own_memory(
    plan_with, monkeypatch
):
    device = types.SimpleNamespace(platform="gpu")
    monkeypatch.setattr(auto_remat.jax, "local_devices", lambda: [device])
    half = 10**13 // 18
    for limit, policy in (
        (half, SMALLER),
        (half + 10**9, BETWEEN),
        (2 * half, BETWEEN),
        (2 * half + 10**9, FASTER),
    ):
        chosen, _, _ = plan_with(limit)
        assert chosen.settings.remat_policy == policy


def test_an_automatic_remat_policy_keeps_segments_inputs_where_nothing_else_fits(plan_with):
    chosen, _, compiled = plan_with(10**10 + 10**9)
    assert chosen.settings.remat_policy == SMALLER
    chosen, needed, compiled = plan_with(10**10)
    assert compiled[-2:] == [SMALLER, SMALLEST]
    assert chosen.functions.compute.remat == chosen.settings.remat_policy == SMALLEST
    assert needed.fits
    assert f"{SMALLEST} (auto: {SMALLER} would need" in memory_plan.describe(needed)


def test_an_automatic_remat_policy_compiles_once_where_no_memory_is_known(plan_with):
    chosen, needed, compiled = plan_with(None)
    assert compiled == [SMALLER]
    assert chosen.settings.remat_policy == SMALLER
    assert "is not known" in needed.remat


def test_the_least_memory_of_all_processes_counts(monkeypatch):
    own = memory_plan.device_limit()
    monkeypatch.setattr(memory_plan.jax, "process_count", lambda: 3)
    gather = memory_plan.multihost_utils
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.array([x, x - 5, x + 9]))
    assert memory_plan.device_limit() == (own // 2**20 - 5) * 2**20
    monkeypatch.setattr(gather, "process_allgather", lambda x: np.array([x, 0]))
    assert memory_plan.device_limit() is None


def test_what_cannot_fit_is_not_compiled(adam, monkeypatch):
    built, planned = prepare(adam)
    monkeypatch.setattr(memory_plan, "make", None)
    assert auto_remat.find_changes(built, planned, limit=1) == []


def test_run_that_fits_is_let_through(adam):
    built, planned = prepare(adam)
    found = memory_plan.Planned(
        memory=memory_plan.Memory(1, 1, 1, 1, 1, 1),
        limit=5,
        works={24: flops.Work(1e12, 0.0, 0.5e12)},
        num_devices=2,
        batch_size=4,
        train_step=print,
        remat="",
    )
    auto_remat.require_fit(built, planned, found)
    assert not dataclasses.replace(found, limit=4).fits
    assert dataclasses.replace(found, limit=None).fits


def test_mfu_is_model_flops_over_what_all_devices_can_do(monkeypatch):
    found = memory_plan.Planned(
        memory=memory_plan.Memory(1, 1, 1, 1, 1, 1),
        limit=None,
        works={24: flops.Work(1e12, 1e10, 0.5e12)},
        num_devices=2,
        batch_size=4,
        train_step=print,
        remat="",
    )
    texts = dict(supervised=5, text_len=24)
    assert found.mfu(seconds=1.0, **texts) is None  # of a CPU
    monkeypatch.setattr(memory_plan.flops, "peak", lambda _: 10e12)
    assert found.mfu(seconds=2.0, **texts) == pytest.approx(4 * 1.05e12 / (2 * 2 * 10e12))
    assert "MFU 67% at most" in memory_plan.describe(found)


def test_trace_longer_than_the_run_is_refused(adam):
    adam.profile_steps = 5
    with pytest.raises(ValueError, match="profile_steps=5: a trace begins after 2 steps"):
        prepare(adam)


def test_trace_is_written_of_the_steps_asked_for(tmp_path):
    traced = training_log.trace(jax.jit(lambda state, x: (state + x, x)), 1, tmp_path / "profile")
    state = np.float32(0)
    for _ in range(2):
        state, _ = traced(state, 1.0)
    assert not (tmp_path / "profile").exists()
    state, _ = traced(state, 1.0)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert state == 3
