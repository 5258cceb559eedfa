"""Devices of a machine that is not here: as its compiler takes them, or as names and numbers."""

import dataclasses
from typing import Any

from jax.experimental import topologies

from paligemma_jax.settings import machines

# What all GPUs of a compute capability share: bytes of shared memory and threads of a
# multiprocessor, products that it begins in a cycle. Source: CUDA C++ programming guide, table of
# compute capabilities. A block may have all of that memory but 1 KiB, before Ampere all.
MULTIPROCESSORS = {
    "7.5": (64, 1024, 64),
    "8.0": (164, 2048, 64),
    "8.9": (100, 1536, 128),
    "9.0": (228, 2048, 128),
}
KIB = 1024
# As libtpu calls the way in which a v4 chip's two cores are one device, which they are on its VMs.
ONE_DEVICE_A_CHIP = {"v4": "megacore"}
# Of XLA's description of a GPU (xla/stream_executor/device_description.proto).
TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {block}
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: {threads}
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock:g}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Described:
    """A device by name: enough to lay arrays out, not to compile for."""

    id: int
    platform: str
    device_kind: str
    compute_capability: str | None
    process_index: int = 0


def by_name(machine: machines.Machine) -> list[Any]:
    """Returns the devices of a machine as names and numbers."""
    chip = machine.chip
    capability = chip.capability or None
    return [Described(i, chip.platform, chip.device_kind, capability) for i in range(machine.count)]


def for_compiler(machine: machines.Machine) -> list[Any]:
    """Returns the devices of a machine as its compiler, which is in this process, knows them."""
    chip = machine.chip
    if chip.platform == machines.GPU:
        described = topologies.get_topology_desc(
            topology_name="gpu",
            platform="cuda",
            target_config=target(chip),
            topology=machine.topology,
        )
        return list(described.devices)
    more: dict[str, Any] = {}
    if machine.count == 1:
        more["chips_per_host_bounds"] = (1, 1, 1)
    if name := ONE_DEVICE_A_CHIP.get(chip.topology):
        more["chip_config_name"] = name
    topology = f"{chip.topology}:{machine.topology}"
    return list(topologies.get_topology_desc(topology, "tpu", **more).devices)


def target(chip: machines.Chip) -> str:
    """Returns a GPU as XLA's compiler is told of it, a textproto."""
    shared, threads, units = MULTIPROCESSORS[chip.capability]
    major, minor = chip.capability.split(".")
    return TARGET.format(
        block=48 * KIB,
        shared=shared * KIB,
        optin=(shared - (int(major) >= 8)) * KIB,
        threads=threads,
        units=units,
        cores=chip.num_cores,
        bandwidth=int(chip.bytes_per_s),
        cache=chip.cache_bytes,
        clock=chip.clock_hz / 1e9,
        memory=chip.memory_bytes,
        major=major,
        minor=minor,
        name=chip.device_kind,
    )
