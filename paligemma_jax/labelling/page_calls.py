"""What the labelling page asks for, and what it gets: dictionaries of JSON, in and out.

Nothing of HTTP is here, and nothing that a page sends is trusted.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.assembly import weights
from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import formatting
from paligemma_jax.labelling import (
    data_opening,
    label_models,
    page_settings,
    row_store,
    row_texts,
    served_images,
)
from paligemma_jax.tasks import definition
from paligemma_jax.wording import phrases

Row = dict[str, Any]
Item = row_store.Item

MAX_NAME, MAX_TEXT, MAX_BATCH = 60, 20_000, 100_000
MAX_OBJECTS = 5_000
SHOWN_TEXT = 120  # letters of an answer in the list
PRESENT_S = 30.0  # a labeller who asked for nothing so long is gone
NOT_LABELLED, BEGUN, DONE = 0, 1, 2


class Calls:
    """Everything that the page can ask of a data set.

    Args:
      store: the data set.
      settings: of the page.
      reader: what the model reads rows with.
      codec: address or path of the mask codec.

    Attributes:
      models: what proposes and trains; None: nothing does.
    """

    def __init__(
        self,
        store: row_store.Store,
        settings: page_settings.PageSettings,
        *,
        reader: row_texts.Reader,
        codec: str,
    ):
        self.store, self.reader = store, reader
        self.models: label_models.Models | None = None
        self.images = served_images.Images(store.folder)
        self._codec = codec
        self._lock = threading.Lock()
        self._present: dict[str, tuple[str, float]] = {}
        self._set(settings)

    def _set(self, settings: page_settings.PageSettings) -> None:
        self.offered = settings
        self.writer = row_texts.Writer(
            settings.task, settings.classes, prompt=settings.prompt, load_codec=self.load_codec
        )

    def load_codec(self) -> formatting.MaskCodec:
        codec = weights.codec_of_task(self._codec)
        return formatting.MaskCodec(codec.encode, codec.decode)

    def state(self, _: Mapping[str, Any]) -> Row:
        """Returns everything but what one image holds."""
        mark, _items = self.store.changed_since(0)
        return {
            "name": self.store.folder.resolve().name,
            "settings": dataclasses.asdict(self.offered),
            "usual_prompt": self.writer.rule.prompt,
            "answer": self.writer.rule.answer,
            "asks": "question" in self.writer.rule.fields,
            "formats": page_settings.FORMATS,
            "items": [self.summary(item) for item in self.store.items()],
            "mark": mark,
            "can_add": data_opening.NEW_ROWS,
            "model": self.models.status() if self.models else None,
        }

    def summary(self, item: Item) -> list[Any]:
        """Returns an item as the list has it: key, image, status, by, revision, labels, text."""
        status = DONE if item.is_done else BEGUN if item.is_labelled else NOT_LABELLED
        row = item.row or {}
        text = row.get("suffix") if isinstance(row.get("suffix"), str) else ""
        kept = row.get("objects")
        if isinstance(kept, list):
            labels = [str(one.get("label")) for one in kept if isinstance(one, dict)]
        elif self.writer.rule.answer in ("boxes", "masks") and text:
            labels = self.writer.task.labels(self.writer.task.parse(text))
        else:
            labels = []
        by = str(item.about.get("by", ""))
        name = " ".join(item.images) or "(no image)"
        return [item.key, name, status, by, item.revision, labels, str(text)[:SHOWN_TEXT]]

    def item(self, asked: Mapping[str, Any]) -> Row:
        """Returns what an image holds, to be shown and changed."""
        return self._whole(self.store.get(_text(asked, "key")))

    def _whole(self, item: Item) -> Row:
        row = item.row or {}
        shown: Row = {
            "summary": self.summary(item),
            "images": item.images,
            "number": self.store.number(item.key),
            "prefix": row.get("prefix"),
            "usual_prefix": self.writer.usual_prefix(),
            "suffix": row.get("suffix"),
            "about": item.about,
            "width": None,
            "height": None,
            "objects": None,
            "reads": row_texts.explain(row, self.reader) if item.is_labelled else None,
            "proposal": self.models.proposal(item) if self.models else None,
            "problem": None,
        }
        try:
            size = self._size(item)
            if len(item.images) == 1:
                shown["width"], shown["height"] = size()
            shown["objects"] = self.writer.read_objects(item.row, size)
        except (ValueError, OSError) as error:
            shown["problem"] = phrases.visible(str(error))
        return shown

    def _size(self, item: Item) -> Callable[[], tuple[int, int]]:
        def size() -> tuple[int, int]:
            return self.images.size(item.images[0])

        return size

    def save(self, asked: Mapping[str, Any]) -> Row:
        """Saves the answer of an image; `done`: whether nothing is missing."""
        item = self.store.get(_text(asked, "key"))
        by, revision = _name(asked), _number(asked, "revision")
        edit = self._edit(item, revision, _answer(asked), by, is_done=asked.get("done") is True)
        self.store.change([edit], by=by)
        self._tell_models()
        return self._whole(self.store.get(item.key)) | self._stacks(by)

    def batch(self, asked: Mapping[str, Any]) -> Row:
        """Saves one answer for many images, at once."""
        by, answer = _name(asked), _answer(asked)
        chosen = asked.get("items")
        if not isinstance(chosen, list) or not 0 < len(chosen) <= MAX_BATCH:
            raise ValueError(f"items: expected 1 to {MAX_BATCH} of them")
        edits = []
        for one in chosen:
            if not isinstance(one, dict):
                raise ValueError("items: expected objects with key and revision")
            item = self.store.get(_text(one, "key"))
            edits.append(self._edit(item, _number(one, "revision"), answer, by, is_done=True))
        self.store.change(edits, by=by)
        self._tell_models()
        return self._changed([edit.key for edit in edits]) | self._stacks(by)

    def _tell_models(self) -> None:
        if self.models:
            self.models.labelled(self.offered.task)

    def _edit(
        self, item: Item, revision: int, answer: row_texts.Answer, by: str, *, is_done: bool
    ) -> row_store.Edit:
        row = self.writer.write(item.row, answer, images=item.images, size=self._size(item))
        made = row_store.make_about(by, revision + 1, is_done=is_done)
        return row_store.Edit(item.key, revision, row | {row_store.ABOUT: made})

    def undo(self, asked: Mapping[str, Any]) -> Row:
        by = _name(asked)
        entry = self.store.undo(by=by)
        return self._changed([one.key for one in entry.changes] if entry else []) | self._stacks(by)

    def redo(self, asked: Mapping[str, Any]) -> Row:
        by = _name(asked)
        entry = self.store.redo(by=by)
        return self._changed([one.key for one in entry.changes] if entry else []) | self._stacks(by)

    def changes(self, asked: Mapping[str, Any]) -> Row:
        """Returns what changed since a mark, who is at which image, and how the models are."""
        by, now = _name(asked), time.monotonic()
        at = _text(asked, "at", empty=True)
        if self.models and at:
            self.models.focus(self.store.number(at))
        with self._lock:
            self._present[by] = (at, now)
            others = {
                name: key
                for name, (key, seen) in self._present.items()
                if name != by and now - seen < PRESENT_S
            }
        mark, items = self.store.changed_since(_number(asked, "since"))
        return {
            "mark": mark,
            "items": [self.summary(item) for item in items],
            "others": others,
            "written": self.store.is_written,
            "write_error": self.store.write_error,
            "settings": dataclasses.asdict(self.offered),
            "model": self.models.status() if self.models else None,
        } | self._stacks(by)

    def _changed(self, keys: Sequence[str]) -> Row:
        return {"items": [self.summary(self.store.get(key)) for key in keys], "keys": keys}

    def _stacks(self, by: str) -> Row:
        return {"steps": self.store.steps(by)}

    def change_settings(self, asked: Mapping[str, Any]) -> Row:
        """Sets the page; rows whose prompt was the usual one get the new one, as one change."""
        by, values = _name(asked), asked.get("settings")
        if not isinstance(values, dict):
            raise ValueError("settings: expected an object")
        before = self.writer
        changed = self.offered.change(values, where="settings")
        is_written = before.rule.answer in ("boxes", "masks")
        for name in changed.classes if is_written else ():
            if problem := formatting.find_problem(name):
                raise ValueError(f"class '{name}' cannot be written in an answer: {problem}")
        with self._lock:
            self._set(changed)
            path = self.store.folder / data_opening.BESIDE / page_settings.FILE
            page_settings.write(path, changed)
        self._rewrite_prompts(before, by)
        return self.state(asked)

    def _rewrite_prompts(self, before: row_texts.Writer, by: str) -> None:
        old, new = before.usual_prefix(), self.writer.usual_prefix()
        if old == new or before.rule.source != definition.OBJECTS:
            return
        edits = [
            row_store.Edit(
                item.key,
                item.revision,
                item.row
                | {
                    "prefix": new,
                    row_store.ABOUT: item.about | {"revision": item.revision + 1},
                },
            )
            for item in self.store.items()
            if item.row and item.about and item.row.get("prefix") == old
        ]
        if edits:
            self.store.change(edits, by=by)

    def add(self, asked: Mapping[str, Any]) -> Row:
        """Makes one more row for the images of an item: another question."""
        item = self.store.get(_text(asked, "key"))
        added = self.store.add(item.file, item.images)
        return self._whole(added)

    def upload(self, name: str, data: bytes) -> Row:
        """Takes an image into the data set's folder."""
        added = self.images.add(name, data)
        return {"summary": self.summary(self.store.add(data_opening.NEW_ROWS, (added,)))}

    def explain(self, asked: Mapping[str, Any]) -> Row:
        """Returns how a prompt and an answer are read, before they are saved."""
        row = {key: _text(asked, key, empty=True) for key in ("prefix", "suffix")}
        return row_texts.explain(row, self.reader)

    def check(self, _: Mapping[str, Any]) -> Row:
        """Returns what `check` finds."""
        found_here = row_texts.check(self.store.items(), self.writer, self.reader)
        return {"findings": [dataclasses.asdict(one) for one in found_here]}

    def train(self, asked: Mapping[str, Any]) -> Row:
        """Begins a round of training on what is labelled."""
        if self.models is None:
            raise ValueError("no model: start with --run FOLDER or --model NAME")
        _name(asked)
        self.models.train(self.offered.task)
        return {"model": self.models.status()}

    def numbers(self, _: Mapping[str, Any]) -> Row:
        """Returns by item how much models doubt and disagree, to order images by."""
        return {"numbers": self.models.numbers() if self.models else {}}


def _answer(asked: Mapping[str, Any]) -> row_texts.Answer:
    objects = asked.get("objects")
    if objects is not None and (not isinstance(objects, list) or len(objects) > MAX_OBJECTS):
        raise ValueError(f"objects: expected a list of up to {MAX_OBJECTS}")
    kept = objects and [
        {key: one[key] for key in data_objects.KEYS if one.get(key) is not None}
        if isinstance(one, dict)
        else one
        for one in objects
    ]
    texts = {
        name: None if asked.get(name) is None else _text(asked, name, empty=True)
        for name in ("text", "prefix", "question")
    }
    return row_texts.Answer(objects=objects if not objects else kept, **texts)


def _name(asked: Mapping[str, Any]) -> str:
    """Returns the name of who asks."""
    name = " ".join(_text(asked, "by").split())
    if len(name) > MAX_NAME or phrases.visible(name) != name:
        raise ValueError(f"by: expected a name of up to {MAX_NAME} letters, found {name!r:.80}")
    return name


def _text(asked: Mapping[str, Any], key: str, *, empty: bool = False) -> str:
    value = asked.get(key)
    if not isinstance(value, str) or len(value) > MAX_TEXT or not (value.strip() or empty):
        raise ValueError(f"{key}: expected a text of up to {MAX_TEXT} letters, found {value!r:.80}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{key}: holds half a letter that UTF-8 cannot keep") from error
    return value


def _number(asked: Mapping[str, Any], key: str) -> int:
    value = asked.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if type(value) is not int or value < 0:
        raise ValueError(f"{key}: expected a number from 0 on, found {value!r:.80}")
    return value
