"""Random numbers that follow from where they are used, the same with every version of numpy.

The raw stream of a bit generator is fixed; the methods of `numpy.random.Generator` may change
(NEP 19). A resumed run needs both properties, and several processes need the first.
"""

import numpy as np

# Every use of `uniforms` has numbers of its own.
AUGMENT, SHUFFLE_OBJECTS, NOISE_BOXES = range(3)
# Keys of `uniforms`; those of permutations stay below.
UNIFORMS = 1 << 63
# Passes over one source before the keys of the next source begin.
PASSES = 1 << 40


def permutation(seed: int, epoch: int, size: int, *, source: int = 0) -> np.ndarray:
    """Returns int64[size], the order of a source's records in one pass over them."""
    key = np.array([seed, source * PASSES + epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def uniforms(seed: int, use: int, position: int, count: int) -> np.ndarray:
    """Returns float64[count] in 0..1 (1 excluded) for the example at `position` of the run.

    Args:
      seed: of the run.
      use: one of the constants above.
      position: of the example among all that the run trains on: step * batch size + place.
      count: how many; the first ones do not depend on it.
    """
    key = np.array([seed, UNIFORMS + use], np.uint64)
    bits = np.random.Philox(key=key, counter=[0, position, 0, 0]).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53
