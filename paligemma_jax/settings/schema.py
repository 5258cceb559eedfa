"""Every config key, once: a field of a frozen class, with its type, default, range and one line.

docs/configs.md is printed from here: `python -m paligemma_jax.settings.schema`. The names follow
big_vision where the meaning is the same. A config file fills these in as a ConfigDict (presets),
which `load` turns into `Settings`.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from paligemma_jax.settings import keys

# Every line of the classes needs these.
Rules, key = keys.Rules, keys.key

# Instead of a file to evaluate on: the examples that are trained on.
INPUT = "input"
# Of keys that may be paths, what is none: these, addresses, and names of released files.
NO_PATHS = (INPUT, "task", "(command line)")

# A duration that is not given, beside None: any negative number, as in big_vision. A sweep may
# thus take a duration back.
NOT_GIVEN = -1

Class = TypeVar("Class")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImgSettings:
    """The vision tower, `model.img.*`."""

    variant: str = key("So400m/14", "vision tower")
    resample_posemb: bool = key(
        False, "allow a checkpoint of another resolution: resample its position embeddings"
    )
    dims: Mapping[str, Any] | None = key(
        None, "dimensions that replace the variant's: width, depth, mlp_dim, num_heads, patch_size"
    )
    dropout: float = key(0.0, "dropout rate in the vision tower", least=0)
    attention: str = key(
        "xla",
        "what computes attention in the vision tower; cudnn: NVIDIA's fused kernel",
        choices=("xla", "cudnn"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlmSettings:
    """The language model, `model.llm.*`."""

    variant: str = key("gemma_2b", "language model")
    vocab_size: int | None = key(
        257_152, "rows of the embedding; None: as many as the tokenizer has pieces", least=1
    )
    final_logits_softcap: float = key(0.0, "cap of the final logits; 0 is off", least=0)
    dropout: float = key(0.0, "dropout rate in the language model's blocks", least=0)
    dims: Mapping[str, Any] | None = key(
        None, "dimensions that replace the variant's: width, depth, mlp_dim, num_heads, ..."
    )
    attention: str = key(
        "xla",
        "likewise in the language model: of training and of prompts, not of decoding",
        choices=("xla", "cudnn"),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model and its two towers, `model.*`."""

    family: str = key("paligemma", "kind of model: a name in assembly/model_functions.py")
    img: ImgSettings = dataclasses.field(default_factory=ImgSettings)
    llm: LlmSettings = dataclasses.field(default_factory=LlmSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """One training set, `input.data.*`."""

    fname: str | None = key(None, "training set: a JSONL file, or its address", is_path=True)
    image_dir: str | None = key(
        None, "folder that holds the images; None: the JSONL file's folder", is_path=True
    )
    fields: Mapping[str, str] = key(
        {"image": "image", "prefix": "prefix", "suffix": "suffix"},
        "the JSONL's names for image, prefix and suffix",
    )
    prefix_template: str | None = key(
        None,
        "prompt made from the row, as 'answer en {question}', a list's texts a tab apart; None: "
        "the prefix as it is",
    )
    about: str | None = key(
        None, "what this data must be: said where a file is missing, or rows lack a key"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """One source of a mixture, `input.mixture.NAME.*`."""

    fname: str = dataclasses.field(metadata=keys.about("data set: a JSONL file", is_path=True))
    weight: float = key(1.0, "its part of the examples, relative to the other sources'")
    image_dir: str | None = key(None, "its images; None: beside its own JSONL file", is_path=True)
    fields: Mapping[str, str] | None = key(None, "its names; None: those of input.data.fields")
    prefix_template: str | None = key(
        None, "its prompts; None: those of input.data.prefix_template"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes of training examples, `input.augment.*`; all off. Ranges: data.augment."""

    flip_lr: float = key(0.0, "probability of a flip left to right")
    flip_ud: float = key(0.0, "probability of a flip upside down")
    crop: float | None = key(
        None,
        "crop to between this share of the image's area and all of it; None: no crop",
    )
    aspect: float = key(1.0, "stretch by up to this factor, along either side")
    scale: tuple[float, ...] | None = key(
        None,
        "magnify by (least, most); below 1 the image is smaller, on black; None: 1",
    )
    min_visible: float = key(
        0.3,
        "a box of which a smaller share stays in the picture leaves the answer",
    )
    brightness: float = key(0.0, "factor in 1 - x .. 1 + x")
    contrast: float = key(0.0, "factor in 1 - x .. 1 + x")
    saturation: float = key(0.0, "factor in 1 - x .. 1 + x")
    jpeg_quality: int | None = key(None, "compress with a quality from this to 100; None: do not")
    shuffle_objects: bool = key(False, "name an answer's objects in random order")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Training data, `input.*`."""

    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    mixture: Mapping[str, SourceSettings] = key(
        {},
        "several training sets by name, instead of input.data.fname: dict(fname=..., weight=2.0)",
    )
    num_examples: int | None = key(
        None, "use only the first so many rows, of a mixture of each source; None: all", least=1
    )
    batch_size: int = key(8, "examples per step, over all devices and processes", least=1)
    text_len: int = key(128, "tokens of prefix and suffix together, with bos, \\n, eos", least=1)
    max_images: int = key(1, "image slots per example; unused ones are masked", least=1)
    lowercase: bool = key(False, "lower-case prefix and suffix, as the Colabs do")
    antialias: bool = key(
        True, "resize images with antialiasing; False: as some of PaliGemma's transfers were made"
    )
    draw_answers: bool = key(
        False, "train on one of a row's answers, each time another, instead of its suffix"
    )
    allow_truncation: bool = key(False, "accept examples that lose their eos")
    num_workers: int | None = key(None, "threads that decode images; None: all cores", least=1)
    noise_piece: str | None = key(
        None,
        "fill detection answers up with boxes of noise, this piece ('<unused0>') being their class",
    )
    text_lens: tuple[int, ...] | None = key(
        None,
        "up to three lengths below text_len, as [32, 64]: a batch gets the smallest that its "
        "texts fit, and the step is compiled for each; None: always text_len",
    )
    embedding_cache: str | None = key(
        None,
        "embed every image once, and keep that on the disk in this type; needs a frozen vision "
        "tower and images that nothing changes; None: embed in every step",
        choices=(None, "float32", "bfloat16", "float16"),
    )
    embedding_cache_gb: float = key(
        100.0,
        "the most that the embeddings of a run may take on the disk; 1 MB an image in bfloat16 "
        "at 224 px",
        least=0,
    )
    augment: AugmentSettings = dataclasses.field(default_factory=AugmentSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank factors, `lora.*`."""

    targets: str | None = key(
        None,
        "low-rank factors beside these weights, the base frozen: regex, llm, hf_compat; None: none",
    )
    rank: int = key(8, "length of the axis that joins a pair of factors", least=1)
    alpha: float = key(8.0, "the product of a pair is multiplied by alpha / rank", least=0)
    dropout: float = key(0.0, "dropout rate on what the factors see", least=0)
    rank_stabilized: bool = key(False, "multiply by alpha / sqrt(rank) instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """One evaluation, `evals.NAME.*`."""

    fname: str = dataclasses.field(
        metadata=keys.about(
            f"data set: a JSONL file, or '{INPUT}': what is trained on", is_path=True
        )
    )
    image_dir: str | None = key(None, "its images; None: beside its own JSONL file", is_path=True)
    log_steps: int | None = key(
        None, "how often; one of four, and always after the last", least=NOT_GIVEN
    )
    log_epochs: float | None = key(
        None, "how often, in passes over the training data", least=NOT_GIVEN
    )
    log_examples: int | None = key(None, "how often, in training examples", least=NOT_GIVEN)
    log_percent: float | None = key(None, "how often, as a fraction of the run", least=NOT_GIVEN)
    batch_size: int | None = key(None, "None: the training batch size", least=1)
    num_examples: int | None = key(None, "use only the first so many rows; None: all", least=1)
    decode: bool = key(True, "write and score answers; False: validation loss only")
    scores: tuple[str, ...] | None = key(
        None, "scores of answers in words, the leading one first; None: the task's usual ones"
    )
    max_new_tokens: int | None = key(
        None, "None: the longest true answer, and 16 more or a little over", least=1
    )
    sampler: str = key(
        "greedy", "how tokens are chosen", choices=("greedy", "temperature", "nucleus", "beam")
    )
    temperature: float = key(1.0, "of the samplers temperature and nucleus")
    top_p: float = key(1.0, "probability mass that the sampler nucleus keeps")
    beam_size: int = key(4, "of the sampler beam", least=1)
    constrain: str | tuple[Any, ...] | None = key(
        None,
        "hold answers to a grammar: 'task' (boxes or masks with the labels that the prompt "
        "names), a list (of labels, or of whole answers), or the path of a JSON schema; None: "
        "free",
        is_path=True,
    )
    best_of: int = key(1, "sample so many answers and keep the likeliest", least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a config says, complete and checked; see `settings.load`."""

    seed: int = key(0, "decides the data order, dropout and any random initialization", least=0)
    task: str = key(
        "detection",
        "what answers are: detection, segmentation, vqa, caption, json, or mixed: any of these",
    )
    coordinates: str = key(
        "1023", "loc convention: x*1023 (big_vision) or x*1024 (HF guide)", choices=("1023", "1024")
    )
    mask_codec: str = key(
        "gs://big_vision/paligemma/vae-oid.npz",
        "weights that turn <seg> tokens into masks, for segmentation: path or address",
        is_path=True,
    )
    res: int = key(
        224, "side of the square input image in pixels, a multiple of the patch", least=1
    )
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    model_init: str | None = key(
        None,
        "starting weights: published name, npz file, run, folder of transformers or PEFT, "
        "kaggle:// hf:// https:// gs:// s3://; None: random",
        is_path=True,
    )
    model_init_base: str | None = key(
        None,
        "base of a trainable-only model_init, where it is not what that file names",
        is_path=True,
    )
    tokenizer: str = key(
        "gs://big_vision/paligemma_tokenizer.model",
        "sentencepiece model: path or address; PaliGemma's own or plain Gemma's",
        is_path=True,
    )
    compute_dtype: str = key(
        "float32",
        "type of activations and matrix products; float16: of the products alone; auto: what "
        "the device has units for",
        choices=("float32", "bfloat16", "float16", "auto"),
    )
    frozen_dtype: str | None = key(
        None,
        "type of frozen weights; None: as stored in the file",
        choices=(None, "float32", "bfloat16", "float16"),
    )
    quantize: str | Rules[str | None] | None = key(
        None,
        "hold frozen weights in 8 or 4 bits, to train others beside them or to predict: one of "
        "these for all, or rules [(regex, one)]",
        choices=(None, "int8", "nf4"),
    )
    cache_dtype: str = key(
        "float32",
        "type of the key-value cache while decoding; auto: what the device has units for",
        choices=("float32", "bfloat16", "float16", "auto"),
    )
    remat_policy: str = key(
        "auto",
        "what the backward pass keeps: a name of jax.checkpoint_policies; none: everything; "
        "segment_inputs_saveable: the input of every second or third layer; "
        "auto: the products with weights, where memory allows, else less",
    )
    input: InputSettings = dataclasses.field(default_factory=InputSettings)
    total_steps: int | None = key(
        None,
        "length of the run; one of the three is set. -1 is None, as of all durations",
        least=NOT_GIVEN,
    )
    total_epochs: float | None = key(
        None,
        "length of the run in passes over the data; of a mixture: in sums of all its rows",
        least=NOT_GIVEN,
    )
    total_examples: int | None = key(None, "length of the run in examples", least=NOT_GIVEN)
    stop_at: Rules[float] | None = key(
        None, "end the run once evaluations reach all of these: [('valid/map50', 0.9)]"
    )
    optimizer_in_backward: bool = key(
        False,
        "update the layers' weights in the backward pass, where their gradients are made: these "
        "never exist together. On one device, without grad_clip_norm and accumulation_steps, for "
        "an optax_name that looks at each number by itself",
    )
    accumulation_steps: int = key(
        1, "micro-batches per step; the result equals the big batch", least=1
    )
    trainable: str | None = key(
        None, "regex on parameter names: short form of schedule; the rest is frozen"
    )
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    schedule: Mapping[str, Any] | Rules[Mapping[str, Any] | None] = key(
        {"decay_type": "cosine", "warmup_percent": 0.1},
        "learning-rate schedule, or rules [(regex, schedule | None)]; None is frozen",
    )
    schedule_offset: int = key(
        0, "schedule counts from 0 (big_vision's trainer) or 1 (Colab)", least=0
    )
    optax_name: str = key(
        "scale_by_adam", "optimizer: sgd, momentum, scale_by_adam (AdamW where wd is set), ..."
    )
    optax: Mapping[str, Any] = key({}, "the optimizer's own arguments")
    lr: float = key(1e-5, "learning rate at the top of the schedule", least=0)
    wd: float | None = key(None, "weight decay, times the schedule and not times lr", least=0)
    lr_mults: Rules[float] | None = key(None, "rules [(regex, factor)] on the learning rate")
    wd_mults: Rules[float] | None = key(
        None, "rules [(regex, factor)] on the weight decay; None: kernels only, as big_vision"
    )
    grad_clip_norm: float | None = key(None, "clip gradients to this global norm", least=0)
    ema_decay: float | None = key(
        None,
        "keep a moving average of what is trained, as 0.999: evaluations and final.npz are of it",
    )
    loss_mean: str = key(
        "examples",
        "loss of a batch: mean over examples of each answer's mean, or over all answers' tokens",
        choices=("examples", "tokens"),
    )
    label_smoothing: float = key(0.0, "probability given to all other tokens together", least=0)
    mesh: Rules[int] = key(
        (("data", -1),), "axes of the device mesh; -1: all devices that are left"
    )
    sharding_strategy: Rules[str | tuple[Any, ...]] = key(
        ((".*", "fsdp"),),
        "rules [(regex, tactic)]; a tactic is replicate, fsdp, fsdp(axis='data', "
        "min_size_to_shard_mb=4), an axis (fsdp over it), shard_dim(axis='model', dim=-1), "
        "several of these joined by | (one after the other), or the axis of each dimension: "
        "(None, 'data')",
    )
    profile_steps: int = key(
        0, "write a profiler trace of so many steps, from the third on, into profile/", least=0
    )
    allow_over_memory: bool = key(
        False, "start even if the memory plan finds that the run does not fit"
    )
    save: str | None = key(
        None,
        "what final.npz holds: all weights, or the trained ones, which model_init completes; "
        "None: those with LoRA or quantize on a model_init, else all",
        choices=(None, "all", "trainable"),
    )
    log_training_steps: int = key(10, "a row of training metrics every so many steps", least=1)
    trackers: tuple[str, ...] = key(
        ("tensorboard",),
        "what gets the run's numbers beside metrics.jsonl: tensorboard, wandb, mlflow",
    )
    ckpt_steps: int | None = key(
        None,
        "save the run's state every so many steps; 0: only when it stops; none of the four: "
        "ten times a run",
        least=NOT_GIVEN,
    )
    ckpt_epochs: float | None = key(None, "how often, in passes over the data", least=NOT_GIVEN)
    ckpt_examples: int | None = key(None, "how often, in examples", least=NOT_GIVEN)
    ckpt_percent: float | None = key(None, "how often, as a fraction of the run", least=NOT_GIVEN)
    keep_last: int = key(2, "checkpoints that stay: so many of the newest", least=1)
    keep_every: int | None = key(None, "also save, and keep for good, every so many steps", least=1)
    keep_best: str | None = key(
        None, "also save, and keep, after the best evaluation: valid/map50; of valid/loss the least"
    )
    evals: Mapping[str, EvalSettings] = key(
        {}, "evaluations by name: dict(fname=..., log_percent=1/8, ...)"
    )


KEYS = keys.keys_of(Settings)
EVAL_KEYS = keys.keys_of(EvalSettings)
SOURCE_KEYS = keys.keys_of(SourceSettings)


def names() -> list[str]:
    """Returns the names of all keys."""
    return [one.name for one in KEYS]


def eval_names() -> list[str]:
    """Returns the names of the keys of an evaluation."""
    return [one.name for one in EVAL_KEYS]


def replace(settings: Class, changes: Mapping[str, Any]) -> Class:
    """Returns settings with other values, by dotted key: {"input.batch_size": 4}."""
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if not hasattr(settings, first):
            raise ValueError(f"{type(settings).__name__} has no key '{first}'")
        inner = replace(getattr(settings, first), {rest: value}) if rest else value
        settings = dataclasses.replace(cast(Any, settings), **{first: inner})
    return settings


def markdown() -> str:
    """Returns the reference table of all keys, for docs/configs.md."""
    groups = {"": KEYS, "input.mixture.NAME.": SOURCE_KEYS, "evals.NAME.": EVAL_KEYS}
    return keys.markdown(groups)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
