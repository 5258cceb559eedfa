"""The released models, by the names that settings use: the one table of them.

Their towers' dimensions are in the family's own table, their files' addresses in `hub.published`.
"""

import dataclasses

RESOLUTIONS = (224, 448, 896)  # sides of the images that each is released for, in pixels


@dataclasses.dataclass(frozen=True)
class ReleasedModel:
    """A released model.

    Attributes:
      img: variant of the vision tower, as `model.img.variant` in the settings.
      llm: variant of the language model, as `model.llm.variant`.
      init: big_vision's name of the weights to fine-tune from, with the resolution left open.
    """

    img: str
    llm: str
    init: str


MODELS = {
    "paligemma1-3b": ReleasedModel("So400m/14", "gemma_2b", "pt_{res}.f16"),
    "paligemma2-3b": ReleasedModel("So400m/14", "gemma2_2b", "pt_3b_{res}"),
    "paligemma2-10b": ReleasedModel("So400m/14", "gemma2_9b", "pt_10b_{res}"),
    "paligemma2-28b": ReleasedModel("So400m/14", "gemma2_27b", "pt_28b_{res}"),
}
