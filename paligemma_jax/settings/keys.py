"""Every config key: its default, its types and what it does, in one table.

configs/README.md is printed from here: `python -m paligemma_jax.settings.keys`. Key names follow
big_vision where the meaning is the same. Those of training data are in input_keys, of augmentation
in augment_keys, of one source of a mixture in source_keys, of one evaluation in eval_keys, of
devices in device_keys, of saving in saving_keys.
"""

import sys

from paligemma_jax.settings import (
    augment_keys,
    device_keys,
    eval_keys,
    input_keys,
    saving_keys,
    source_keys,
    spec,
)

# Every line of the table says them.
Key, NUMBER, OPTIONAL, RULES = spec.Key, spec.NUMBER, spec.OPTIONAL, spec.RULES

KEYS = (
    Key(
        "seed", 0, (int,), "decides the data order, dropout and any random initialization", least=0
    ),
    Key(
        "task",
        "detection",
        (str,),
        "what answers are: detection, segmentation, vqa, caption or json",
    ),
    Key(
        "coordinates",
        "1023",
        (str,),
        "loc convention: x*1023 (big_vision) or x*1024 (HF guide)",
        ("1023", "1024"),
    ),
    Key(
        "mask_codec",
        "gs://big_vision/paligemma/vae-oid.npz",
        (str,),
        "weights that turn <seg> tokens into masks, for segmentation: path or address",
    ),
    Key(
        "res",
        224,
        (int,),
        "side of the square input image in pixels, a multiple of the patch",
        least=1,
    ),
    Key("model.family", "paligemma", (str,), "kind of model: a name in assembly/families.py"),
    Key("model.img.variant", "So400m/14", (str,), "vision tower"),
    Key(
        "model.img.resample_posemb",
        False,
        (bool,),
        "allow a checkpoint of another resolution: resample its position embeddings",
    ),
    Key(
        "model.img.dims",
        None,
        (dict, *OPTIONAL),
        "dimensions that replace the variant's: width, depth, mlp_dim, num_heads, patch_size",
    ),
    Key("model.img.dropout", 0.0, NUMBER, "dropout rate in the vision tower", least=0),
    Key(
        "model.img.attention",
        "xla",
        (str,),
        "what computes attention in the vision tower; cudnn: NVIDIA's fused kernel",
        ("xla", "cudnn"),
    ),
    Key("model.llm.variant", "gemma_2b", (str,), "language model"),
    Key(
        "model.llm.vocab_size",
        257_152,
        (int, *OPTIONAL),
        "rows of the embedding; None: as many as the tokenizer has pieces",
        least=1,
    ),
    Key(
        "model.llm.final_logits_softcap", 0.0, NUMBER, "cap of the final logits; 0 is off", least=0
    ),
    Key("model.llm.dropout", 0.0, NUMBER, "dropout rate in the language model's blocks", least=0),
    Key(
        "model.llm.dims",
        None,
        (dict, *OPTIONAL),
        "dimensions that replace the variant's: width, depth, mlp_dim, num_heads, ...",
    ),
    Key(
        "model.llm.attention",
        "xla",
        (str,),
        "likewise in the language model: of training and of prompts, not of decoding",
        ("xla", "cudnn"),
    ),
    Key(
        "model_init",
        None,
        (str, *OPTIONAL),
        "starting weights: vanity name, path, kaggle:// hf:// https:// gs://; None: random",
    ),
    Key(
        "model_init_base",
        None,
        (str, *OPTIONAL),
        "base of a trainable-only model_init, where it is not what that file names",
    ),
    Key(
        "tokenizer",
        "gs://big_vision/paligemma_tokenizer.model",
        (str,),
        "sentencepiece model: path or address; PaliGemma's own or plain Gemma's",
    ),
    Key(
        "compute_dtype",
        "float32",
        (str,),
        "type of activations and matrix products; float16: of the products alone; auto: what the "
        "device has units for",
        ("float32", "bfloat16", "float16", "auto"),
    ),
    Key(
        "frozen_dtype",
        None,
        (str, *OPTIONAL),
        "type of frozen weights; None: as stored in the file",
        (None, "float32", "bfloat16", "float16"),
    ),
    Key(
        "quantize",
        None,
        (str, *RULES, *OPTIONAL),
        "hold frozen weights in 8 or 4 bits, to train others beside them or to predict: one of "
        "these for all, or rules [(regex, one)]",
        (None, "int8", "nf4"),
        rule_types=(str, *OPTIONAL),
    ),
    Key(
        "cache_dtype",
        "float32",
        (str,),
        "type of the key-value cache while decoding",
        ("float32", "bfloat16", "float16"),
    ),
    Key(
        "remat_policy",
        "auto",
        (str,),
        "what the backward pass keeps: a name of jax.checkpoint_policies; none: everything; auto: "
        "the products with weights, where memory allows, else nothing",
    ),
    *input_keys.KEYS,
    *augment_keys.KEYS,
    Key(
        "total_steps", None, (int, *OPTIONAL), "length of the run; one of the three is set", least=0
    ),
    Key(
        "total_epochs",
        None,
        (*NUMBER, *OPTIONAL),
        "length of the run in passes over the data; of a mixture: in sums of all its rows",
        least=0,
    ),
    Key("total_examples", None, (int, *OPTIONAL), "length of the run in examples", least=0),
    Key(
        "stop_at",
        None,
        (*RULES, *OPTIONAL),
        "end the run once evaluations reach all of these: [('valid/map50', 0.9)]",
        rule_types=NUMBER,
    ),
    Key(
        "accumulation_steps",
        1,
        (int,),
        "micro-batches per step; the result equals the big batch",
        least=1,
    ),
    Key(
        "trainable",
        None,
        (str, *OPTIONAL),
        "regex on parameter names: short form of schedule; the rest is frozen",
    ),
    Key(
        "lora.targets",
        None,
        (str, *OPTIONAL),
        "low-rank factors beside these weights, the base frozen: regex, llm, hf_compat; None: none",
    ),
    Key("lora.rank", 8, (int,), "length of the axis that joins a pair of factors", least=1),
    Key("lora.alpha", 8.0, NUMBER, "the product of a pair is multiplied by alpha / rank", least=0),
    Key("lora.dropout", 0.0, NUMBER, "dropout rate on what the factors see", least=0),
    Key("lora.rank_stabilized", False, (bool,), "multiply by alpha / sqrt(rank) instead"),
    Key(
        "schedule",
        {"decay_type": "cosine", "warmup_percent": 0.1},
        (dict, *RULES),
        "learning-rate schedule, or rules [(regex, schedule | None)]; None is frozen",
        rule_types=(dict, *OPTIONAL),
    ),
    Key(
        "schedule_offset",
        0,
        (int,),
        "schedule counts from 0 (big_vision's trainer) or 1 (Colab)",
        least=0,
    ),
    Key(
        "optax_name",
        "scale_by_adam",
        (str,),
        "optimizer: sgd, momentum, scale_by_adam (AdamW where wd is set), ...",
    ),
    Key("optax", {}, (dict,), "the optimizer's own arguments"),
    Key("lr", 1e-5, NUMBER, "learning rate at the top of the schedule", least=0),
    Key(
        "wd",
        None,
        (*NUMBER, *OPTIONAL),
        "weight decay, times the schedule and not times lr",
        least=0,
    ),
    Key(
        "lr_mults",
        None,
        (*RULES, *OPTIONAL),
        "rules [(regex, factor)] on the learning rate",
        rule_types=NUMBER,
    ),
    Key(
        "wd_mults",
        None,
        (*RULES, *OPTIONAL),
        "rules [(regex, factor)] on the weight decay; None: kernels only, as big_vision",
        rule_types=NUMBER,
    ),
    Key(
        "grad_clip_norm", None, (*NUMBER, *OPTIONAL), "clip gradients to this global norm", least=0
    ),
    Key(
        "ema_decay",
        None,
        (*NUMBER, *OPTIONAL),
        "keep a moving average of what is trained, as 0.999: evaluations and final.npz are of it",
    ),
    Key("label_smoothing", 0.0, NUMBER, "probability given to all other tokens together", least=0),
    *device_keys.KEYS,
    Key(
        "save",
        None,
        (str, *OPTIONAL),
        "what final.npz holds: all weights, or the trained ones, which model_init completes; None: "
        "those with LoRA or quantize on a model_init, else all",
        (None, "all", "trainable"),
    ),
    Key("log_training_steps", 10, (int,), "a row of training metrics every so many steps", least=1),
    *saving_keys.KEYS,
    Key("evals", {}, (dict,), "evaluations by name: dict(fname=..., log_percent=1/8, ...)"),
)


def names() -> list[str]:
    """Returns the names of all keys."""
    return [key.name for key in KEYS]


def markdown() -> str:
    """Returns the reference table of all keys, for configs/README.md."""
    lines = ["| key | default | what it does |", "| --- | --- | --- |"]
    rows = [(key.name, key) for key in KEYS]
    rows += [(f"input.mixture.NAME.{key.name}", key) for key in source_keys.KEYS]
    rows += [(f"evals.NAME.{key.name}", key) for key in eval_keys.KEYS]
    for name, key in rows:
        choices = " (" + ", ".join(map(str, key.choices)) + ")" if key.choices else ""
        default = str(key.default).replace("|", "\\|")
        doc = key.doc.replace("|", "\\|")
        lines.append(f"| `{name}` | `{default}` | {doc}{choices} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
