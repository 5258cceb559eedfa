"""Makes nf4.npz: a weight as bitsandbytes quantizes it, and what that stands for.

    python tests/reference/make_nf4.py    # torch, bitsandbytes 0.50 (CPU)

`w` float16[75, 256]; `codes`, `scales`, `outer`, `offset`: its quantization; `values` float32: what
that stands for. 300 blocks, so the second block of scales is not full; one number is an outlier and
one block is zero. Scales are rounded in float64: its float32 code for CPUs looks them up in a table
that decides a few near ties wrongly, its CUDA code and this do not.
"""

import pathlib

import numpy as np
import torch
from bitsandbytes import functional

HERE = pathlib.Path(__file__).parent


def main():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(75, 256), scale=0.02)
    w[3, 5] = 0.7
    w[7, 64:128] = 0.0
    w = w.astype(np.float16)
    codes, state = functional.quantize_4bit(
        torch.from_numpy(w).float(), blocksize=64, quant_type="nf4", compress_statistics=True
    )
    plain = functional.quantize_4bit(torch.from_numpy(w).float(), blocksize=64, quant_type="nf4")[1]
    state.absmax, state.state2.absmax = torch.ops.bitsandbytes.quantize_blockwise.default(
        (plain.absmax - state.offset).double(), state.state2.code, 256
    )
    np.savez_compressed(
        HERE / "nf4.npz",
        w=w,
        codes=codes.numpy().reshape(-1, 32),
        scales=state.absmax.numpy(),
        outer=state.state2.absmax.numpy(),
        offset=state.offset.numpy(),
        values=functional.dequantize_4bit(codes, state).numpy(),
    )


if __name__ == "__main__":
    main()
