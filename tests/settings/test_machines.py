"""A machine's name says what it is, and every number of it is of its data sheet."""

import pytest

from paligemma_jax.settings import machines
from paligemma_jax.training import flops


@pytest.mark.parametrize(
    ("name", "chip", "count", "topology"),
    [
        ("t4", "NVIDIA T4", 1, "1x1x1"),
        ("t4x2", "NVIDIA T4", 2, "1x1x2"),
        ("rtx4090", "NVIDIA GeForce RTX 4090", 1, "1x1x1"),
        ("rtx4090x4", "NVIDIA GeForce RTX 4090", 4, "1x1x4"),
        ("a100-40gx8", "NVIDIA A100 SXM, 40 GB", 8, "1x1x8"),
        ("h100x8", "NVIDIA H100 SXM", 8, "1x1x8"),
        ("tpu-v5e-1", "TPU v5e", 1, "1x1"),
        ("tpu-v5e-8", "TPU v5e", 8, "2x4"),
        ("tpu-v5e-256", "TPU v5e", 256, "16x16"),
        ("v6e-4", "TPU v6e", 4, "2x2"),
        # These names count cores.
        ("tpu-v5p-8", "TPU v5p", 4, "2x2x1"),
        ("tpu-v5p-32", "TPU v5p", 16, "2x2x4"),
        ("tpu-v4-16", "TPU v4", 8, "2x2x2"),
    ],
)
def test_a_name_is_chips_and_their_number(name, chip, count, topology):
    machine = machines.look_up(name)
    assert (machine.chip.name, machine.count, machine.topology) == (chip, count, topology)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h10", "no such machine. Did you mean 'h100'"),
        ("h100x9", "expected h100, or h100x2 to h100x8"),
        ("h100x", "expected h100, or h100x2 to h100x8"),
        ("tpu-v5e-7", "counts chips; there are tpu-v5e-1, tpu-v5e-4"),
        ("tpu-v5p-4", "counts cores, two a chip; there are tpu-v5p-8, tpu-v5p-16"),
        ("tpu-v5p-9", "counts cores"),
        ("tpu-v9-8", "no such machine"),
    ],
)
def test_a_name_that_is_none_is_an_error_that_lists_those_that_are(name, message):
    with pytest.raises(ValueError, match=message):
        machines.look_up(name)


def test_every_common_name_is_one_with_numbers_that_agree():
    for name in machines.COMMON:
        machine = machines.look_up(name)
        assert machine.name == name
        sides = [int(side) for side in machine.topology.split("x")]
        product = 1
        for side in sides:
            product *= side
        assert product == machine.count
        chip = machine.chip
        assert chip.source
        assert chip.peak_flops["float16"] >= chip.peak_flops["float32"]
        assert chip.has_bfloat16 == (name not in ("t4", "t4x2"))


def test_larger_machines_are_of_the_same_chip():
    names = [machine.name for machine in machines.larger(machines.look_up("h100x2"))]
    assert names == ["h100x4", "h100x8"]
    first = machines.larger(machines.look_up("tpu-v5p-8"))[0]
    assert (first.name, first.count) == ("tpu-v5p-16", 8)
    assert machines.larger(machines.look_up("tpu-v5e-256")) == []


def test_a_machine_is_described_in_words():
    assert machines.look_up("h100x8").describe() == "8 x NVIDIA H100 SXM, 79 GiB each"
    assert machines.look_up("t4").describe() == "NVIDIA T4, 15 GiB"


def test_peaks_are_those_that_mfu_is_counted_by():
    for chip in (*machines.GPUS.values(), *machines.TPUS.values()):
        counted = flops.peak(chip.device_kind)
        own = chip.peak_flops["bfloat16" if chip.has_bfloat16 else "float16"]
        assert counted in (own, None)
    assert flops.peak(machines.TPUS["v5p"].device_kind) == 459e12
