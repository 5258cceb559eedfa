"""What `compare` measures: the cases, and at which sizes of the model."""

import dataclasses

from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import lora

LORA = lora.Lora(targets="llm/layers/.*", rank=8, alpha=8.0)
ATTENTION = "llm/layers/attn/.*"


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and the work it is given.

    Attributes:
      model: its dimensions.
      dtype: of stored weights and of what a side computes in, where the side leaves a choice.
      batch_size: of steps; `Case.batch_size` is that of decoding.
      prompt_len: tokens before the answer; nothing is padded.
      supervised: tokens of the answer.
      new_tokens: that are decoded.
      takes_turns: sides stay alive together and are timed in turn, so that whatever else the
        machine does meets all of them alike; otherwise one after the other has the device alone.
    """

    model: variants.PaliGemma
    dtype: str
    batch_size: int
    prompt_len: int
    supervised: int
    new_tokens: int
    takes_turns: bool


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that every side does.

    Attributes:
      what: "step", "decode", "checkpoint" (load, save) or "start" (a new process and one step).
      trains: of steps: "attention", "all" or "lora".
      optimizer: "sgd" or "adam".
      cached_images: our images are embedded before, and read from the disk.
      batch_size: 0 is that of the size.
    """

    what: str
    trains: str = "attention"
    optimizer: str = "sgd"
    cached_images: bool = False
    batch_size: int = 0


# Where our side caches images, the others do what they do without.
CASES = {
    "attention-only step": Case("step"),
    "full step": Case("step", "all"),
    "full step, Adam": Case("step", "all", "adam"),
    "LoRA step, Adam": Case("step", "lora", "adam"),
    "attention-only step, cached images": Case("step", cached_images=True),
    "decode, batch 1": Case("decode", batch_size=1),
    "decode, batch 8": Case("decode", batch_size=8),
    "decode, batch 32": Case("decode", batch_size=32),
    "checkpoint": Case("checkpoint"),
    "first step": Case("start"),
}

# About 60 million parameters: a step takes seconds on a CPU.
MID = variants.PaliGemma(
    img=variants.Vit(width=384, depth=8, mlp_dim=1536, num_heads=6, patch_size=14),
    llm=variants.Gemma(width=512, depth=8, mlp_dim=2048, num_heads=8, num_kv_heads=1, head_dim=64),
    res=224,
    vocab_size=32_768,
)


def _released(name: str, res: int, batch_size: int) -> Size:
    model = variants.released(name, res=res, final_logits_softcap=0.0)
    return Size(model, "bfloat16", batch_size, 96, 32, 64, takes_turns=False)


SIZES = {
    "tiny": Size(
        variants.make("tiny/14", "tiny", res=28, vocab_size=2048), "float32", 2, 4, 4, 4, True
    ),
    "mid": Size(MID, "float32", 8, 16, 8, 32, takes_turns=True),
    "3b-224": _released("paligemma2-3b", 224, 32),
    "3b-448": _released("paligemma2-3b", 448, 8),
    "paligemma1-3b-224": _released("paligemma1-3b", 224, 32),
}
