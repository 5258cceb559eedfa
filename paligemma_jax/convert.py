"""Convert weights: npz files, runs, folders of transformers and PEFT, openpi.

    python -m paligemma_jax.convert runs/fracture hf/fracture
    python -m paligemma_jax.convert paligemma2-3b-pt-224.npz hf/pt --variant paligemma2-3b
    python -m paligemma_jax.convert hf/paligemma-3b-mix-224 mix.npz --dtype float16
    python -m paligemma_jax.convert runs/fracture best.npz --checkpoint best
    python -m paligemma_jax.convert runs/fracture openpi.npz --openpi
    python -m paligemma_jax.convert trained.npz whole.npz --base pt_224.f16.npz
    python -m paligemma_jax.convert runs/lora hf/adapter             # LoRA: a folder for PEFT
    python -m paligemma_jax.convert runs/lora hf/whole --merge       # added into the base
    python -m paligemma_jax.convert hf/adapter lora.npz --base pt_3b_224.bf16.npz
    python -m paligemma_jax.convert hf/moondream2 moondream2.npz     # and the other way

SRC is an npz file, a run's folder or a folder with safetensors; DST is an npz file (by
its ending) or a folder that transformers' PaliGemmaForConditionalGeneration and processor load.
What SRC is and its dimensions are seen from its files. A file of trained arrays only
(save="trainable") is completed by its base: where that lay in training, or --base. Nothing is
downloaded, and one array is in memory at a time. Data sets: `python -m paligemma_jax.import_data`.
"""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.export import converting


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(sys.argv[1:] if argv is None else argv)
    arguments.print_result(converting.convert(converting.ConvertOptions(**vars(args))))


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    if any(word.partition("=")[0] == "--task" for word in words):
        command = shlex.join([*arguments.command("import_data"), *words])
        parser.exit(2, f"error: data sets have a command of their own: {command}\n")
    add = parser.add_argument
    add("source", metavar="SRC")
    add("target", metavar="DST", type=pathlib.Path)
    add("--overwrite", action="store_true", help="replace DST")
    arguments.add_checkpoint(parser)
    add("--base", metavar="FILE", type=pathlib.Path, help="npz file that completes SRC")
    add("--merge", action="store_true", help="add LoRA factors into the weights")
    add("--dtype", choices=converting.DTYPES, help="of all arrays; default: as they are")
    add("--variant", help="a released model, as paligemma2-3b, or VIT,GEMMA")
    add("--config", metavar="FILE[:ARG]", help="what the weights were trained with")
    add("--final_logits_softcap", type=float, metavar="C", help="instead of SRC's own; 0: none")
    add("--tokenizer", metavar="FILE", help="sentencepiece; default: beside SRC; 'none'")
    add("--openpi", action="store_true", help="an npz file as openpi reads it")
    add("--verify", action="store_true", help="compare logits (needs torch, transformers)")
    args = parser.parse_args(words)
    if args.openpi and args.dtype not in (None, converting.OPENPI_DTYPE):
        parser.error(f"--openpi means {converting.OPENPI_DTYPE}, not --dtype {args.dtype}")
    if args.openpi and args.target.suffix != ".npz":
        parser.error("--openpi writes an npz file: DST must end in .npz")
    return args


if __name__ == "__main__":
    arguments.run(main)
