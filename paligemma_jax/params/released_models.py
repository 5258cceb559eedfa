"""The released models, by the names that settings use, and where each file of them is served.

And the small one that is in the package.

The dimensions of their towers are in the family's own table.
"""

import dataclasses
import re

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


@dataclasses.dataclass(frozen=True)
class ShippedModel:
    """A small pretrained model whose files are in the package (`hub/NAME`).

    Attributes:
      img, llm: as of a `ReleasedModel`.
      resolutions: sides of the images that it takes, in pixels. Its position embeddings are those
        of the first; for the others they are resampled.
      init, tokenizer, mask_codec: names of its files, as the settings of these names give them.
    """

    img: str
    llm: str
    resolutions: tuple[int, ...]
    init: str
    tokenizer: str
    mask_codec: str


SHIPPED = {
    "tiny_base": ShippedModel(
        img="tiny_base/14",
        llm="tiny_base",
        resolutions=(112, 224),
        init="tiny_base",
        tokenizer="tiny_base/tokenizer.model",
        mask_codec="tiny_base/mask_codec.npz",
    )
}
# Name of a file, as settings give it -> where it is below the room hub.
SHIPPED_FILES = {
    **{one.init: f"{name}/weights.npz" for name, one in SHIPPED.items()},
    **{file: file for one in SHIPPED.values() for file in (one.tokenizer, one.mask_codec)},
}


# The released files: big_vision's names for them, and their addresses.

PALIGEMMA_1 = "paligemma1-3b"  # released in three types, under names of their own


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """A released file.

    Attributes:
      file: what it is called in a BV_GEMMA_DIR folder.
      sources: its addresses.
      model: the model in it, a key of `params.released_models.MODELS`.
      res: side of the images that it is for, in pixels.
    """

    file: str
    sources: tuple[str, ...]
    model: str
    res: int


def _files() -> dict[str, ReleasedFile]:
    """Returns name -> file for the names that big_vision knows.

    Names and folder: VANITY_NAMES in models/proj/paligemma/paligemma.py at 0127fb6. Addresses that
    public code, notebooks and model cards show: the Kaggle handles of PaliGemma 2 and of PaliGemma
    1 at 224 px, their files at 224 px (3B), the Hugging Face repositories of PaliGemma 1, its
    revision `bfloat16`, and that of 28B at 224 px, which holds its file in parts (see
    `hub.addresses`). The others follow the pattern of these; Kaggle's handles of PaliGemma 1 at 448
    and 896 px among them, which no public code confirms. Kaggle's version 1 is spelled out, so that
    a file fetched before is found without a network.
    """
    table = {}
    for res in RESOLUTIONS:
        for name in MODELS:
            table |= _paligemma_1(res) if name == PALIGEMMA_1 else _paligemma_2(name, res)
    return table


def _paligemma_1(res: int) -> dict[str, ReleasedFile]:
    model, files = f"paligemma-3b-pt-{res}", {}
    for suffix, revision in (("", "main"), (".bf16", "bfloat16"), (".f16", "float16")):
        name, file = f"pt_{res}{suffix}", f"{model}{suffix}.npz"
        kaggle = f"kaggle://google/paligemma/jax/{model}/1/{file}"
        hugging_face = f"hf://google/{model}-jax/{file}@{revision}"
        files[name] = ReleasedFile(f"{name}.npz", (kaggle, hugging_face), PALIGEMMA_1, res)
    return files


def _paligemma_2(released: str, res: int) -> dict[str, ReleasedFile]:
    model, name = f"{released}-pt-{res}", MODELS[released].init.format(res=res)
    file = f"{model}.b16.npz"
    kaggle = f"kaggle://google/paligemma-2/jax/{model}/1/{file}"
    hugging_face = f"hf://google/{model}-jax/{file}"
    return {name: ReleasedFile(f"{name}.bf16.npz", (kaggle, hugging_face), released, res)}


FILES = _files()


def hugging_face_name(name: str | None) -> str | None:
    """Returns where transformers finds a released model: "google/paligemma-3b-pt-224" of pt_224."""
    if name not in FILES:
        return None
    return f"google/{FILES[name].sources[0].split('/')[-3]}"


def describe_repository(name: str) -> str:
    """Returns where a PaliGemma repository of Hugging Face has npz files; "" of other names.

    Args:
      name: as "google/paligemma2-3b-pt-224" (transformers' files), or with "-jax" (npz files).
    """
    match = re.fullmatch(r"(google/paligemma2?-[^/@]+?)(-jax)?/?", name)
    if not match:
        return ""
    names = [short for short in FILES if hugging_face_name(short) == match[1]]
    address = f"hf://{match[1]}-jax/FILE.npz"
    where = " or ".join([*map(repr, names), f"'{address}'"])
    if match[2]:
        return f"its files are {where}"
    return (
        f"holds transformers' files; the same weights as npz are {where}. A folder of transformers "
        f"is converted by python -m paligemma_jax.convert FOLDER FILE.npz"
    )
