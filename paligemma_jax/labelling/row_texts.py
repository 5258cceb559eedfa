"""What a labeller draws and writes, as a row that training reads; and how a model will read it.

Rows are made by what makes them of imported data sets, and held to the rules of `check`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.checks import findings, lint
from paligemma_jax.data import objects as data_objects
from paligemma_jax.data import prefix_lm, records, tokens
from paligemma_jax.importers import example, formatting
from paligemma_jax.labelling import row_store
from paligemma_jax.tasks import box_text, mask_text, task

Row = dict[str, Any]
Objects = data_objects.Objects

OBJECT_ANSWERS = ("boxes", "masks", "counts")
OWN_KEYS = ("width", "height", "objects", "suffix", "prefix", row_store.ABOUT)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a labeller says of an image.

    Attributes:
      objects: as a row has them; None: the answer is text.
      text: the answer in words.
      prefix: the whole prompt; None: the row's own, else that of the data set.
      question: what a prompt is made of, where there is no prefix.
    """

    objects: Sequence[Any] | None = None
    text: str | None = None
    prefix: str | None = None
    question: str | None = None


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a model reads rows with.

    Attributes:
      tokenizer: of the model.
      name: where it is from.
      text_len: tokens that a row has room for.
      lowercase: as the settings have it.
    """

    tokenizer: tokens.Tokenizer
    name: str
    text_len: int
    lowercase: bool = False


class Writer:
    """Makes rows for a task.

    Args:
      task_name: a value of `import_data --task`.
      classes: names that prompts ask for, in their order.
      prompt: template of prompts; None: the task's own.
      load_codec: returns the mask codec; called when the first mask is written or read.
    """

    def __init__(
        self,
        task_name: str,
        classes: Sequence[str],
        *,
        prompt: str | None = None,
        load_codec: Callable[[], formatting.MaskCodec] | None = None,
    ):
        self.task_name, self.classes, self.prompt = task_name, tuple(classes), prompt
        self.rule, self.task = task.rule(task_name), task.trained_as(task_name)
        self._load_codec = load_codec
        self._formatter = formatting.Formatter(task_name, self.classes, prompt=prompt)

    @property
    def draws(self) -> bool:
        """Whether answers are made of objects."""
        return self.rule.answer in OBJECT_ANSWERS

    def usual_prefix(self, question: str | None = None) -> str:
        """Returns the prompt of an image."""
        values = {"classes": box_text.SEPARATOR.join(self.classes), "question": question or ""}
        return records.fill_template(self._formatter.template, values)[0]

    def write(self, row: Row | None, answer: Answer, *, images: Sequence[str], size: Any) -> Row:
        """Returns a row with an answer; what else the row had stays.

        Args:
          row: as it was; None for a new one.
          answer: of the labeller.
          images: of the row.
          size: () -> (width, height) of the one image, asked for objects only.

        Raises:
          ValueError: an answer that training or `check` would refuse, with what to do.
        """
        kept = {key: value for key, value in (row or {}).items() if key not in OWN_KEYS}
        start = {"image": images[0] if len(images) == 1 else list(images) or None} | kept
        prefix = answer.prefix if answer.prefix is not None else (row or {}).get("prefix")
        if answer.question is not None or not isinstance(prefix, str) or not prefix.strip():
            prefix = self.usual_prefix(answer.question)
        prefix = str(prefix)
        if answer.objects is None:
            made = start | {"prefix": prefix, "suffix": answer.text or ""}
        else:
            made = start | self._of_objects(answer.objects, prefix, images, size)
        if problem := self.task.check(str(made["suffix"])):
            raise ValueError(f"the answer {problem}")
        return made

    def _of_objects(
        self, objects: Sequence[Any], prefix: str, images: Sequence[str], size: Any
    ) -> Row:
        if len(images) != 1:
            raise ValueError(f"objects need one image, and the row has {len(images)}")
        width, height = size()
        drawn = data_objects.from_row({"width": width, "height": height, "objects": list(objects)})
        for label in drawn.labels:
            if problem := formatting.find_problem(label):
                raise ValueError(f"class '{label}' cannot be written in an answer: {problem}")
        if self.rule.answer == "masks":
            self._formatter.codec = self._codec()
        tally = example.Tally()
        source = images[0]
        item = example.Example(example.Picture(source), source, objects=drawn, prefix=prefix)
        texts = self._formatter.make(item, tally)
        if tally.drops or texts is None:
            wrong = "; ".join(f"{one.reason}: {one.detail}" for one in tally.drops)
            raise ValueError(f"{wrong}: draw it again or remove it")
        row: Row = {"prefix": texts.prefix, "suffix": texts.suffix}
        return row | data_objects.to_row(texts.objects if texts.objects is not None else drawn)

    def read_objects(self, row: Mapping[str, Any] | None, size: Any) -> list[Row] | None:
        """Returns the objects of a row, in pixels; None where its answer is text.

        Those that the row keeps; else what its suffix says, where it can be read.
        """
        if row is None or not self.draws:
            return [] if row is None and self.draws else None
        if row.get("objects") is not None:
            return data_objects.to_row(data_objects.from_row(row))["objects"]
        suffix = row.get("suffix")
        if not isinstance(suffix, str) or self.rule.answer == "counts":
            return [] if suffix is None else None
        width, height = size()
        if self.rule.answer == "masks":
            segments = mask_text.parse(suffix)
            regions = mask_text.paste(
                segments, self._codec().decode if len(segments) else _no_masks,
                height=height, width=width,
            )  # fmt: skip
            outlines = [data_objects.encode_bitmap(mask) for mask in regions.masks]
            return _in_pixels(regions.boxes_yxyx, regions.labels, width, height, outlines)
        read = box_text.parse(suffix)
        return _in_pixels(read.boxes_yxyx, read.labels, width, height)

    def _codec(self) -> formatting.MaskCodec:
        if self._load_codec is None:
            raise ValueError("masks need a codec: --mask_codec FILE")
        return self._load_codec()


def _no_masks(codes: Any) -> Any:
    return codes


def _in_pixels(
    boxes: Any,
    labels: Sequence[str],
    width: int,
    height: int,
    outlines: Sequence[str] | None = None,
) -> list[Row]:
    sides = [height, width, height, width]
    pixels = (boxes * sides)[:, [1, 0, 3, 2]]
    return data_objects.to_row(data_objects.make(width, height, labels, pixels, outlines))[
        "objects"
    ]


def explain(row: Mapping[str, Any], reader: Reader) -> Row:
    """Returns how a model reads a row: its pieces, which of them it learns, and whether eos fits.

    Returns:
      pieces: [[piece, part, is it learnt]]; part is "prefix" or "suffix"; needed, text_len;
      fits: whether eos has room; tokenizer: its name.
    """
    prefix, suffix, _ = prefix_lm.clean(
        str(row.get("prefix") or ""), str(row.get("suffix") or ""), lowercase=reader.lowercase
    )
    head = reader.tokenizer.encode_prompt(prefix)
    needed = len(head) + len(reader.tokenizer.encode_answer(suffix))
    made = prefix_lm.encode_training(
        reader.tokenizer, prefix, suffix, text_len=reader.text_len, allow_truncation=True
    )
    pieces = [
        [
            reader.tokenizer.piece(made["text"][i]),
            "suffix" if made["mask_ar"][i] else "prefix",
            bool(made["mask_loss"][i]),
        ]
        for i in range(int(made["mask_input"].sum()))
    ]
    return {
        "pieces": pieces,
        "needed": needed,
        "text_len": reader.text_len,
        "fits": needed <= reader.text_len,
        "tokenizer": reader.name,
    }


def check(
    items: Sequence[row_store.Item], writer: Writer, reader: Reader | None
) -> list[findings.Finding]:
    """Returns what `check` finds in the rows that are labelled."""
    labelled = [
        records.Record(
            item.images,
            str((item.row or {}).get("prefix") or ""),
            str((item.row or {}).get("suffix") or ""),
            source=item.key,
        )
        for item in items
        if item.is_labelled
    ]
    if not labelled:
        return []
    used = writer.task
    answered = [used.labels(used.parse(one.suffix or "")) for one in labelled]
    verb = used.grammar.verb if used.grammar else ""
    asked = [box_text.prefix_classes(one.prefix, verb=verb) if verb else [] for one in labelled]
    data = lint.DataSet("labels", labelled, answered, asked, is_training=True)
    problems = lint.suffixes("labels", labelled, parse=used.parse, check=used.check)
    problems += [*lint.prompts(data), *lint.spellings([data]), *lint.balance([data])]
    problems += lint.other_task([data], used.name)
    if reader:
        measured = prefix_lm.length_report(
            labelled, reader.tokenizer, text_len=reader.text_len, lowercase=reader.lowercase
        )
        suggested = measured.suggested_text_len
        problems += lint.lengths("labels", measured, suggested=suggested, allow_truncation=False)
    return problems
