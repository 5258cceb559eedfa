"""Label, or correct labels, in the browser: a page over a data set, keyboard first.

    python -m paligemma_jax.label photos/ --classes "cat,dog"
    python -m paligemma_jax.label data/mine/train.jsonl
    python -m paligemma_jax.label frames/ --task vqa --templates events.json
    python -m paligemma_jax.label data/coco --task detection --out data/mine
    python -m paligemma_jax.label photos/ --run runs/mine --train_every 50

DATA is JSONL of ours, a folder with such files, a folder of images (their rows are written into
labels.jsonl there), or a data set of another tool with --task and --out: it is imported first, and
what it became is labelled. Boxes, polygons, masks, counts, questions, captions; every change is
written at once, and a process that is killed loses nothing: what it did is in DATA's folder, in
.labelling/journal.jsonl. Task and classes are seen from the rows that are there, and can be changed
on the page. --templates names a JSON file with any of classes, questions, answers, events, phases,
format (pairs, json, sentence, words).

--run names a model that proposes answers for what has no label: one key takes them. With
--other_run images can be ordered by how much the two disagree. Train, or --train_every N rows,
trains --model (or the run's) on what is done, in the background; its proposals then take the place
of the first.

The page is for this machine alone. --host 0.0.0.0 opens it to others, with --token only: the page
asks for the secret that PALIGEMMA_JAX_LABEL_TOKEN holds. Several labellers open the same address,
each with a name of their own.
"""

import argparse
import pathlib
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.labelling import labelling
from paligemma_jax.settings import presets

OF_TRAINING = ("method", "epochs", "res", "train_every")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    labelling.label(labelling.LabelOptions(**vars(args)))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("data", metavar="DATA", type=pathlib.Path, help="JSONL, or a folder")
    add("--task", help="detection, segmentation, counting, vqa or caption; default: as rows are")
    add("--classes", metavar="A,B", help="names of objects, for the keys 1 to 9")
    add("--prompt", metavar="TEXT", help="with {classes} or {question}")
    add("--templates", metavar="FILE", type=pathlib.Path, help="JSON: questions, events, phases")
    add("--out", metavar="FOLDER", type=pathlib.Path, help="DATA of another tool is imported there")
    add("--run", metavar="FOLDER", help="of the model that proposes answers")
    add("--other_run", metavar="FOLDER", help="of a second one, to see where they disagree")
    add("--model", metavar="NAME", help="what training starts from, as of train; default: --run")
    add("--method", choices=tuple(presets.METHODS), help="what training trains; default: attention")
    add("--epochs", type=float, help="of training, as of train")
    add("--res", type=int, metavar="PX", help="of training, as of train")
    add("--train_every", type=int, metavar="N", help="train whenever N more rows are done")
    add("--tokenizer", metavar="FILE", help="counts tokens; default: DATA's, or the small base's")
    add("--text_len", type=int, help="tokens that prompt and answer have room for; default: 128")
    add("--mask_codec", metavar="FILE", help="writes <seg> tokens; default: the published one")
    add("--host", default=labelling.HOST, help="to listen at; default: this machine alone")
    add(
        "--port", type=int, default=labelling.PORT, help="0: one that is free; default: %(default)s"
    )
    add("--token", action="store_true", dest="with_token", help="ask for a secret: see above")
    args = parser.parse_args(argv)
    if args.text_len is not None and args.text_len < 1:
        parser.error(f"--text_len {args.text_len}: expected 1 or more")
    if not 0 <= args.port < 2**16:
        parser.error(f"--port {args.port}: expected 0 to {2**16 - 1}")
    if args.other_run and not args.run:
        parser.error("--other_run is compared with --run: give that too")
    training = [name for name in OF_TRAINING if getattr(args, name) is not None]
    if training and not (args.run or args.model):
        parser.error(f"--{training[0]} is of training: say on what, --model NAME or --run FOLDER")
    for name in ("epochs", "res", "train_every"):
        if (value := getattr(args, name)) is not None and value <= 0:
            parser.error(f"--{name} {value:g}: expected more than 0")
    return args


if __name__ == "__main__":
    arguments.run(main)
