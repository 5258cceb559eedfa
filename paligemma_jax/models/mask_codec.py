"""The mask codec: a 64x64 mask in, 16 tokens out, and back.

A VQ-VAE (arXiv:2301.02229) with 128 codes: four strided convolutions make a 4x4 grid of vectors,
each of which is replaced by the index of its nearest code; the decoder mirrors them. Token i stands
for the i-th cell of the grid, row by row.

Parameters keep names and layout of the published vae-oid.npz, which PyTorch wrote: convolutions are
[out, in, k, k], transposed ones [in, out, k, k]. Widths are read from the arrays, so that a smaller
codec of the same architecture works too. Products are exact float32 on every device: one bit may
choose another code.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

SIDE = 64  # px of a mask
GRID = 4  # codes along one side
NUM_TOKENS = GRID**2
NUM_CODES = 128
WIDTH, CODE_DIM = 128, 512  # of the published codec

EMBEDDING = "_vq_vae._embedding"
# Moving averages that EMBEDDING was made of in training, which PyTorch stores beside it.
TRAINING_ONLY = ("_vq_vae._ema_cluster_size", "_vq_vae._ema_w")
DOWN = ("encoder.0", "encoder.2", "encoder.4", "encoder.6")
ENCODER_BLOCKS = ("encoder.8.net", "encoder.9.net")
TO_CODE = "encoder.10"
FROM_CODE = "decoder.0"
DECODER_BLOCKS = ("decoder.2.net", "decoder.3.net")
UP = ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
TO_MASK = "decoder.12"

Params = Mapping[str, jax.Array | np.ndarray]


def shapes(width: int = WIDTH, code_dim: int = CODE_DIM) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every parameter by name.

    Args:
      width: channels of the 4x4 grid, a multiple of 8; every finer level has half of the last.
      code_dim: length of a code.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (NUM_CODES, code_dim)}

    def add(name: str, out: int, into: int, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into, size, size), (out,)

    down = [1, width // 8, width // 4, width // 2, width]
    for name, into, out in zip(DOWN, down, down[1:], strict=False):
        add(name, out, into, 4)
    for block in (*ENCODER_BLOCKS, *DECODER_BLOCKS):
        for layer, size in ((0, 3), (2, 3), (4, 1)):
            add(f"{block}.{layer}", width, width, size)
    add(TO_CODE, code_dim, width, 1)
    add(FROM_CODE, width, code_dim, 1)
    up = [width, width, width // 2, width // 4, width // 8]
    for name, into, out in zip(UP, up, up[1:], strict=False):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (into, out, 4, 4), (out,)
    add(TO_MASK, 1, width // 8, 1)
    return shapes


def init(rng: jax.Array, *, width: int = WIDTH, code_dim: int = CODE_DIM) -> dict[str, jax.Array]:
    """Returns random float32 parameters: He-normal weights, zero biases, small codes."""
    expected = shapes(width, code_dim)
    keys = dict(zip(expected, jax.random.split(rng, len(expected)), strict=True))

    def make(name: str) -> jax.Array:
        shape = expected[name]
        if name.endswith(".bias"):
            return jnp.zeros(shape)
        if name == EMBEDDING:
            return 0.1 * jax.random.normal(keys[name], shape)
        # Of a transposed convolution 4 of the 16 taps meet at a pixel.
        is_transposed = name.removesuffix(".weight") in UP
        fan_in = shape[0] * 4 if is_transposed else shape[1] * shape[2] * shape[3]
        return (2 / fan_in) ** 0.5 * jax.random.normal(keys[name], shape)

    return {name: make(name) for name in expected}


def encode(params: Params, masks: jax.Array | np.ndarray) -> jax.Array:
    """Returns int32[B, 16], the tokens of masks float32[B, 64, 64] in 0..1 (soft edges count)."""
    return nearest_codes(params, features(params, masks))


def decode(params: Params, codes: jax.Array | np.ndarray) -> jax.Array:
    """Returns float32[B, 64, 64], about -1 (outside) to 1 (inside), of int[B, 16] in 0..127.

    A pixel belongs to the mask where the value is above 0.
    """
    embedding = jnp.asarray(params[EMBEDDING], jnp.float32)
    return paint(params, embedding[codes].reshape(-1, GRID, GRID, embedding.shape[1]))


def features(params: Params, masks: jax.Array | np.ndarray) -> jax.Array:
    """Returns the encoder's vectors before they become codes: float32[B, 4, 4, code_dim]."""
    x = jnp.asarray(masks, jnp.float32)[..., None]
    if x.ndim != 4 or x.shape[1:3] != (SIDE, SIDE):
        raise ValueError(f"masks must be float[B, {SIDE}, {SIDE}]; found {masks.shape}")
    x = 2 * (x - 0.5)
    for name in DOWN:
        x = jax.nn.relu(_convolve(params, name, x, stride=2, padding=1))
    for block in ENCODER_BLOCKS:
        x = _residual(params, block, x)
    return _convolve(params, TO_CODE, x)


def nearest_codes(params: Params, x: jax.Array) -> jax.Array:
    """Returns int32[B, 16], the code nearest to each of the vectors float32[B, 4, 4, code_dim]."""
    embedding = jnp.asarray(params[EMBEDDING], jnp.float32)
    flat = x.reshape(-1, embedding.shape[1])
    products = jnp.einsum("ND,CD->NC", flat, embedding, precision="highest")
    squares = jnp.sum(flat**2, axis=1, keepdims=True) + jnp.sum(embedding**2, axis=1)
    return jnp.argmin(squares - 2 * products, axis=1).reshape(-1, NUM_TOKENS).astype(jnp.int32)


def paint(params: Params, x: jax.Array) -> jax.Array:
    """Returns the decoder's masks float32[B, 64, 64] of vectors float32[B, 4, 4, code_dim]."""
    x = jax.nn.relu(_convolve(params, FROM_CODE, x))
    for block in DECODER_BLOCKS:
        x = _residual(params, block, x)
    for name in UP:
        x = jax.nn.relu(_convolve_transposed(params, name, x))
    return _convolve(params, TO_MASK, x)[..., 0]


def check(stored: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """Raises a ValueError if arrays of these names and shapes are no mask codec.

    Args:
      stored: shapes by name. What only training needs may be among them, and is not looked at.
      where: the file, for the message.
    """
    code_dim = stored.get(EMBEDDING, (0, 0))[-1]
    width = stored.get(f"{TO_CODE}.weight", (0, 0))[1]
    expected = shapes(width, code_dim)
    wrong = [name for name in expected if stored.get(name) != expected[name]]
    wrong += [name for name in stored if name not in (*expected, *TRAINING_ONLY)]
    if wrong or not width or width % 8:
        first = wrong[0] if wrong else f"{TO_CODE}.weight"
        raise ValueError(
            f"{where} is no mask codec: {len(wrong)} arrays are missing, extra or misshapen, first "
            f"'{first}': found {stored.get(first, 'nothing')}, expected "
            f"{expected.get(first, 'nothing')}. The published one is vae-oid.npz"
        )


def _residual(params: Params, block: str, x: jax.Array) -> jax.Array:
    y = jax.nn.relu(_convolve(params, f"{block}.0", x, padding=1))
    y = jax.nn.relu(_convolve(params, f"{block}.2", y, padding=1))
    return x + _convolve(params, f"{block}.4", y)


def _convolve(
    params: Params, name: str, x: jax.Array, *, stride: int = 1, padding: int = 0
) -> jax.Array:
    """Convolves [B, H, W, in] with a kernel [out, in, k, k]."""
    y = jax.lax.conv_general_dilated(
        x,
        jnp.asarray(params[f"{name}.weight"], x.dtype),
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision="highest",
    )
    return y + jnp.asarray(params[f"{name}.bias"], x.dtype)


def _convolve_transposed(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Doubles [B, H, W, in] with a kernel [in, out, 4, 4]: PyTorch's stride 2, padding 1."""
    kernel = jnp.asarray(params[f"{name}.weight"], x.dtype)[:, :, ::-1, ::-1]
    y = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=[(2, 2), (2, 2)],
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "IOHW", "NHWC"),
        precision="highest",
    )
    return y + jnp.asarray(params[f"{name}.bias"], x.dtype)
