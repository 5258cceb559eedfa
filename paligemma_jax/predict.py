"""Answer a prompt about images and videos: JSON lines on standard output, pictures if wanted.

    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" scan.png
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" \\
        --pictures out/ 'scans/*.png' more_scans/ > answers.jsonl
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" \\
        --pictures out/ --every 15 clip.mp4
    python -m paligemma_jax.predict --run runs/vqa questions.jsonl
    python -m paligemma_jax.predict --run runs/vqa --prompt "what changed?" --together a.png b.png

Images are files, folders, globs or addresses (https:// gs:// s3://). The rows of a JSONL have
prompts of their own, or all are asked --prompt; true answers in it are for paligemma_jax.evaluate.
Of a video one frame a second is asked about, or every N-th (--every N); its lines say frame and
time_s. --pictures writes a PNG for each image, and for each video a video of the same speed
(--frames: PNG files). --together asks one question about several images.

Lines come as they are ready; a terminal gets text in their place (--json: lines there too). An
image that cannot be read has "error" in its line, one that cannot be drawn into is named; the
others go on, and the exit status is 1.

--run, --checkpoint and --config as in paligemma_jax.evaluate; how answers are made:
--eval.sampler=beam, --eval.max_new_tokens=64, --eval.batch_size=8. --eval.constrain=task lets the
model say nothing but boxes (or masks) with the prompt's labels, --eval.constrain='["yes", "no"]'
one of these, --eval.constrain=schema.json JSON.
"""

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.assembly import assembly
from paligemma_jax.console import arguments, say
from paligemma_jax.prediction import annotated, predictor, queries
from paligemma_jax.settings import load, schema
from paligemma_jax.wording import quantities

NOT_DECODING = ("fname", "image_dir", "num_examples", "decode", "scores")
BATCH_SIZE = 8
NAME = "predict"  # of the evaluation whose keys say how to answer


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    settings, source = assembly.open_run(args.run, args.config, overrides["config"])
    source = assembly.choose_weights(args.weights, source, chosen=args.checkpoint)
    check_decoding(overrides["eval"])
    settings = load.with_evaluation(settings, NAME, "(command line)", overrides["eval"])
    decoding = settings.evals[NAME]
    if args.pictures:
        assembly.check_writable(pathlib.Path(args.pictures), option="--pictures")
    chosen, rates = queries.find(
        args.images, settings, prompt=args.prompt, every=args.every, together=args.together
    )
    most = max(query.num_images for query in chosen)
    if most > settings.input.max_images:
        say.warning(f"{most} images at once: in training there were {settings.input.max_images}")
    opened = predictor.open_predictor(
        assembly.assemble(settings),
        source,
        decoding,
        base=args.base,
        batch_size=decoding.batch_size or min(BATCH_SIZE, len(chosen)),
        prompts=[query.record.prefix for query in chosen],
    )
    with contextlib.ExitStack() as stack:
        drawn = None
        if args.pictures:
            videos = {} if args.frames else rates
            drawn = annotated.Annotator(pathlib.Path(args.pictures), chosen, videos)
            stack.enter_context(drawn)
        num_failed = answer(opened, chosen, drawn, as_json=args.json or not sys.stdout.isatty())
    if drawn:
        say.info(f"pictures: {quantities.count(drawn.num_files, 'files')} in {args.pictures}")
    if num_failed:
        say.error(f"{num_failed} of {len(chosen)} could not be read, or not drawn")
        sys.exit(1)


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    arguments.add_source(parser)
    parser.add_argument("--prompt", help='the prefix, as "detect fracture"')
    parser.add_argument("--pictures", metavar="FOLDER", help="write annotated pictures there")
    parser.add_argument("--every", type=int, metavar="N", help="of videos every N-th frame")
    parser.add_argument("--frames", action="store_true", help="PNG files, not videos")
    parser.add_argument("--together", action="store_true", help="all images are one question's")
    parser.add_argument("--json", action="store_true", help="JSON lines on a terminal too")
    parser.add_argument("images", nargs="+", help="files, folders, globs or addresses")
    args, overrides = arguments.parse(
        parser, argv, groups={"config": schema.names(), "eval": schema.eval_names()}
    )
    if args.every is not None and args.every < 1:
        parser.error(f"--every {args.every}: expected 1 or more")
    if args.frames and not args.pictures:
        parser.error("--frames says what --pictures writes: give that")
    return args, overrides


def check_decoding(overrides: Sequence[str]) -> None:
    """Raises a ValueError for keys of evaluations that say nothing about how to answer."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in NOT_DECODING or key.startswith("log_"):
            raise ValueError(f"--eval.{key} has no effect on predictions; it is for evaluations")


def answer(
    opened: predictor.Predictor,
    chosen: Sequence[queries.Query],
    drawn: annotated.Annotator | None,
    *,
    as_json: bool,
) -> int:
    """Writes all answers as they come, and returns how many could not be made, or not drawn."""
    num_failed = 0
    with say.progress("answering", unit="examples", first="compiling") as report:
        for row in opened.iterate(chosen, progress=report):
            if as_json:
                sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
                sys.stdout.flush()
            else:
                say.result(describe(row) + "\n")
            if "error" in row:
                num_failed += 1
                if as_json:
                    say.warning(f"{row['source']}: {row['error']}")
            if drawn:
                try:
                    drawn.add(row)
                except ValueError as error:
                    num_failed += 1
                    say.warning(str(error))
    return num_failed


def describe(row: Mapping[str, Any]) -> str:
    """Returns a row as a person reads it: the answer, its boxes, and how sure it is."""
    if "error" in row:
        return f"{row['source']}\n  error: {row['error']}"
    lines = [row["source"], f"  {row['prediction'] or '(empty)'}"]
    if found := row.get("detections"):
        table = [
            (one["label"], f"{one['score']:.2f}", *(f"{side:.3f}" for side in one["box_yxyx"]))
            for one in found
        ]
        text = say.table(table, header=("label", "score", "top", "left", "bottom", "right"))
        lines += ["", *(f"  {line}" for line in text.splitlines()), ""]
    facts = [f"logp {row['logp']:.2f}", quantities.count(row["tokens"], "tokens")]
    if not row["stopped"]:
        facts[-1] += ", cut off there: --eval.max_new_tokens gives more room"
    facts += [f"left out: {n} {reason}" for reason, n in (row.get("dropped") or {}).items()]
    return "\n".join([*lines, f"  ({'; '.join(facts)})"])


if __name__ == "__main__":
    arguments.run(main)
