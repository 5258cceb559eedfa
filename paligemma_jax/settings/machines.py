"""Machines with accelerators, by name: what their data sheets say. No name here needs the machine.

A name is a chip and how many of them: `h100`, `h100x8`, `tpu-v5e-64`. On TPU v4 and v5p the number
counts cores, two a chip, as their own names do: `tpu-v5p-32` has 16 chips.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from paligemma_jax.wording import phrases

GIB = 2**30
MAX_ON_HOST = 8  # GPUs
# What XLA takes of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise (jax's docs on GPU
# memory). Of a TPU it takes what `memory_bytes` holds: its compiler names that number.
GPU_SHARE = 0.75
BFLOAT16_CAPABILITY = 8.0  # of the first NVIDIA GPUs with units for bfloat16: Ampere
GPU, TPU = "gpu", "tpu"
TYPES: tuple[str, ...] = ("bfloat16", "float16", "float32")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What jax counts as one device.

    Attributes:
      name: as people say it.
      platform: "gpu" or "tpu".
      device_kind: as jax names it.
      memory_bytes: that programs can have at most.
      peak_flops: type -> dense FLOP/s of matrix products with operands of it. float32 is what jax
        computes by default: TF32 where there is that, one pass in bfloat16 on TPUs.
      bytes_per_s: of its memory.
      link_bytes_per_s: to other chips, in one direction, all links together.
      clock_hz: highest clock.
      source: of these numbers.
      capability: compute capability of a GPU, "" of a TPU.
      num_cores: streaming multiprocessors of a GPU; cores that a TPU's name counts for a chip.
      cache_bytes: level 2 of a GPU.
      topology: what libtpu calls the kind, "" of a GPU.
    """

    name: str
    platform: str
    device_kind: str
    memory_bytes: int
    peak_flops: Mapping[str, float]
    bytes_per_s: float
    link_bytes_per_s: float
    clock_hz: float
    source: str
    capability: str = ""
    num_cores: int = 1
    cache_bytes: int = 0
    topology: str = ""

    @property
    def has_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16 in units of its own."""
        return self.platform == TPU or float(self.capability) >= BFLOAT16_CAPABILITY


@dataclasses.dataclass(frozen=True)
class Machine:
    """So many chips under one name.

    Attributes:
      name: as --device takes it.
      chip: each of them.
      count: how many.
      topology: how they are wired: "2x4", "2x2x4"; of GPUs "1x1x8": slices, hosts, GPUs.
    """

    name: str
    chip: Chip
    count: int
    topology: str

    def describe(self) -> str:
        """Returns "8 x NVIDIA H100 SXM, 79 GiB each"."""
        times = f"{self.count} x " if self.count > 1 else ""
        each = " each" if self.count > 1 else ""
        return f"{times}{self.chip.name}, {self.chip.memory_bytes / GIB:.0f} GiB{each}"


def _gpu(name: str, kind: str, memory: int, peak: tuple[float, float, float], **rest: Any) -> Chip:
    """Returns a GPU; `peak`: TFLOP/s in bfloat16, float16, float32."""
    peak_flops = {dtype: value * 1e12 for dtype, value in zip(TYPES, peak, strict=True)}
    return Chip(name, GPU, kind, memory, peak_flops, **rest)


def _tpu(name: str, kind: str, memory_gib: float, peak: float, **rest: Any) -> Chip:
    peak_flops = dict.fromkeys(TYPES, peak * 1e12)
    return Chip(name, TPU, kind, int(memory_gib * GIB), peak_flops, **rest)


# Sources: NVIDIA's data sheets and white papers, without sparsity; memory as the driver shows it,
# which is less than the sheet's round number. A product in bfloat16 on a card that has no units for
# it is computed in float32. Links: NVLink, or PCIe where there is none.
GPUS = {
    "t4": _gpu(
        "NVIDIA T4",
        "Tesla T4",
        15_843_721_216,
        (8.1, 65.0, 8.1),
        bytes_per_s=320e9,
        link_bytes_per_s=16e9,
        clock_hz=1.59e9,
        capability="7.5",
        num_cores=40,
        cache_bytes=4 * 2**20,
        source="NVIDIA T4 data sheet; Turing architecture white paper",
    ),
    "l4": _gpu(
        "NVIDIA L4",
        "NVIDIA L4",
        23_609_475_072,
        (121.0, 121.0, 60.0),
        bytes_per_s=300e9,
        link_bytes_per_s=32e9,
        clock_hz=2.04e9,
        capability="8.9",
        num_cores=58,
        cache_bytes=48 * 2**20,
        source="NVIDIA L4 data sheet; Ada architecture white paper",
    ),
    "rtx4090": _gpu(
        "NVIDIA GeForce RTX 4090",
        "NVIDIA GeForce RTX 4090",
        25_393_692_672,
        (165.2, 165.2, 82.6),
        bytes_per_s=1008e9,
        link_bytes_per_s=32e9,
        clock_hz=2.52e9,
        capability="8.9",
        num_cores=128,
        cache_bytes=72 * 2**20,
        source="NVIDIA Ada GPU architecture white paper, table of the RTX 4090",
    ),
    "a100-40g": _gpu(
        "NVIDIA A100 SXM, 40 GB",
        "NVIDIA A100-SXM4-40GB",
        42_297_786_368,
        (312.0, 312.0, 156.0),
        bytes_per_s=1555e9,
        link_bytes_per_s=300e9,
        clock_hz=1.41e9,
        capability="8.0",
        num_cores=108,
        cache_bytes=40 * 2**20,
        source="NVIDIA A100 data sheet; Ampere architecture white paper",
    ),
    "h100": _gpu(
        "NVIDIA H100 SXM",
        "NVIDIA H100 80GB HBM3",
        84_978_434_048,
        (989.0, 989.0, 495.0),
        bytes_per_s=3352e9,
        link_bytes_per_s=450e9,
        clock_hz=1.98e9,
        capability="9.0",
        num_cores=132,
        cache_bytes=50 * 2**20,
        source="NVIDIA H100 data sheet; Hopper architecture white paper",
    ),
}
# The same chips with more memory, and a faster one.
GPUS["a100-80g"] = dataclasses.replace(
    GPUS["a100-40g"],
    name="NVIDIA A100 SXM, 80 GB",
    device_kind="NVIDIA A100-SXM4-80GB",
    memory_bytes=84_974_239_744,
    bytes_per_s=2039e9,
)
GPUS["h200"] = dataclasses.replace(
    GPUS["h100"],
    name="NVIDIA H200 SXM",
    device_kind="NVIDIA H200",
    memory_bytes=139 * GIB,
    bytes_per_s=4800e9,
    source="NVIDIA H200 data sheet",
)
# Sources: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); memory that a program can have and the
# clock as libtpu's compiler has them.
TPUS = {
    "v5e": _tpu(
        "TPU v5e",
        "TPU v5 lite",
        15.75,
        197.0,
        bytes_per_s=819e9,
        link_bytes_per_s=200e9,
        clock_hz=1.5e9,
        topology="v5e",
        source="cloud.google.com/tpu/docs/v5e",
    ),
    "v6e": _tpu(
        "TPU v6e",
        "TPU v6 lite",
        31.25,
        918.0,
        bytes_per_s=1640e9,
        link_bytes_per_s=400e9,
        clock_hz=1.75e9,
        topology="v6e",
        source="cloud.google.com/tpu/docs/v6e",
    ),
    "v5p": _tpu(
        "TPU v5p",
        "TPU v5",
        95.74,
        459.0,
        bytes_per_s=2765e9,
        link_bytes_per_s=600e9,
        clock_hz=1.75e9,
        topology="v5p",
        num_cores=2,
        source="cloud.google.com/tpu/docs/v5p",
    ),
    "v4": _tpu(
        "TPU v4",
        "TPU v4",
        30.75,
        275.0,
        bytes_per_s=1228e9,
        link_bytes_per_s=300e9,
        clock_hz=1.05e9,
        topology="v4",
        num_cores=2,
        source="cloud.google.com/tpu/docs/v4",
    ),
}
# Chips -> how they are wired: a square or half of one, a cube or half or a quarter of one.
FLAT = {
    **{1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"},
    **{128: "8x16", 256: "16x16"},
}
DEEP = {
    **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"},
    **{128: "4x4x8", 256: "4x8x8", 512: "8x8x8"},
}
# What --device all asks about: those that people rent most, the smallest first.
COMMON = (
    *("t4", "t4x2", "l4", "rtx4090", "a100-40g", "a100-80g", "h100", "h200"),
    *("l4x8", "a100-40gx8", "a100-80gx8", "h100x8", "h200x8"),
    *("tpu-v5e-1", "tpu-v5e-4", "tpu-v5e-8", "tpu-v5e-64", "tpu-v5e-256"),
    *("tpu-v6e-1", "tpu-v6e-4", "tpu-v6e-8", "tpu-v6e-64", "tpu-v4-8", "tpu-v4-32"),
    *("tpu-v5p-8", "tpu-v5p-16", "tpu-v5p-32"),
)


def look_up(name: str) -> Machine:
    """Returns a machine by its name.

    Raises:
      ValueError: an unknown name, or a number of chips that there is not; the message lists these.
    """
    match = re.fullmatch(r"(?:tpu-)?(v\d\w*)-(\d+)", name)
    if match and match[1] in TPUS:
        return _slice(f"tpu-{match[1]}-{match[2]}", TPUS[match[1]], int(match[2]))
    if name in GPUS:
        return Machine(name, GPUS[name], 1, "1x1x1")
    gpu, _, number = name.rpartition("x")
    if gpu in GPUS:
        if number in map(str, range(2, MAX_ON_HOST + 1)):
            return Machine(name, GPUS[gpu], int(number), f"1x1x{number}")
        raise ValueError(f"--device {name}: expected {gpu}, or {gpu}x2 to {gpu}x{MAX_ON_HOST}")
    hint = phrases.did_you_mean(name, COMMON)
    raise ValueError(
        f"--device {name}: no such machine. {hint}Known: all, {', '.join(COMMON)}, and other "
        f"numbers of the same chips"
    )


def larger(machine: Machine) -> list[Machine]:
    """Returns machines of more of the same chips, the smallest first."""
    chip = machine.chip
    if chip.platform == GPU:
        base = next(name for name, one in GPUS.items() if one is chip)
        counts = [n for n in (2, 4, 8) if n > machine.count]
        return [look_up(f"{base}x{n}") for n in counts]
    counts = [n for n in _wirings(chip) if n > machine.count]
    return [look_up(f"tpu-{chip.topology}-{n * chip.num_cores}") for n in counts]


def _wirings(chip: Chip) -> dict[int, str]:
    return DEEP if chip.num_cores > 1 else FLAT


def _slice(name: str, chip: Chip, number: int) -> Machine:
    """Returns a slice of a TPU pod; `number`: as in its name."""
    wirings = _wirings(chip)
    count, rest = divmod(number, chip.num_cores)
    if rest or count not in wirings:
        known = ", ".join(f"tpu-{chip.topology}-{n * chip.num_cores}" for n in wirings)
        counted = "cores, two a chip" if chip.num_cores > 1 else "chips"
        raise ValueError(f"--device {name}: its number counts {counted}; there are {known}")
    return Machine(name, chip, count, wirings[count])
