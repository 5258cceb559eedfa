"""The command line of a data set's conversion."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence

from paligemma_jax.assembly import mask_codecs
from paligemma_jax.data import column_names
from paligemma_jax.importers import example, formats, importing, roboflow, words
from paligemma_jax.tasks import geometry

SEED = 0


def add(parser: argparse.ArgumentParser) -> list[str]:
    """Adds the options of data sets, and returns their names."""
    group = parser.add_argument_group("data sets")
    conventions = sorted(geometry.CONVENTIONS)
    added = [
        group.add_argument("--task", choices=formats.TASKS, help="what rows are made for"),
        group.add_argument("--format", choices=tuple(formats.FORMATS), help="default: is seen"),
        group.add_argument("--images", metavar="FOLDER", help="of the images; default: is found"),
        group.add_argument("--classes", metavar="A,B", help="names where SRC has numbers only"),
        group.add_argument("--columns", metavar="OURS=THEIRS,..", help="as question=q,answer=a"),
        group.add_argument(
            "--components", action="store_true", help="every connected piece of a mask is an object"
        ),
        group.add_argument("--prompt", metavar="TEXT", help="with {classes} or {question}"),
        group.add_argument("--coordinates", choices=conventions, help="of <loc>; default: 1023"),
        group.add_argument(
            "--mask_codec", metavar="FILE", help="writes <seg> tokens; default: the published one"
        ),
        group.add_argument("--split", metavar="NAME=SHARE,..", help="as train=0.8,valid=0.2"),
        group.add_argument(
            "--group", metavar="REGEX", help="images whose names match alike stay in one split"
        ),
        group.add_argument("--seed", type=int, help="of the split; default: 0"),
        group.add_argument(
            "--train_tokenizer",
            action="store_true",
            help="learn a small tokenizer.model from the texts, for a model from scratch",
        ),
    ]
    return [action.dest for action in added]


def check_belongs(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    *,
    weights: Sequence[str],
    data: Sequence[str],
) -> None:
    """Ends with an error for options of weights beside --task, and of data sets without it."""
    others = weights if args.task else data
    if given := [name for name in others if getattr(args, name) not in (None, False)]:
        options = ", ".join(f"--{name}" for name in given)
        kind = "weights, and --task makes SRC a data set" if args.task else "data sets: add --task"
        parser.error(f"{options}: for {kind}")
    if (args.group or args.seed is not None) and not args.split:
        parser.error("--group and --seed say how to divide: add --split train=0.8,valid=0.2")


def hint(source: str) -> str:
    """Returns what to add to an error where SRC is no weights but looks like a data set."""
    name = "Roboflow" if roboflow.is_address(source) else next(iter(formats.see(source)), None)
    return f". It looks like a data set ({name}): add --task detection, ..." if name else ""


def plan(args: argparse.Namespace) -> importing.Plan:
    """Returns what the command line asks for.

    Raises:
      ValueError: a wrong value, or a task that cannot be written.
    """
    is_segmentation = args.task == "segmentation"
    if args.mask_codec and not is_segmentation:
        raise ValueError(f"--mask_codec: for --task segmentation, not {args.task}")
    source = args.mask_codec or mask_codecs.PUBLISHED
    return importing.Plan(
        source=args.source,
        target=args.target,
        task=args.task,
        format=args.format,
        images=args.images,
        classes=tuple(" ".join(name.split()) for name in (args.classes or "").split(",") if name),
        columns=_pairs(args.columns, "--columns", allowed=tuple(column_names.ALIASES)),
        components=args.components,
        prompt=args.prompt,
        coordinates=args.coordinates or geometry.DEFAULT_CONVENTION,
        ratios=_shares(args.split),
        group=args.group,
        seed=SEED if args.seed is None else args.seed,
        codec=load_codec(source) if is_segmentation else None,
        mask_codec=source if is_segmentation else None,
        train_tokenizer=args.train_tokenizer,
    )


def load_codec(source: str) -> words.MaskCodec:
    """Returns the codec that writes the masks of examples; errors as of `mask_codecs.load`."""
    try:
        codec = mask_codecs.load(source)
    except OSError as error:
        error.add_note(f"--mask_codec FILE takes another one, as {mask_codecs.OWN}")
        raise
    return words.MaskCodec(codec.encode, codec.decode)


def check_target(plan: importing.Plan, *, overwrite: bool) -> None:
    """Raises a ValueError if the folder DST may not be written."""
    target, source = plan.target, plan.source
    here, there = target.resolve(), pathlib.Path(source).resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"DST {target} and SRC {source} lie in one another: choose another place")
    if target.exists() and not target.is_dir():
        raise ValueError(f"DST {target} is a file; a data set is a folder")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"DST {target} is there already; --overwrite replaces it")
    if not importing.is_ours(target):
        raise ValueError(
            f"DST {target} holds something else than a converted data set: --overwrite would "
            f"delete it all. Choose another place, or empty it"
        )


def _pairs(text: str | None, option: str, *, allowed: Sequence[str] = ()) -> dict[str, str]:
    found = {}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = part.partition("=")
        if not equals or not value or (allowed and name not in allowed):
            names = f", names {', '.join(allowed)}" if allowed else ""
            raise ValueError(f"{option} {text}: expected name=value,name=value{names}")
        found[name] = value
    return found


def _shares(text: str | None) -> Mapping[str, float]:
    found = {}
    for name, value in _pairs(text, "--split").items():
        if not example.is_split_name(name):
            raise ValueError(f"--split {text}: '{name}' is no name for a file")
        try:
            found[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--split {text}: '{value}' is no share, as 0.8") from error
    return found
