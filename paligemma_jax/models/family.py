"""What everything else needs of a model: of one with its dimensions, and of its family.

A family is one architecture in all its sizes, in one folder of this room. `Family` is how settings
and files come to a `Model`; `Model` is what training, decoding, evaluation, checkpoints and export
call. Parameters are a flat dictionary of '/'-names, which a family's `Names` sorts for the others.

A prompt is image tokens, then text. Batches are as the data room makes them:

    image        uint8[B, M, R, R, 3]    M image slots per row (`images.shape` of other
                                         resamplings), or in its place
    image_tokens [B, M, P, D]            what `Functions.embed` made of them before
    mask_image   bool[B, M]              False: an unused slot, which nobody sees
    text         int32[B, T]
    mask_ar      int32[B, T]             1: hidden from all before it, as every token of an answer
    mask_input   int32[B, T]             0: padding
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import jax
import numpy as np

from paligemma_jax.models.common import attention, layer_update, layers, projections, quantize
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names, sharding

P = ParamSpec("P")
T = TypeVar("T")
Params = Mapping[str, Any]
Batch = Mapping[str, jax.Array]
Cache = Any  # a pytree of the family's own

# What `Functions.apply` takes for a weight of stacked layers: it is updated in the backward pass.
Updating, NUM_MEASURED = layer_update.Updating, layer_update.NUM_MEASURED

IMAGE_TOKENS = "image_tokens"  # in a batch, in place of `image`


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run a model, not what it is. Hashable: static under `jax.jit`.

    Attributes:
      dtype: of activations and matrix products, "float32", "bfloat16" or "float16"; weights are
        cast to it where they are used. Norms, softmax, logits and the residual stream are float32
        in any case; with float16 so is all but the operands of products (see `projections`).
      remat: one of `layers.REMAT`, what the backward pass may keep of a layer. "none" keeps all,
        the cast copies of 16-bit weights too.
      dropout: rate in the language model, applied where an rng is given.
      img_dropout: rate in the vision tower, likewise.
      attention: what computes it in the language model, one of `attention.KERNELS`.
      img_attention: likewise in the vision tower.
      layout: where arrays lie on several devices; None: all are on one.
    """

    dtype: str = "float32"
    remat: str = "nothing_saveable"
    dropout: float = 0.0
    img_dropout: float = 0.0
    attention: str = "xla"
    img_attention: str = "xla"
    layout: sharding.Layout | None = None

    def __post_init__(self):
        if self.dtype not in projections.DTYPES:
            raise ValueError(f"compute dtype '{self.dtype}' is not one of {projections.DTYPES}")
        layers.check_remat(self.remat)
        for kernel in (self.attention, self.img_attention):
            if kernel not in attention.KERNELS:
                raise ValueError(f"attention '{kernel}' is not one of {attention.KERNELS}")
        for rate in (self.dropout, self.img_dropout):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"dropout rate {rate} is not in [0, 1)")

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by while gradients are taken."""
        return projections.LOSS_SCALES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters that a forward pass uses together, and the work that they are.

    Attributes:
      prefixes: beginnings of their names.
      reads: what each matrix of it is multiplied with: every token of the images, every token of
        image and text, or, of the table of the vocabulary, the supervised tokens.
      added: endings of names of arrays that are added, not multiplied, as position embeddings.
      attention: FLOPs of attention's products, of a sequence of one token; of n it is n * n times
        that. 0: there is none.
      runs: how often it reads each image, as its crops one by one.
    """

    prefixes: tuple[str, ...]
    reads: Literal["images", "sequence", "vocabulary"]
    added: tuple[str, ...] = ()
    attention: float = 0.0
    runs: int = 1


@dataclasses.dataclass(frozen=True)
class Heads:
    """A tower's attention, to those who choose what computes it.

    Attributes:
      head_dim: length of a head (H).
      softcap: of its logits; 0: none.
      is_masked: whether some tokens do not see others.
    """

    head_dim: int
    softcap: float = 0.0
    is_masked: bool = False


def _nothing(params: Params) -> Params:
    del params
    return {}


def _unknown(shapes: Mapping[str, Sequence[int]]) -> str | None:
    del shapes
    return None


def made_once(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Returns a decorator: equal arguments get what was made for them before, of the last so many.

    It is for what programs are known by, as functions that `jax.jit` traces. Arguments that have no
    hash, as a model with a dict among its fields, get a new one each time.
    """

    def decorate(make: Callable[P, T]) -> Callable[P, T]:
        kept = functools.lru_cache(maxsize=maxsize)(make)

        @functools.wraps(make)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                hash((*args, *kwargs.values()))
            except TypeError:
                return make(*args, **kwargs)
            return kept(*args, **kwargs)

        return call

    return decorate


@dataclasses.dataclass(frozen=True)
class Functions:
    """A model closed over its dimensions and how it computes: what training and decoding call.

    Attributes:
      compute: how it computes.
      vocab_size: V, rows of the embedding.
      embed: (params, uint8[B, M, R, R, 3]) -> image tokens [B, M, P, D].
      apply: (params, batch, rng | None) -> hidden [B, T, D] behind every text token.
      logits: (params, hidden) -> float32[..., V].
      prefill: (params, batch, *, max_new_tokens) -> (float32[B, V], cache).
      decode_step: (params, cache, int32[B]) -> (float32[B, V], cache).
      select_rows: (cache, int32[b]) -> the cache of these rows of the batch.
      unstack: params -> those that start with `Names.blocks` once more, as decoding reads them.
    """

    compute: Compute
    vocab_size: int
    embed: Callable[..., jax.Array]
    apply: Callable[..., jax.Array]
    logits: Callable[..., jax.Array]
    prefill: Callable[..., tuple[jax.Array, Cache]]
    decode_step: Callable[..., tuple[jax.Array, Cache]]
    select_rows: Callable[[Cache, jax.Array], Cache]
    unstack: Callable[[Params], Params] = _nothing


@dataclasses.dataclass(frozen=True)
class Names:
    """What a family's parameters are called.

    Attributes:
      embedding: the table with a row for every token; which arrays hold it tells their family.
      image: beginning of the names of what makes image tokens, the rest reads these and text.
      text: regex of all the rest.
      stacked: beginnings of the names of arrays that are stacked by layer.
      blocks: beginning of the names that `Functions.unstack` gives in another form; None: of none.
      attention: regex of the part that is trained where memory is short; None: there is none.
      groups: [(regex, short name)] for logs; the first that matches counts.
      lora_targets: short form -> regex, for the key lora.targets.
      quantizable: what can be held in 4 or 8 bits; None: nothing.
    """

    embedding: str
    image: str
    text: str
    stacked: tuple[str, ...] = ()
    blocks: str | None = None
    attention: str | None = None
    groups: names.Rules[str] = ()
    lora_targets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quantizable: quantize.Quantizable | None = None


@dataclasses.dataclass(frozen=True)
class TowerSpec:
    """What settings say of one tower: `model.img` or `model.llm`.

    Attributes:
      variant: name of its dimensions in the family's table.
      dims: dimensions that replace the variant's; None: it stays.
    """

    variant: str
    dims: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """What settings say of a model, for its family to read.

    Attributes:
      img, llm: the towers.
      res: side of the square image in pixels.
      vocab_size: rows of the table of the vocabulary.
      final_logits_softcap: 0: none.
      lora: the low-rank factors; None: none.
    """

    img: TowerSpec
    llm: TowerSpec
    res: int
    vocab_size: int
    final_logits_softcap: float = 0.0
    lora: lora_lib.Lora | None = None


@made_once(maxsize=16)
def _shapes(model: "Model") -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(model.init, jax.random.key(0))


class Model(Protocol):
    """A model with its dimensions: to be derived from, as a frozen dataclass of hashable fields.

    Methods that have a body here may be left out by a family that has no use for them.
    """

    @property
    @abc.abstractmethod
    def kind(self) -> "Family":
        """The family that it is of."""
        ...

    @property
    @abc.abstractmethod
    def res(self) -> int:
        """Side of the square image in pixels (R)."""
        ...

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Rows of the table of the vocabulary (V)."""
        ...

    @property
    @abc.abstractmethod
    def num_image_tokens(self) -> int:
        """Tokens that one image becomes (P)."""
        ...

    @property
    @abc.abstractmethod
    def image_width(self) -> int:
        """Length of an image token (D)."""
        ...

    @property
    def lora(self) -> lora_lib.Lora | None:
        """The low-rank factors; None: there are none."""
        return None

    @abc.abstractmethod
    def init(self, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns random float32 parameters, factors among them if there are any."""
        ...

    @abc.abstractmethod
    def functions(
        self,
        compute: Compute,
        *,
        cache_dtype: str,
        cache_sharding: jax.sharding.NamedSharding | None = None,
    ) -> Functions:
        """Returns its functions on batches.

        Args:
          compute: how it computes.
          cache_dtype: type of what decoding remembers of a token.
          cache_sharding: where that lies, its first axis the batch's; None: all on one device.
        """
        ...

    @abc.abstractmethod
    def parts(self) -> Sequence[Part]:
        """Returns its parts in the order of the forward pass, every parameter in one of them."""
        ...

    @abc.abstractmethod
    def cache_bytes(self, *, slots: int, itemsize: int) -> int:
        """Returns the bytes that decoding remembers of a row of so many tokens."""
        ...

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns name -> shape of every parameter, allocating nothing."""
        return dict(_shapes(self))

    def init_factors(self, rng: jax.Array) -> dict[str, jax.Array]:
        """Returns low-rank factors alone, which change nothing yet; raises as `lora.choose`."""
        del rng
        return {}

    def heads(self) -> Mapping[str, Heads]:
        """Returns "img" and "llm" -> attention of the tower, of those that have any."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """Returns what a file of weights says of the model because shapes cannot, as JSON."""
        return {}

    def image_metadata(self) -> dict[str, Any]:
        """Returns all dimensions that image tokens depend on besides `res`, as JSON."""
        return {}

    def fit_shapes(
        self, shapes: Mapping[str, Sequence[int]], *, resample: bool, where: str
    ) -> dict[str, Sequence[int]]:
        """Returns the shapes of a file's arrays after `fit`, those that it can make fit.

        Args:
          shapes: name -> shape.
          resample: whether arrays of another resolution are welcome.
          where: the file, for messages.

        Raises:
          ValueError: they are of another resolution, and not welcome.
        """
        del resample, where
        return dict(shapes)

    def fit(self, name: str, array: np.ndarray) -> np.ndarray:
        """Returns an array of a file as the model has it, as position embeddings resampled."""
        del name
        return array

    def is_released(self, name: str) -> bool:
        """Whether its dimensions are those of a released model, a key of `Family.released`."""
        del name
        return False


@made_once(maxsize=4)
def jit_init(
    model: Model,
    expected: tuple[tuple[str, Any], ...],
    places: tuple[tuple[str, Any], ...],
    *,
    fit: Callable[[Any, Any], Any],
) -> Callable[[jax.Array], dict[str, Any]]:
    """Returns the jitted function from a key to random parameters, in their places.

    `expected`: names and types; `fit` gives an array its type.
    """

    def make(rng: jax.Array) -> dict[str, Any]:
        params = model.init(rng)
        return {name: fit(params[name], like) for name, like in expected}

    return jax.jit(make, out_shardings=dict(places))


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture in all its sizes: how settings and files come to a model.

    Attributes:
      name: as the key model.family gives it.
      names: what its parameters are called.
      make: what settings say -> model; raises a ValueError for what it does not know.
      tokenizer: the kind of its tokenizers, a key of `tokens.LOADERS`.
      resampling: how images become the squares that it sees, one of `images.RESAMPLINGS`.
      resampling_of: variant of a vision tower -> another one of these.
      released: published name -> settings of the model, those of `model.img` and `model.llm`.
      recognize: shapes of arrays by name -> published name, None where they are of none.
    """

    name: str
    names: Names
    make: Callable[[Spec], Model]
    tokenizer: str = "sentencepiece"
    resampling: str = "bilinear"
    resampling_of: Mapping[str, str] = dataclasses.field(default_factory=dict)
    released: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    recognize: Callable[[Mapping[str, Sequence[int]]], str | None] = _unknown
