"""Checksums of weights: of arrays where they live, and of files without reading their arrays.

Both guard against accidents (a bit on the disk, a file cut off, memory that was used again too
early, another file under the same name), not against malice.
"""

import hashlib
import json
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from paligemma_jax.checkpoints import npz_members

# Primes of xxHash, to spread consecutive numbers over all bits.
FACTORS = ((0x9E3779B1, 0x85EBCA77), (0xC2B2AE3D, 0x27D4EB2F))
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def of_arrays(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """Returns 16 hexadecimal digits for each array: equal for equal bits, however it is sharded.

    The elements' bits are summed as integers modulo 2^32, each times an odd factor made from its
    index, twice with different factors. Such sums do not depend on their order, so each device sums
    the part that it has, and no array moves. One element that differs always changes both sums,
    because an odd factor has an inverse; several go unnoticed once in 2^63 or so.

    All processes that hold parts of the arrays call this together.

    Raises:
      ValueError: elements of other than 1, 2 or 4 bytes.
    """
    parts = jax.device_get({name: _sums_of_parts(array) for name, array in arrays.items()})
    sums = np.zeros((len(arrays), 2), np.uint32)
    for row, name in enumerate(arrays):
        for part in parts[name]:
            sums[row] += part
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return {name: f"{a:08x}{b:08x}" for name, (a, b) in zip(arrays, sums.tolist(), strict=True)}


def _sums_of_parts(array: jax.Array) -> list[jax.Array]:
    """Returns the sums over each part that this process has; of copies, the first counts."""
    if array.dtype.itemsize not in WORDS:
        raise ValueError(f"a digest of {array.dtype}: expected elements of 1, 2 or 4 bytes")
    strides = np.cumprod([1, *array.shape[:0:-1]], dtype=np.uint64)[::-1].astype(np.uint32)
    return [
        _sums(_fetch(shard.data), np.array([s.start or 0 for s in shard.index], np.uint32), strides)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]


def _fetch(part: jax.Array) -> jax.Array:
    """Returns a part on its device, if it lies in the memory of the host."""
    device = next(iter(part.devices()))
    kept = part.sharding.memory_kind == device.default_memory().kind
    return part if kept else jax.device_put(part, jax.memory.Space.Device)


@jax.jit
def _sums(part: jax.Array, starts: jax.Array, strides: jax.Array) -> jax.Array:
    """Returns uint32[2] of a part whose first element stands at `starts` in the array."""
    if part.dtype == jnp.bool_:
        part = part.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(part, WORDS[part.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(part.shape, jnp.uint32)
    for axis in range(part.ndim):
        steps = jax.lax.broadcasted_iota(jnp.uint32, part.shape, axis)
        place += (starts[axis] + steps) * strides[axis]
    return jnp.stack([jnp.sum(bits * _spread(place, *f), dtype=jnp.uint32) for f in FACTORS])


def _spread(place: jax.Array, one: int, other: int) -> jax.Array:
    """Returns an odd number for each place that looks random."""
    mixed = place * jnp.uint32(one)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(other)
    return (mixed ^ (mixed >> 13)) | jnp.uint32(1)


def of_file(path: str | os.PathLike[str]) -> str:
    """Returns the fingerprint of an .npz file's arrays: 64 hexadecimal digits.

    A zip keeps the CRC of every member's bytes in its table of contents. Names, sizes and CRCs
    together cover shape, type and every byte of every array, and no array is read for it.
    `npz.read` compares the CRCs with the data, so weights that were loaded have the fingerprint.
    Compression, the order of the arrays, the file's name and its metadata do not change it.

    Raises:
      ValueError: not a zip, or one that is cut off or damaged at its end.
    """
    with npz_members.open_zip(path) as archive:
        members = sorted((info.filename, info.file_size, info.CRC) for info in archive.infolist())
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()
