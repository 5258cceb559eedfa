"""One table of every model's dimensions.

The vision tower is SigLIP's So400m/14 at 378 px (arXiv:2305.13035), the language model has the
dimensions of Phi-1.5 (arXiv:2309.05463), section 2.1.
"""

import dataclasses

from paligemma_jax.params import lora as lora_lib

# 50,257 pieces of GPT-2; the rest stands for none.
VOCAB_SIZE = 51_200


@dataclasses.dataclass(frozen=True)
class Vit:
    """Dimensions of a vision tower: square patches, no pooling.

    Attributes:
      has_crops: whether it sees a large image twice, small as a whole and in squares: the releases
        from 2024-05-20 on.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    has_crops: bool = False

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.num_heads} heads")

    @property
    def head_dim(self) -> int:
        """Length of a head (H)."""
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class Phi:
    """Dimensions of a Phi language model.

    Attributes:
      rotary_dim: the beginning of each head that positions rotate.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    rotary_dim: int

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.num_heads} heads")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(
                f"rotary_dim {self.rotary_dim}: expected an even number up to the length of a "
                f"head, {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Length of a head (H)."""
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class Moondream:
    """A vision tower and a language model, joined at one input resolution.

    Attributes:
      lora: the low-rank factors beside their weights; None: there are none.
    """

    img: Vit
    llm: Phi
    res: int
    vocab_size: int = VOCAB_SIZE
    lora: lora_lib.Lora | None = None

    def __post_init__(self):
        if self.res <= 0 or self.res % self.img.patch_size:
            raise ValueError(
                f"res={self.res} is not a positive multiple of the patch size "
                f"{self.img.patch_size}; the released model uses 378"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.res // self.img.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image becomes (P)."""
        return self.grid**2

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of an image in a batch: with crops it may be twice as high and wide, on a canvas."""
        return (2 * self.res, 2 * self.res, 4) if self.img.has_crops else (self.res, self.res, 3)

    @property
    def projection_dim(self) -> int:
        """Inner width of the MLP that makes the language model's vectors of the vision tower's."""
        return 4 * self.llm.width


VITS = {
    "So400m/14": Vit(1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14),
    "So400m/14_crops": Vit(1152, 27, mlp_dim=4304, num_heads=16, patch_size=14, has_crops=True),
    "mini/14": Vit(96, depth=3, mlp_dim=384, num_heads=4, patch_size=14),
    "tiny/14": Vit(48, depth=3, mlp_dim=96, num_heads=4, patch_size=14),
    "tiny/14_crops": Vit(48, depth=3, mlp_dim=96, num_heads=4, patch_size=14, has_crops=True),
}
PHIS = {
    "phi_1_5": Phi(2048, depth=24, mlp_dim=8192, num_heads=32, rotary_dim=32),
    # For training from scratch on a CPU.
    "mini": Phi(128, depth=3, mlp_dim=512, num_heads=4, rotary_dim=16),
    # For tests.
    "tiny": Phi(64, depth=3, mlp_dim=128, num_heads=4, rotary_dim=8),
}
# Published name -> (key of VITS, key of PHIS).
RELEASED = {
    "moondream2-2024-04-02": ("So400m/14", "phi_1_5"),
    "moondream2-2024-05-20": ("So400m/14_crops", "phi_1_5"),
    # Of the same shapes, besides a model of regions, which its authors call not ready for use.
    "moondream2-2024-08-26": ("So400m/14_crops", "phi_1_5"),
}
RELEASED_RES = 378
