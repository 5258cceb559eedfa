"""Convert weights, or a data set: with --task SRC is a data set, without it weights.

    python -m paligemma_jax.convert runs/fracture hf/fracture
    python -m paligemma_jax.convert paligemma2-3b-pt-224.npz hf/pt --variant paligemma2-3b
    python -m paligemma_jax.convert hf/paligemma-3b-mix-224 mix.npz --dtype float16
    python -m paligemma_jax.convert runs/fracture best.npz --checkpoint best
    python -m paligemma_jax.convert runs/fracture openpi.npz --openpi
    python -m paligemma_jax.convert trained.npz whole.npz --base pt_224.f16.npz
    python -m paligemma_jax.convert runs/lora hf/adapter             # LoRA: a folder for PEFT
    python -m paligemma_jax.convert runs/lora hf/whole --merge       # added into the base
    python -m paligemma_jax.convert hf/adapter lora.npz --base pt_3b_224.bf16.npz

Weights: SRC is an npz file, a run's folder or a folder with safetensors; DST is an npz file (by
its ending) or a folder that transformers' PaliGemmaForConditionalGeneration and processor load.
What SRC is and its dimensions are seen from its files. A file of trained arrays only
(save="trainable") is completed by its base: where that lay in training, or --base. Nothing is
downloaded, and one array is in memory at a time.

    python -m paligemma_jax.convert data/coco data/mine --task detection
    python -m paligemma_jax.convert photos.csv data/mine --task caption --split train=0.9,valid=0.1
    python -m paligemma_jax.convert roboflow://workspace/project/3 data/mine --task detection

Data sets: SRC is COCO, YOLO, Pascal VOC, images with masks, JSONL, CSV, parquet or Arrow (seen
from its files), or a version of a Roboflow project; DST is a folder that gets a JSONL file per
split, the images (hard links where the disk is the same, else copies), a contact sheet,
dropped.jsonl, which names everything that was left out, and for segmentation mask_round_trip.jsonl,
which says what is left of every mask.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from paligemma_jax.checkpoints import merge as checkpoints_merge
from paligemma_jax.checkpoints import partial_weights
from paligemma_jax.console import arguments, say
from paligemma_jax.export import adapter, conversion, parity, weights_source
from paligemma_jax.importers import importing, options
from paligemma_jax.wording import quantities

DTYPES = ("float32", "float16", "bfloat16")
# What openpi's loader of PaliGemma weights expects.
OPENPI_PREFIX, OPENPI_DTYPE = "params/", "float32"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    start = time.monotonic()
    result = convert_data(args) if args.task else convert_weights(args)
    result["seconds"] = time.monotonic() - start
    if not sys.stdout.isatty():  # a person was told all of it
        sys.stdout.write(json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST", type=pathlib.Path)
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    weights = add_weights_options(parser)
    data = options.add(parser)
    args = parser.parse_args(argv)
    options.check_belongs(parser, args, weights=weights, data=data)
    if args.openpi and args.dtype not in (None, OPENPI_DTYPE):
        parser.error(f"--openpi means {OPENPI_DTYPE}, not --dtype {args.dtype}")
    if args.openpi and args.target.suffix != ".npz":
        parser.error("--openpi writes an npz file: DST must end in .npz")
    return args


def add_weights_options(parser: argparse.ArgumentParser) -> list[str]:
    """Adds the options of weights, and returns their names."""
    group = parser.add_argument_group("weights")
    add = group.add_argument
    added = [
        arguments.add_checkpoint(group),
        add("--base", metavar="FILE", type=pathlib.Path, help="npz file that completes SRC"),
        add("--merge", action="store_true", help="add LoRA factors into the weights"),
        add("--dtype", choices=DTYPES, help="of all arrays; default: as they are"),
        add("--variant", help="a released model, as paligemma2-3b, or VIT,GEMMA"),
        add("--config", metavar="FILE[:ARG]", help="what the weights were trained with"),
        add("--final_logits_softcap", type=float, metavar="C", help="not what SRC says; 0: none"),
        add("--tokenizer", metavar="FILE", help="sentencepiece; default: beside SRC; 'none'"),
        add("--openpi", action="store_true", help="an npz as openpi reads it"),
        add("--verify", action="store_true", help="compare logits (needs torch, transformers)"),
    ]
    return [action.dest for action in added]


def convert_data(args: argparse.Namespace) -> dict[str, Any]:
    """Converts a data set, and returns what it did."""
    plan = options.plan(args)
    options.check_target(plan, overwrite=args.overwrite)
    return importing.convert(plan)


def convert_weights(args: argparse.Namespace) -> dict[str, Any]:
    """Converts weights, and returns what it did."""
    start = time.monotonic()
    try:
        source = weights_source.find(
            pathlib.Path(args.source), base=args.base, chosen=args.checkpoint
        )
    except ValueError as error:
        raise ValueError(f"{error}{options.hint(args.source)}") from error
    if args.merge:
        source = merge(source)
    if args.verify:
        parity.check_installed()
    check_target(args.target, source, overwrite=args.overwrite)
    if args.target.suffix == ".npz":
        model, written = to_npz(source, args)
    else:
        model, written = to_folder(source, args)
    say.info(
        f"{quantities.count(written.num_arrays, 'arrays')}, "
        f"{quantities.size(written.num_bytes)} in {time.monotonic() - start:.1f} s: "
        f"{source.path} -> {args.target}"
    )
    result = {"arrays": written.num_arrays, "bytes": written.num_bytes}
    return result | (verify(source, args.target, model) if args.verify else {})


def check_target(target: pathlib.Path, source: weights_source.Source, *, overwrite: bool) -> None:
    """Raises a ValueError if DST may not be written: it is SRC, or there and not to be replaced."""
    read = source.weights.files if source.weights else [source.path]
    taken = {path.resolve() for path in (*read, source.path.parent)}
    if target.exists() and target.resolve() in taken:
        raise ValueError(f"DST {target} is where SRC is: choose another place")
    if target.exists() and (target.suffix == ".npz") != target.is_file():
        raise ValueError(f"DST {target} is a {'file' if target.is_file() else 'folder'} already")
    is_taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if is_taken and not overwrite:
        raise ValueError(f"DST {target} is there already; --overwrite replaces it")


def merge(source: weights_source.Source) -> weights_source.Source:
    """Returns the weights of SRC with their LoRA factors added in."""
    if not isinstance(source.weights, partial_weights.Weights) or source.is_peft:
        raise ValueError(f"--merge: {source.path} must be an npz file or a run: convert it first")
    return dataclasses.replace(source, weights=checkpoints_merge.merge(source.weights))


def to_npz(
    source: weights_source.Source, args: argparse.Namespace
) -> tuple[weights_source.Model | None, conversion.Written]:
    """Writes an npz file, and returns the model where it was needed."""
    prefix = OPENPI_PREFIX if args.openpi else ""
    dtype = OPENPI_DTYPE if args.openpi else args.dtype
    if source.weights is None:
        model = describe(source, args)
        done = conversion.from_huggingface(
            source.path, args.target, model, dtype=dtype, prefix=prefix
        )
        return model, done
    if source.is_peft and isinstance(source.weights, partial_weights.Weights):
        check_adapter(args)
        model = describe(source, args)
        return model, adapter.from_peft(source.path, args.target, source.weights, model)
    if args.openpi and checkpoints_merge.describe(source.weights):
        raise ValueError(f"{source.path}: openpi knows no such LoRA factors: add --merge")
    if args.verify:
        raise ValueError("--verify compares with transformers: SRC or DST must be such a folder")
    return None, conversion.rewrite(source.weights, args.target, dtype=dtype, prefix=prefix)


def to_folder(
    source: weights_source.Source, args: argparse.Namespace
) -> tuple[weights_source.Model, conversion.Written]:
    """Writes a folder for transformers, or one for PEFT."""
    if source.weights is None or source.is_peft:
        raise ValueError("SRC and DST are both Hugging Face folders: go through an npz file")
    if isinstance(source.weights, partial_weights.Weights) and checkpoints_merge.describe(
        source.weights
    ):
        check_adapter(args)
        model = describe(source, args)
        return model, adapter.to_peft(source.weights, args.target, model)
    tokenizer = source.tokenizer if args.tokenizer is None else pathlib.Path(args.tokenizer)
    if args.tokenizer == "none" or tokenizer is None:
        tokenizer = None
        say.info(
            "no tokenizer: the model will load, its processor will not. --tokenizer FILE adds it"
        )
    model = describe(source, args)
    return model, conversion.to_huggingface(
        source.weights, args.target, model, dtype=args.dtype, tokenizer=tokenizer
    )


def check_adapter(args: argparse.Namespace) -> None:
    """Raises a ValueError for what has no meaning for low-rank factors alone."""
    for option in ("dtype", "verify", "openpi", "tokenizer"):
        if getattr(args, option):
            raise ValueError(f"--{option} is for whole weights, not for an adapter; see --merge")


def describe(source: weights_source.Source, args: argparse.Namespace) -> weights_source.Model:
    """Returns the model of the weights, and says which it is."""
    model = weights_source.describe(
        source,
        variant=args.variant,
        config=args.config,
        final_logits_softcap=args.final_logits_softcap,
    )
    llm = model.llm
    say.info(
        f"model: {model.res} px, {llm.depth} layers of width {llm.width}, {model.vocab_size} "
        f"pieces; soft-caps: attention {llm.attn_logits_softcap:g}, final "
        f"{llm.final_logits_softcap:g}; query scale: {llm.query_scale}"
    )
    return model


def verify(
    source: weights_source.Source, target: pathlib.Path, model: weights_source.Model | None
) -> dict[str, float]:
    """Compares the logits of SRC and DST, says how far they are apart, and returns that."""
    assert model is not None
    with say.working("comparing logits with those of transformers"):
        if source.weights is None:
            found = parity.compare(partial_weights.find(target), source.path, model)
        else:
            found = parity.compare(source.weights, target, model)
    say.info(
        f"logits differ from transformers' by up to {found.largest:.3g}; the largest is "
        f"{found.largest_logit:.3g}, and {found.max_ratio:g} of it is allowed"
    )
    return {"max_logit_difference": found.largest, "max_logit": found.largest_logit}


if __name__ == "__main__":
    arguments.run(main)
