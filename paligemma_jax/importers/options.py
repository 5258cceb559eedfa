"""What to import and how, and the command line that tells it."""

import argparse
import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from paligemma_jax.assembly import weights
from paligemma_jax.data import jsonl
from paligemma_jax.importers import example, formats, formatting, import_report
from paligemma_jax.tasks import geometry, task

SEED = 0
# What an importer needs of the options: the fields of its request, but for the path.
SHARED = tuple(field for field in dataclasses.fields(example.Request) if field.name != "path")


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What to import, and how.

    Attributes:
      source: file, folder, or an address: of Roboflow, Hugging Face, Google Storage, Kaggle.
      target: the folder to write.
      task: what rows are made for, a key of `task.imports()`.
      format: a key of `formats.FORMATS`; None: detected.
      images, classes, columns, components, masks, min_area, drop_wedges, first_class: see
        `example.Request`.
      prompt: template of the prompts; None is the task's own.
      coordinates: convention of `<loc>` tokens.
      only: the split of the source that is taken; None: all.
      first: how many rows are taken; None: all.
      ratios: {split: share} where the source has no splits; {} leaves them together.
      group: regular expression for what must stay in one split, see `splits.group_key`.
      seed: decides the splits.
      codec, mask_codec: turns masks into tokens, and the file that it is; for segmentation.
      train_tokenizer: whether a small tokenizer is learnt from the texts of the first split.
    """

    source: str
    target: pathlib.Path
    task: str
    format: str | None = None
    images: str | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    components: bool = False
    masks: str | None = None
    min_area: int = 0
    drop_wedges: bool = False
    first_class: int | None = None
    prompt: str | None = None
    coordinates: str = geometry.DEFAULT_CONVENTION
    only: str | None = None
    first: int | None = None
    ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)
    group: str | None = None
    seed: int = 0
    codec: formatting.MaskCodec | None = None
    mask_codec: str | None = None
    train_tokenizer: bool = False

    def request(self, source: str) -> example.Request:
        """Returns what an importer needs to read `source`, a path on this machine."""
        shared = {field.name: getattr(self, field.name) for field in SHARED}
        return example.Request(path=source, **shared)


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add = parser.add_argument
    add("source", metavar="SRC", help="file, folder, roboflow:// hf:// gs:// or kaggle://")
    add("target", metavar="DST", type=pathlib.Path, help="the folder to write")
    add("--task", choices=tuple(task.imports()), required=True, help="what rows are made for")
    add("--overwrite", action="store_true", help="replace DST")
    add("--format", choices=tuple(formats.FORMATS), help="default: detected")
    add("--images", metavar="FOLDER", help="of the images; default: detected")
    add("--classes", metavar="A,B", help="names where SRC has numbers only, else those to take")
    add("--columns", metavar="OURS=THEIRS,..", help="as question=q,answer=a")
    add("--components", action="store_true", help="each connected piece of a mask is an object")
    add("--masks", metavar="FOLDER", help="of the masks; default: detected")
    add("--min_area", type=int, help="leaves out pieces of a mask with fewer pixels")
    add("--drop_wedges", action="store_true", help="leaves out triangles at corners of masks")
    add("--first_class", type=int, help="number of the first class; default: masks 1, others 0")
    add("--prompt", metavar="TEXT", help="with {classes} or {question}")
    add("--coordinates", choices=sorted(geometry.CONVENTIONS), help="of <loc>; default: 1023")
    add("--mask_codec", metavar="FILE", help="writes <seg> tokens; default: the published one")
    add("--split", metavar="NAME=SHARE,..", help="as train=0.8,valid=0.2; train: as --only")
    add("--only", metavar="SPLIT", help="takes this split of SRC alone; --split may divide it")
    add("--first", type=int, metavar="N", help="takes so many rows; fetches no more files for them")
    add("--group", metavar="REGEX", help="images whose names match alike stay in one split")
    add("--seed", type=int, help="of the split; default: 0")
    add(
        "--train_tokenizer",
        action="store_true",
        help="learn a small tokenizer.model from the texts, for a model from scratch",
    )


def read(args: argparse.Namespace) -> ImportOptions:
    """Returns the values of the command line, checked before anything is read or written.

    Raises:
      ValueError: a wrong value, options that do not go together, or a DST that may not be written.
    """
    if args.split and "=" not in args.split and not args.only:
        args.only, args.split = args.split, None
    if args.first is not None and args.first < 1:
        raise ValueError(f"--first {args.first}: expected 1 or more")
    if (args.group or args.seed is not None) and not args.split:
        raise ValueError("--group and --seed say how to divide: add --split train=0.8,valid=0.2")
    if not 0 <= (args.first_class or 0) <= example.MAX_CLASS or (args.min_area or 0) < 0:
        raise ValueError(
            f"--min_area and --first_class are numbers from 0 on, the latter up to "
            f"{example.MAX_CLASS}; found {args.min_area}, {args.first_class}"
        )
    if args.group:
        try:
            re.compile(args.group)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"--group '{args.group}' is no regular expression: {error}") from error
    writes_masks = task.rule(args.task).answer == "masks"
    if args.mask_codec and not writes_masks:
        fitting = (name for name, (_, rule) in task.imports().items() if rule.answer == "masks")
        raise ValueError(f"--mask_codec: for --task {' or '.join(fitting)}, not {args.task}")
    source = args.mask_codec or weights.PUBLISHED_CODEC
    check_target(args.target, args.source, overwrite=args.overwrite)
    return ImportOptions(
        source=args.source,
        target=args.target,
        task=args.task,
        format=args.format,
        images=args.images,
        classes=tuple(" ".join(name.split()) for name in (args.classes or "").split(",") if name),
        columns=_pairs(args.columns, "--columns", allowed=tuple(jsonl.COLUMN_ALIASES)),
        components=args.components,
        masks=args.masks,
        min_area=args.min_area or 0,
        drop_wedges=args.drop_wedges,
        first_class=args.first_class,
        prompt=args.prompt,
        coordinates=args.coordinates or geometry.DEFAULT_CONVENTION,
        only=args.only,
        first=args.first,
        ratios=_shares(args.split),
        group=args.group,
        seed=SEED if args.seed is None else args.seed,
        codec=load_codec(source) if writes_masks else None,
        mask_codec=source if writes_masks else None,
        train_tokenizer=args.train_tokenizer,
    )


def load_codec(source: str) -> formatting.MaskCodec:
    """Returns the codec that writes the masks of examples; errors as of `weights.load_codec`."""
    try:
        codec = weights.load_codec(source)
    except OSError as error:
        error.add_note(f"--mask_codec FILE takes another one, as {weights.OWN_CODEC}")
        raise
    return formatting.MaskCodec(codec.encode, codec.decode)


def check_target(target: pathlib.Path, source: str, *, overwrite: bool) -> None:
    """Raises a ValueError if the folder DST may not be written."""
    here, there = target.resolve(), pathlib.Path(source).resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"DST {target} and SRC {source} lie in one another: choose another place")
    if target.exists() and not target.is_dir():
        raise ValueError(f"DST {target} is a file; a data set is a folder")
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"DST {target} is there already; --overwrite replaces it")
    if not (target / import_report.SUMMARY).is_file():
        raise ValueError(
            f"DST {target} holds something else than an imported data set: --overwrite would "
            f"delete it all. Choose another place, or empty it"
        )


def _pairs(text: str | None, option: str, *, allowed: Sequence[str] = ()) -> dict[str, str]:
    pairs = {}
    for part in filter(None, (text or "").split(",")):
        name, equals, value = part.partition("=")
        if not equals or not value or (allowed and name not in allowed):
            names = f", names {', '.join(allowed)}" if allowed else ""
            raise ValueError(f"{option} {text}: expected name=value,name=value{names}")
        pairs[name] = value
    return pairs


def _shares(text: str | None) -> Mapping[str, float]:
    shares = {}
    for name, value in _pairs(text, "--split").items():
        if not example.is_split_name(name):
            raise ValueError(f"--split {text}: '{name}' is no name for a file")
        try:
            shares[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--split {text}: '{value}' is no share, as 0.8") from error
    return shares
