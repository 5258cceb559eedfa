"""What is read from the text of a compiled program: times, loops, bytes between chips."""

import pytest

from paligemma_jax.checks import compiled_cost

CHIP = compiled_cost.Chip(clock_hz=1e9, peak_flops=1e12, bytes_per_s=1e9)
# A layer that gathers 64 bytes and takes 500 cycles, four times; then a loop that data end.
PROGRAM = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%layer (p: (s32[], bf16[4,2])) -> (s32[], bf16[4,2]) {
  %w = bf16[4,2]{1,0} parameter(0)
  %whole = bf16[16,2]{1,0:T(8,128)} all-gather(%w), dimensions={0}
  ROOT %y = (s32[], bf16[4,2]) fusion(%whole), kind=kOutput, calls=%scattered, metadata={op_name="jit(f)/while/body/mlp/dot"}, backend_config={"estimated_cycles":"500"}
}

%is_left (p: (s32[], bf16[4,2])) -> pred[] {
  %bound = s32[] constant(4)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%piece (q: f32[8]) -> f32[8] {
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%q), dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  ROOT %r = f32[8]{0} add(%q, %q), metadata={op_name="jit(f)/loss"}, backend_config={"estimated_cycles":"1000"}
}

%is_any (q: f32[8]) -> pred[] {
  ROOT %any = pred[] compare(%q, %q), direction=GT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %layers = (s32[], bf16[4,2]) while(%x), condition=%is_left, body=%layer
  %chunks = f32[8]{0} while(%x), condition=%is_any, body=%piece, metadata={op_name="jit(f)/chunks"}
  %kernel = f32[250]{0} custom-call(%x, %chunks), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/kernel"}BACKEND
  ROOT %total = f32[8]{0} all-reduce(%chunks), to_apply=%add
}
"""  # noqa: E501
PROGRAM = PROGRAM.replace(
    "%layer (p", "%scattered (s: bf16[16,2]) -> bf16[4,2] {\n}\n\n%layer (p", 1
)


def read(*, backend="", unknown_trips=1):
    text = PROGRAM.replace("BACKEND", backend)
    return compiled_cost.read(text, CHIP, unknown_trips=unknown_trips)


def test_a_loop_counts_as_often_as_it_runs():
    cost = read()
    layers = next(one for one in cost.operations if one.name == "mlp/dot")
    assert (layers.seconds, layers.runs) == (pytest.approx(4 * 500e-9), 4)


def test_a_loop_that_data_end_counts_as_often_as_the_caller_says_and_is_named():
    cost = read(unknown_trips=3)
    assert cost.unknown_loops == ("chunks",)
    assert next(one for one in cost.operations if one.name == "loss").runs == 3


def test_the_costliest_operation_comes_first_and_all_of_them_are_the_total():
    cost = read()
    assert [one.name for one in cost.operations] == ["mlp/dot", "kernel", "loss"]
    assert cost.seconds == pytest.approx(sum(one.seconds for one in cost.operations))


def test_collectives_count_what_they_give_one_chip_and_those_that_start_count_once():
    cost = read(unknown_trips=2)
    assert cost.collective_bytes == {"all-gather": 4 * 64 + 2 * 128, "all-reduce": 32}
    assert cost.collective_counts == {"all-gather": 4 + 2, "all-reduce": 1}


def test_a_collective_that_products_overlap_is_one():
    def step(name: str, more: str = "") -> str:
        gather = "%g = bf16[16,2]{1,0} all-gather(%w), dimensions={0}"
        config = 'backend_config={"async_collective_fusion_config":{}}'
        return f"%{name} (w: bf16[4,2]) -> bf16[16,2] {{\n  {gather}, {config}\n{more}}}\n\n"

    start = '  ROOT %s = (bf16[16,2]) custom-call(%g), custom_call_target="AsyncCollectiveStart"\n'
    steps = step("begin", start) + step("middle") + step("end")
    calls = "".join(
        f"  %{name}.1 = bf16[16,2] fusion(%w), kind=kCustom, calls=%{name}\n"
        for name in ("begin", "middle", "end")
    )
    text = PROGRAM.replace("%layer (p", steps + "%layer (p", 1)
    text = text.replace("  %whole = ", calls + "  %whole = ", 1)
    cost = compiled_cost.read(text.replace("BACKEND", ""), CHIP)
    assert cost.collective_counts["all-gather"] == 4 * 2 + 1


def test_a_kernel_costs_its_bytes_or_its_work_whichever_takes_longer():
    moved = next(one for one in read().operations if one.name == "kernel")
    assert moved.seconds == pytest.approx((1000 + 32 + 32) / 1e9)
    config = ', backend_config={"cost_estimate":{"flops":6000000}}'
    worked = next(one for one in read(backend=config).operations if one.name == "kernel")
    assert worked.seconds == pytest.approx(6e6 / (0.6 * 1e12))


def test_a_program_without_estimates_has_bytes_but_no_time():
    text = "\n".join(line.split(", backend_config")[0] for line in PROGRAM.splitlines())
    text = text.replace("BACKEND", "").replace("tpu_custom_call", "cublas")
    cost = compiled_cost.read(text, CHIP)
    assert cost.seconds is None and cost.collective_bytes["all-reduce"] == 32


def test_what_is_no_program_is_an_error():
    with pytest.raises(ValueError, match="expected the text of a compiled one"):
        compiled_cost.read("module @jit_f {}", CHIP)
