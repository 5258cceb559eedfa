"""Makes adam_8bit.npz: bitsandbytes' tables, blocks in 8 bits, and ten steps of its Adam8bit.

    python tests/reference/make_adam_8bit.py    # torch 2.13, bitsandbytes 0.50.2, on a CPU

`map/signed` and `map/unsigned`: its tables. `blocks/x` of 1000 numbers: their codes and greatest
magnitudes with both. `gradient/NAME` [10, ...] of parameters `w`, whose moments are in 8 bits, and
`small`, which has fewer than 4096 numbers: these after ten steps from `start/NAME` at a rate of
0.01, as `trained/NAME`, and the moments of `w` then.

All of this by its kernels in torch, which give the nearest value as those on a GPU do. Its compiled
one for CPUs does not for numbers below a few percent of the greatest, so it is kept from loading.
"""

import ctypes
import pathlib
from unittest import mock

import numpy as np
import torch

with mock.patch.object(ctypes.cdll, "LoadLibrary", side_effect=OSError("not wanted")):
    import bitsandbytes
    from bitsandbytes import functional

HERE = pathlib.Path(__file__).parent
SHAPES = {"w": (24, 200), "small": (300,)}
STEPS = 10


def main():
    rng = np.random.default_rng(0)
    arrays = {}
    maps = {"signed": True, "unsigned": False}
    codes = {name: functional.create_dynamic_map(signed=signed) for name, signed in maps.items()}
    arrays |= {f"map/{name}": code.numpy() for name, code in codes.items()}
    x = (rng.normal(size=1000) * 10 ** rng.uniform(-6, 0, 1000)).astype(np.float32)
    arrays["blocks/x"] = x
    for name, code in codes.items():
        given = torch.from_numpy(x if maps[name] else abs(x))
        quantized, state = functional.quantize_blockwise(given, code=code, blocksize=256)
        arrays[f"blocks/{name}"] = quantized.numpy()
        arrays[f"blocks/{name}/greatest"] = state.absmax.numpy()
        arrays[f"blocks/{name}/back"] = functional.dequantize_blockwise(quantized, state).numpy()
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    scale = {name: 10 ** rng.uniform(-4, 0, shape) for name, shape in SHAPES.items()}
    gradients = {
        name: (rng.normal(size=(STEPS, *shape)) * scale[name]).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    params = {name: torch.nn.Parameter(torch.from_numpy(x.copy())) for name, x in start.items()}
    adam = bitsandbytes.optim.Adam8bit(params.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-6)
    for step in range(STEPS):
        for name, parameter in params.items():
            parameter.grad = torch.from_numpy(gradients[name][step])
        adam.step()
    for name in SHAPES:
        arrays[f"start/{name}"], arrays[f"gradient/{name}"] = start[name], gradients[name]
        arrays[f"trained/{name}"] = params[name].detach().numpy()
    state = adam.state[params["w"]]
    assert state["state1"].dtype == torch.uint8
    assert adam.state[params["small"]]["state1"].dtype == torch.float32
    for ours, theirs, greatest in (("mu", "state1", "absmax1"), ("nu", "state2", "absmax2")):
        arrays[f"{ours}/codes"] = state[theirs].numpy()
        arrays[f"{ours}/greatest"] = state[greatest].numpy()
    np.savez_compressed(HERE / "adam_8bit.npz", **arrays)


if __name__ == "__main__":
    main()
