"""The released models, by the names that settings use, and where each file of them is served.

And the small one that is in the package.

The dimensions of their towers are in the family's own table.
"""

import dataclasses
import re

RESOLUTIONS = (224, 448, 896)  # sides of the images that each is released for, in pixels
TEXT_LENS = {224: 128, 448: 512, 896: 512}  # tokens of text that each was pretrained with


@dataclasses.dataclass(frozen=True)
class ReleasedModel:
    """A released model.

    Attributes:
      img: variant of the vision tower, as `model.img.variant` in the settings.
      llm: variant of the language model, as `model.llm.variant`.
      init: big_vision's name of the weights to fine-tune from, with the resolution left open.
      num_params: at 224 px.
    """

    img: str
    llm: str
    init: str
    num_params: int


MODELS = {
    "paligemma1-3b": ReleasedModel("So400m/14", "gemma_2b", "pt_{res}.f16", 2_923_335_408),
    "paligemma2-3b": ReleasedModel("So400m/14", "gemma2_2b", "pt_3b_{res}", 3_032_094_960),
    "paligemma2-10b": ReleasedModel("So400m/14", "gemma2_9b", "pt_10b_{res}", 9_662_409_456),
    "paligemma2-28b": ReleasedModel("So400m/14", "gemma2_27b", "pt_28b_{res}", 27_650_192_112),
}
PATCH_SIZE, VIT_WIDTH = 14, 1152  # of the vision tower of them all


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


# The released files: names, as big_vision gives them to those that it knows, and their addresses.

PALIGEMMA_1 = "paligemma1-3b"  # released in three types, under names of their own
PT, MIX, FT = "pt", "mix", "ft"  # to fine-tune from; a mixture of tasks; fine-tuned on one task
MIX_RESOLUTIONS = (224, 448)
# What PaliGemma 1 was fine-tuned on -> resolutions. The names are those of configs/transfers.
FINE_TUNED = {
    **dict.fromkeys(
        (
            *("ai2d", "aokvqa_da", "aokvqa_mc", "coco35l", "cococap", "gqa", "nlvr2", "okvqa"),
            *("rsvqa_hr", "rsvqa_lr", "science_qa", "scicap", "screen2words", "tallyqa"),
            *("textcaps", "vizwizvqa", "vqav2", "widgetcap"),
        ),
        (224, 448),
    ),
    **dict.fromkeys(
        ("docvqa", "infovqa", "ocrvqa", "refcoco_seg", "stvqa", "textvqa"), RESOLUTIONS
    ),
}
DOCCI = ("paligemma2-3b", "paligemma2-10b")  # fine-tuned on its long captions, at 448 px


@dataclasses.dataclass(frozen=True)
class ReleasedFile:
    """A released file.

    Attributes:
      file: what it is called in a BV_GEMMA_DIR folder.
      sources: its addresses.
      model: the model in it, a key of `params.released_models.MODELS`.
      res: side of the images that it is for, in pixels.
      kind: what it was trained for: "pt", "mix" or "ft".
      dtype: of its numbers.
    """

    file: str
    sources: tuple[str, ...]
    model: str
    res: int
    kind: str = PT
    dtype: str = "bfloat16"

    @property
    def num_bytes(self) -> int:
        """Of the download, but for a few thousand bytes of names."""
        patches = (self.res // PATCH_SIZE) ** 2 - (RESOLUTIONS[0] // PATCH_SIZE) ** 2
        num_params = MODELS[self.model].num_params + patches * VIT_WIDTH
        return num_params * (4 if self.dtype == "float32" else 2)


def _files() -> dict[str, ReleasedFile]:
    """Returns name -> file.

    Names of `pt` and folder: VANITY_NAMES in models/proj/paligemma/paligemma.py at 0127fb6; `mix`
    and `ft` are named after their pattern. Addresses that public code, notebooks, collections and
    model cards show: the Kaggle handles of PaliGemma 2 and of PaliGemma 1 at 224 px, their files at
    224 px (3B), the Hugging Face repositories of PaliGemma 1, its revision `bfloat16`, and that of
    28B at 224 px, which holds its file in parts (see `hub.addresses`). The others follow the
    pattern of these; Kaggle's handles of PaliGemma 1 at 448 and 896 px, of `mix` and of `ft` among
    them, which no public code confirms. Kaggle's version 1 is spelled out, so that a file fetched
    before is found without a network.
    """
    table = {}
    for res in RESOLUTIONS:
        table |= _paligemma_1(f"pt-{res}", res, PT)
        for name in MODELS:
            table |= {} if name == PALIGEMMA_1 else _paligemma_2(name, "pt", res, PT)
    for res in MIX_RESOLUTIONS:
        table |= _paligemma_1(f"mix-{res}", res, MIX)
        for name in MODELS:
            table |= {} if name == PALIGEMMA_1 else _paligemma_2(name, "mix", res, MIX)
    for name in DOCCI:
        table |= _paligemma_2(name, "ft-docci", 448, FT)
    for task, resolutions in FINE_TUNED.items():
        for res in resolutions:
            table |= _paligemma_1(f"ft-{task.replace('_', '-')}-{res}", res, FT)
    return table


def _paligemma_1(published: str, res: int, kind: str) -> dict[str, ReleasedFile]:
    model, files = f"paligemma-3b-{published}", {}
    owner = "google/paligemma-ft" if kind == FT else "google/paligemma"
    for suffix, revision in (("", "main"), (".bf16", "bfloat16"), (".f16", "float16")):
        name, file = f"{published.replace('-', '_')}{suffix}", f"{model}{suffix}.npz"
        kaggle = f"kaggle://{owner}/jax/{model}/1/{file}"
        hugging_face = f"hf://google/{model}-jax/{file}@{revision}"
        dtype = "float32" if revision == "main" else revision
        files[name] = ReleasedFile(
            f"{name}.npz", (kaggle, hugging_face), PALIGEMMA_1, res, kind, dtype
        )
    return files


def _paligemma_2(released: str, trained: str, res: int, kind: str) -> dict[str, ReleasedFile]:
    model, size = f"{released}-{trained}-{res}", released.rpartition("-")[2]
    name = f"{trained.replace('-', '_')}_{size}_{res}"
    file = f"{model}.b16.npz"
    kaggle = f"kaggle://google/paligemma-2/jax/{model}/1/{file}"
    hugging_face = f"hf://google/{model}-jax/{file}"
    sources = (kaggle, hugging_face)
    return {name: ReleasedFile(f"{name}.bf16.npz", sources, released, res, kind)}


FILES = _files()


def list_names() -> str:
    """Returns the names of released files for a message, those of one task in short."""
    others = [name for name, one in FILES.items() if one.kind != FT]
    return f"{', '.join(others)}, ft_TASK_RES (paligemma-jax fetch --list shows all)"


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
