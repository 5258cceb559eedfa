"""One table of every model's dimensions, and how to tell from arrays which model they are.

Dimensions of Gemma 1: arXiv:2403.08295, table 1; Gemma 2: arXiv:2408.00118, table 1; the vision
tower: arXiv:2303.15343. How they are joined: arXiv:2407.07726 and arXiv:2412.03555.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import released_models
from paligemma_jax.wording import phrases

T = TypeVar("T")

# 256,000 Gemma pieces, 1024 <loc....>, 128 <seg...>.
VOCAB_SIZE = 257_152


@dataclasses.dataclass(frozen=True)
class Vit:
    """Dimensions of a SigLIP vision tower: square patches, no pooling.

    Attributes:
      posemb_init: how position embeddings start in training from scratch, see `siglip`.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    posemb_init: Literal["normal", "sines"] = "normal"

    def __post_init__(self):
        if self.posemb_init not in ("normal", "sines"):
            raise ValueError(f"posemb_init '{self.posemb_init}': expected 'normal' or 'sines'")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.num_heads} heads")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


@dataclasses.dataclass(frozen=True)
class Gemma:
    """Dimensions and switches of a Gemma language model.

    Attributes:
      num_kv_heads: equal to `num_heads` stores one `qkv_einsum`; fewer stores `q_einsum` and
        `kv_einsum`, and the query heads share them in groups.
      post_norms: RMSNorm also behind attention and MLP (Gemma 2).
      query_scale: queries are multiplied by head_dim**-0.5, or by (width / num_heads)**-0.5 (27B).
      attn_logits_softcap: c * tanh(logits / c) inside attention; 0 is off.
      final_logits_softcap: the same on the vocabulary logits; 0 is off.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    post_norms: bool = False
    query_scale: Literal["head_dim", "width_per_head"] = "head_dim"
    attn_logits_softcap: float = 0.0
    final_logits_softcap: float = 0.0

    def __post_init__(self):
        if self.query_scale not in ("head_dim", "width_per_head"):
            raise ValueError(
                f"query_scale '{self.query_scale}': expected 'head_dim' or 'width_per_head'"
            )
        for name in ("attn_logits_softcap", "final_logits_softcap"):
            if not isinstance(cap := getattr(self, name), int | float) or not 0 <= cap <= 1e9:
                raise ValueError(f"{name} is {cap!r:.60}, expected a number from 0, which is off")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads cannot share {self.num_kv_heads} kv heads evenly"
            )


@dataclasses.dataclass(frozen=True)
class PaliGemma:
    """A vision tower and a language model, joined at one input resolution.

    Attributes:
      lora: the low-rank factors beside their weights; None: there are none.
    """

    img: Vit
    llm: Gemma
    res: int
    vocab_size: int = VOCAB_SIZE
    lora: lora_lib.Lora | None = None

    def __post_init__(self):
        if self.res <= 0 or self.res % self.img.patch_size:
            raise ValueError(
                f"res={self.res} is not a positive multiple of the patch size "
                f"{self.img.patch_size}; the released models use 224, 448 and 896"
            )

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.res // self.img.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens that one image becomes (P)."""
        return self.grid**2


VITS = {
    "So400m/14": Vit(1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14),
    "mini/14": Vit(96, depth=3, mlp_dim=384, num_heads=4, patch_size=14),
    "tiny/14": Vit(48, depth=3, mlp_dim=96, num_heads=4, patch_size=14),
    # Of the base in the package: experiments/tiny_base.
    "tiny_base/14": Vit(192, depth=4, mlp_dim=768, num_heads=6, patch_size=14),
}

_GEMMA2 = {"post_norms": True, "attn_logits_softcap": 50.0, "final_logits_softcap": 30.0}

GEMMAS = {
    "gemma_2b": Gemma(2048, 18, mlp_dim=16_384, num_heads=8, num_kv_heads=1, head_dim=256),
    "gemma2_2b": Gemma(2304, 26, 9_216, num_heads=8, num_kv_heads=4, head_dim=256, **_GEMMA2),
    "gemma2_9b": Gemma(3584, 42, 14_336, num_heads=16, num_kv_heads=8, head_dim=256, **_GEMMA2),
    "gemma2_27b": Gemma(
        4608,
        depth=46,
        mlp_dim=36_864,
        num_heads=32,
        num_kv_heads=16,
        head_dim=128,
        query_scale="width_per_head",
        **_GEMMA2,
    ),
    # For training from scratch on a CPU.
    "mini": Gemma(96, depth=3, mlp_dim=768, num_heads=4, num_kv_heads=1, head_dim=32),
    "tiny_base": Gemma(192, depth=3, mlp_dim=512, num_heads=4, num_kv_heads=4, head_dim=48),
    # For tests: each takes one code path of the real ones.
    "tiny": Gemma(64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16),
    "tiny2": Gemma(64, 3, 128, num_heads=4, num_kv_heads=2, head_dim=16, **_GEMMA2),
    "tiny2_27b": Gemma(
        64,
        depth=3,
        mlp_dim=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        query_scale="width_per_head",
        **_GEMMA2,
    ),
    "tiny_mha": Gemma(64, depth=3, mlp_dim=128, num_heads=4, num_kv_heads=4, head_dim=16),
}

# Name, published or of the package's own base -> (key of VITS, key of GEMMAS).
RELEASED = {
    name: (model.img, model.llm)
    for name, model in (*released_models.MODELS.items(), *released_models.SHIPPED.items())
}


def make(
    img: str,
    llm: str,
    *,
    res: int,
    vocab_size: int = VOCAB_SIZE,
    final_logits_softcap: float | None = None,
) -> PaliGemma:
    """Joins a vision tower of `VITS` and a language model of `GEMMAS`.

    `final_logits_softcap=None` keeps the table's value. An unknown name is a ValueError that
    shows the near misses.
    """
    gemma = _look_up(GEMMAS, llm, what="language model")
    if final_logits_softcap is not None:
        gemma = dataclasses.replace(gemma, final_logits_softcap=final_logits_softcap)
    return PaliGemma(_look_up(VITS, img, what="vision tower"), gemma, res, vocab_size)


def released(name: str, *, res: int, final_logits_softcap: float | None = None) -> PaliGemma:
    """Returns a published model, for example `released("paligemma2-3b", res=448)`."""
    img, llm = _look_up(RELEASED, name, what="released model")
    return make(img, llm, res=res, final_logits_softcap=final_logits_softcap)


def infer(
    shapes: Mapping[str, Sequence[int]], among: Mapping[str, tuple[str, str]] = RELEASED
) -> tuple[str, PaliGemma]:
    """Tells from names and shapes of a checkpoint which released model it is.

    What shapes cannot tell (soft-caps, the query scale) comes from the table.

    Args:
      shapes: name -> shape of every array, big_vision names without a `params/` prefix.
      among: the models to choose from, as `RELEASED`.

    Returns:
      (published name, model at the resolution of the checkpoint's position embedding).

    Raises:
      ValueError: arrays that tell the dimensions are missing, or no model has these dimensions;
        lists what differs from each.
    """
    actual = _dimensions(shapes)
    differences = {}
    for name, (img, llm) in among.items():
        expected = visible(
            _look_up(VITS, img, what="vision tower"), _look_up(GEMMAS, llm, what="language model")
        )
        differs = [
            f"{key} {actual[key]} instead of {expected[key]}"
            for key in expected
            if actual[key] != expected[key]
        ]
        if not differs:
            res = actual["grid"] * actual["img.patch_size"]
            return name, make(img, llm, res=res, vocab_size=actual["vocab_size"])
        differences[name] = differs
    listing = "".join(
        f"\n  {name}: {'; '.join(differs)}"
        for name, differs in sorted(differences.items(), key=lambda item: len(item[1]))
    )
    raise ValueError(f"these arrays are none of {list(among)}. What differs:{listing}")


def measure(shapes: Mapping[str, Sequence[int]], hidden: Mapping[str, Any]) -> PaliGemma:
    """Returns the model with the dimensions of these arrays, released or not; raises as `infer`.

    `hidden` is what shapes cannot tell, by the attributes of `Gemma`: soft-caps and query scale.
    """
    dims: dict[str, Any] = {**_dimensions(shapes)}
    img, llm = (
        {k.removeprefix(tower): size for k, size in dims.items() if k.startswith(tower)}
        for tower in ("img.", "llm.")
    )
    res = dims["grid"] * dims["img.patch_size"]
    return PaliGemma(Vit(**img), Gemma(**llm, **hidden), res, dims["vocab_size"])


def _dimensions(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Reads the dimensions that names and shapes show."""
    block, layers = "img/Transformer/encoderblock", "llm/layers"
    query = _shape(shapes, f"{block}/MultiHeadDotProductAttention_0/query/kernel", 4)
    patch = _shape(shapes, "img/embedding/kernel", 4)
    tokens = _shape(shapes, "img/pos_embedding", 3)[1]
    mlp = _shape(shapes, f"{layers}/mlp/linear", 3)
    attn = _shape(shapes, f"{layers}/attn/attn_vec_einsum/w", 4)
    fused = f"{layers}/attn/qkv_einsum/w" in shapes
    num_kv_heads = attn[1] if fused else _shape(shapes, f"{layers}/attn/kv_einsum/w", 5)[2]
    grid = math.isqrt(tokens)
    if grid**2 != tokens:
        raise ValueError(f"img/pos_embedding has {tokens} rows, which is not a square grid")
    return {
        "img.width": query[1],
        "img.depth": query[0],
        "img.mlp_dim": _shape(shapes, f"{block}/MlpBlock_0/Dense_0/kernel", 3)[2],
        "img.num_heads": query[2],
        "img.patch_size": patch[0],
        "llm.width": mlp[2],
        "llm.depth": mlp[0],
        "llm.mlp_dim": mlp[1],
        "llm.num_heads": attn[1],
        "llm.num_kv_heads": num_kv_heads,
        "llm.head_dim": attn[2],
        "llm.post_norms": f"{layers}/post_ffw_norm/scale" in shapes,
        "vocab_size": _shape(shapes, "llm/embedder/input_embedding", 2)[0],
        "grid": grid,
    }


def visible(img: Vit, llm: Gemma) -> dict[str, int]:
    """The part of the table that names and shapes show."""
    hidden = ("posemb_init", "query_scale", "attn_logits_softcap", "final_logits_softcap")
    return {
        **{f"img.{k}": value for k, value in dataclasses.asdict(img).items() if k not in hidden},
        **{f"llm.{k}": value for k, value in dataclasses.asdict(llm).items() if k not in hidden},
    }


def _shape(shapes: Mapping[str, Sequence[int]], name: str, ndim: int) -> tuple[int, ...]:
    if name not in shapes:
        near = phrases.nearest(name, shapes)
        raise ValueError(
            f"not a PaliGemma checkpoint: array '{name}' is missing. Nearest names: "
            f"{', '.join(near) or 'none'}; {len(shapes)} arrays given"
        )
    if len(shapes[name]) != ndim:
        raise ValueError(f"array '{name}' has shape {tuple(shapes[name])}, expected {ndim} axes")
    return tuple(shapes[name])


def _look_up(table: Mapping[str, T], name: str, *, what: str) -> T:
    if name not in table:
        near = phrases.nearest(name, table)
        raise ValueError(
            f"no {what} named '{name}'. Nearest: {', '.join(near) or 'none'}; all: {sorted(table)}"
        )
    return table[name]
