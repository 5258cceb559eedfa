"""The data of a run without a config: JSONL that is there, or an import; validation data too."""

import argparse
import dataclasses
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.data import jsonl, locations, records, tokens
from paligemma_jax.files import atomic
from paligemma_jax.importers import (
    columns,
    importing,
    likely_task,
    options,
    remote,
    roboflow,
    splits,
)
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

TRAIN, VALID = "train", "valid"
INSIDE = "dataset"  # of an export for PaliGemma, where Roboflow puts its files
SHARE, SMALL, SHARE_OF_SMALL = 0.1, 200, 0.2  # of the rows that become the validation set
FEWEST = 5  # rows that are divided; of fewer, all are trained on and evaluated
SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data to train on.

    Attributes:
      folder: of the JSONL files.
      train, valid: their names; valid None: there is none, nor can it be made.
      task: what answers are.
      image_dir: of the images, if not beside the files.
      keys: of the settings, that these data need.
      examples: all that is trained and evaluated on, the former first.
      num_train: how many are trained on.
    """

    folder: pathlib.Path
    train: str
    valid: str | None
    task: str
    image_dir: str | None = None
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: Sequence[records.Record] = ()
    num_train: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is said about data on the command line; None, or empty: it is looked for.

    Attributes:
      data: a folder, a file or an address.
      task: as `import_data --task` calls it.
      words: further ones for `import_data`.
      images: folder of the images, if it is another one than that of the data.
    """

    data: str
    task: str | None = None
    words: Sequence[str] = ()
    images: str | None = None


def find(wanted: Wanted, out: pathlib.Path) -> Data:
    """Returns data to train on; what has to be written for them goes into the folder `out`.

    Raises:
      ValueError: nothing there that is known, or data that cannot be imported.
    """
    own = find_own(pathlib.Path(wanted.data))
    if wanted.task and not (own and task.is_one(wanted.task)):
        task.rule(wanted.task)  # says what else there is
    if own is None:
        return _import(wanted, out)
    if wanted.words:
        raise ValueError(
            f"{shlex.join(wanted.words)}: for data sets of other tools, and {wanted.data} has rows "
            f"with image, prefix and suffix already: leave it out"
        )
    train, valid = own
    rows = [row for _, row in _rows(train)]
    texts = [[str(row[key]) for row in rows[:1000]] for key in ("prefix", "suffix")]
    name = wanted.task or task.likely(*texts)
    name = name if task.is_one(name) else task.trained_as(name).name
    say.info(
        f"data: {train} has rows with image, prefix and suffix; task: {name}"
        + ("" if wanted.task else ", as the answers look (--task chooses)")
    )
    return _with_validation(
        Data(
            folder=train.parent,
            train=train.name,
            valid=valid and valid.name,
            task=name,
            image_dir=os.path.abspath(wanted.images) if wanted.images else None,
        ),
        out,
    )


def find_own(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None] | None:
    """Returns the JSONL files of training and validation; None where there are none of ours."""
    folder = path.parent if path.is_file() else path
    if not path.exists():
        return None
    files = [one for one in sorted(folder.glob("*.jsonl")) if one.name not in jsonl.NOT_DATA]
    if path.is_file() and path not in files:
        return None
    if not files and (folder / INSIDE).is_dir():
        return find_own(folder / INSIDE)
    files = [one for one in files if _is_own(one)]
    named = {columns.split_of(str(one)): one for one in reversed(files)}
    train = path if path.is_file() else named.get(TRAIN)
    if train is None and len(files) == 1:
        train = files[0]
    if train is None or train not in files:
        return None
    valid = named.get(VALID)
    return train, valid if valid != train else None


def _is_own(file: pathlib.Path) -> bool:
    first = next(_rows(file), (0, {}))[1]
    return all(name in first for name in records.KEYS)


def _rows(file: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the line, row) of the lines that are rows; others show when it is read."""
    try:
        for number, line in jsonl.read_lines(str(file)):
            row, _ = jsonl.parse_line(line)
            if row is not None:
                yield number, row
    except ValueError:
        return


def _import(wanted: Wanted, out: pathlib.Path) -> Data:
    """Imports a data set of another tool into `out`."""
    name = wanted.task
    if name is None and roboflow.is_address(wanted.data):
        raise ValueError(f"{wanted.data}: {likely_task.HINT}")
    if name is None:
        where = wanted.data
        if remote.is_address(where):
            where = str(remote.fetch(where, split=None, first=None))
        name, reason = likely_task.find(where)
        say.info(f"task: {name} ({reason}; --task chooses)")
    parser = argparse.ArgumentParser(prog="--data", allow_abbrev=False)
    options.add(parser)
    words = [wanted.data, str(out), "--task", name, "--overwrite", *wanted.words]
    words += ["--images", wanted.images] if wanted.images else []
    chosen = options.read(parser.parse_args(words))
    summary = importing.import_data(chosen)
    rule = task.rule(name)
    keys: dict[str, Any] = {}
    if chosen.mask_codec:
        is_path = not locations.is_address(chosen.mask_codec)
        keys["mask_codec"] = os.path.abspath(chosen.mask_codec) if is_path else chosen.mask_codec
    if rule.scores:
        keys["evals.valid.scores"] = list(rule.scores)
    parts = list(summary["rows"])
    train = TRAIN if TRAIN in parts else parts[0]
    data = Data(
        folder=out,
        train=f"{train}.jsonl",
        valid=f"{VALID}.jsonl" if VALID in parts and train != VALID else None,
        task=task.trained_as(name).name,
        keys=keys,
    )
    return _with_validation(data, out)


def _with_validation(data: Data, out: pathlib.Path) -> Data:
    """Returns data that have a validation set, divided from the training set if need be."""
    check = task.look_up(data.task).check
    file = data.folder / data.train
    read = records.read_jsonl(file, check=check, image_dir=data.image_dir)
    if data.valid:
        valid = records.read_jsonl(data.folder / data.valid, check=check, image_dir=data.image_dir)
        say.info(f"data: {len(read)} examples to train on, {len(valid)} to validate")
        return dataclasses.replace(data, examples=(*read, *valid), num_train=len(read))
    data = dataclasses.replace(data, examples=tuple(read), num_train=len(read))
    parts = _divide([row for _, row in _rows(file)], read)
    if parts is None:
        say.warning(
            f"data: {phrases.count(len(read), 'examples')}, too few to divide: evaluations are of "
            f"what is trained on"
        )
        return data
    out.mkdir(parents=True, exist_ok=True)
    for name in (VALID, TRAIN):
        atomic.write_jsonl(out / f"{name}.jsonl", parts[name])
    counts = [len(parts[name]) for name in (TRAIN, VALID)]
    say.info(
        f"data: {counts[0]} examples to train on; {counts[1]} kept out of {file.name} to validate, "
        f"none with an image of the others"
    )
    is_elsewhere = out.resolve() != data.folder.resolve()
    return dataclasses.replace(
        data,
        folder=out,
        train=f"{TRAIN}.jsonl",
        valid=f"{VALID}.jsonl",
        num_train=counts[0],
        image_dir=data.image_dir or (str(data.folder.absolute()) if is_elsewhere else None),
    )


def _divide(
    rows: Sequence[dict[str, Any]], read: Sequence[records.Record]
) -> dict[str, list[dict[str, Any]]] | None:
    """Returns split -> rows, those of equal images in one split; None if there is no such way."""
    if len(rows) < FEWEST:
        return None
    share = SHARE if len(rows) >= SMALL else SHARE_OF_SMALL
    ratios = {TRAIN: 1 - share, VALID: share}
    places = [one.images[0] if len(one.images) == 1 else "" for one in read]
    try:
        if all(place and not locations.is_address(place) for place in places):
            lines = [
                splits.Row(row, place, pathlib.Path(place).name, None)
                for row, place in zip(rows, places, strict=True)
            ]
            parts = splits.divide(lines, pathlib.Path(), ratios=ratios, group=None, seed=SEED)
            return {name: [one.line for one in part] for name, part in parts.items()}
        groups = ["\0".join(one.images) or one.source for one in read]
        chosen = splits.assign(groups, ratios=ratios, seed=SEED)
    except ValueError as error:
        say.warning(f"data: {error}")
        return None
    return {
        name: [row for row, split in zip(rows, chosen, strict=True) if split == name]
        for name in ratios
    }


def tokenizer_beside(data: Data, out: pathlib.Path) -> pathlib.Path:
    """Returns the tokenizer beside data; where there is none, one is learnt from their texts."""
    beside = data.folder / importing.TOKENIZER
    if beside.exists():
        return beside
    texts = [text for one in data.examples for text in (one.prefix, one.suffix or "")]
    out.mkdir(parents=True, exist_ok=True)
    made = tokens.train_tokenizer(texts, out / importing.TOKENIZER)
    say.info(f"tokenizer: {made.vocab_size} pieces learnt from the texts: a model from nothing")
    return out / importing.TOKENIZER
