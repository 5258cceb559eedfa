"""Answer a prompt about images and videos: JSON lines on standard output, pictures if wanted.

    python -m paligemma_jax.predict --run runs/fracture scans/
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" scan.png
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" \\
        --pictures out/ 'scans/*.png' more_scans/ > answers.jsonl
    python -m paligemma_jax.predict --run runs/fracture --prompt "detect fracture" \\
        --pictures out/ --every 15 clip.mp4
    python -m paligemma_jax.predict --run runs/vqa questions.jsonl
    python -m paligemma_jax.predict --weights mix_3b_448 --prompt "segment cat" cat.png
    python -m paligemma_jax.predict --run runs/vqa --prompt "what changed?" --together a.png b.png

Images are files, folders, globs or addresses (https:// gs:// s3://). Without --prompt they are
asked what the run was trained to be asked: "detect a ; b" with all of its classes, or the one
prompt of all of its examples. The rows of a JSONL have prompts of their own, or all are asked
--prompt; true answers in it are for paligemma_jax.evaluate. The lines have boxes as box_yxyx, in
0..1, and as xyxy, in pixels of the file.
Of a video one frame a second is asked about, or every N-th (--every N); its lines say frame and
time_s. --pictures writes a PNG for each image, and for each video a video of the same speed
(--frames: PNG files). --together asks one question about several images.

Lines come as they are ready; a terminal gets text in their place (--json: lines there too). An
image that cannot be read has "error" in its line, one that cannot be drawn into is named; the
others go on, and the exit status is 1.

--run, --checkpoint and --config as in paligemma_jax.evaluate; --weights alone asks a released model
as it is (paligemma-jax fetch --list names them). How answers are made:
--eval.sampler=beam, --eval.max_new_tokens=64, --eval.batch_size=8. --eval.constrain=task lets the
model say nothing but boxes (or masks) with the prompt's labels, --eval.constrain='["yes", "no"]'
one of these, --eval.constrain=schema.json JSON.
"""

import argparse
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.files import run_folder
from paligemma_jax.prediction import predicting
from paligemma_jax.settings import schema


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    with (
        run_folder.opened(args.run, checkpoints=args.checkpoint is not None) as run,
        run_folder.writing_to(args.pictures) as pictures,
    ):
        has_failed = predicting.predict(_options(args, overrides, run, pictures))
    if has_failed:
        sys.exit(1)


def _options(
    args: argparse.Namespace, overrides: dict[str, list[str]], run: str | None, pictures: str | None
) -> predicting.PredictOptions:
    return predicting.PredictOptions(
        images=args.images,
        prompt=args.prompt,
        run=run,
        config=args.config,
        weights=args.weights,
        checkpoint=args.checkpoint,
        base=args.base,
        pictures=pictures,
        every=args.every,
        frames=args.frames,
        together=args.together,
        as_json=args.json or not sys.stdout.isatty(),
        config_overrides=overrides["config"],
        eval_overrides=overrides["eval"],
    )


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    arguments.add_source(parser)
    parser.add_argument("--prompt", help='the prefix, as "detect fracture"; default: the run\'s')
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


if __name__ == "__main__":
    arguments.run(main)
