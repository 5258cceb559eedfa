"""Answers that a source has itself, written as a task is trained on them.

One bad object costs that object: it is dropped and named, the others stay. Other spaces and
separators than the canonical ones, and a comma or a point after a label, are written anew and
counted.
"""

from collections.abc import Sequence

import numpy as np

from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import example
from paligemma_jax.tasks import box_text, definition, mask_text

REASONS = mask_text.REASONS | box_text.REASONS
# What `parse` leaves out of an object that it keeps.
LEFT_OUT = {
    "seg_token": "objects written without <seg> tokens, as boxes",
    "extra_seg": "objects written without what follows their 16 <seg> tokens",
}
MARKS = " ,."  # that may stand after a label and belong to no class name


def mend(
    item: example.Example, prefix: str, task: definition.Task, tally: example.Tally
) -> tuple[str, data_objects.Objects | None] | None:
    """Returns an example's own suffix in canonical form and the objects that it names.

    None, and the row is dropped, where the task can read nothing of it.
    """
    suffix, objects = item.suffix or "", item.objects
    if task.grammar is not None:
        asked = box_text.prefix_classes(prefix, verb=task.grammar.verb)
        texts = [text for obj in box_text.cut_objects(suffix) if (text := obj.text)]
        kept = _keep(texts, asked, task, item.source, tally)
        if kept or not texts:
            objects = _choose(objects, list(kept), len(texts), item.source, tally)
            is_canonical = suffix == box_text.SEPARATOR.join(texts)
            if not is_canonical or any(texts[place] != text for place, text in kept.items()):
                tally.changed["suffixes written anew"] += 1
            suffix = box_text.SEPARATOR.join(kept.values())
    if problem := task.check(suffix):
        tally.drop("row", "bad suffix", item.source, f"'{suffix:.60}': {problem}")
        return None
    return suffix, objects


def _keep(
    texts: Sequence[str],
    asked: Sequence[str],
    task: definition.Task,
    source: str,
    tally: example.Tally,
) -> dict[int, str]:
    """Returns {place: canonical text} of the objects that can be read, and drops the others."""
    kept = {}
    for place, text in enumerate(texts):
        read = task.parse(text)
        if not len(read):
            reason = REASONS[next(iter(read.dropped))]
            detail = f"object {place + 1}, '{box_text.shorten(text)}'"
            tally.drop("object", f"it {reason}", source, detail)
            continue
        tally.changed.update({LEFT_OUT[key]: 1 for key in read.dropped})
        kept[place] = _without_mark(task.format(read), asked)
    return kept


def _without_mark(text: str, asked: Sequence[str]) -> str:
    """Returns an object's text without a comma or point after a label that no prompt has so."""
    bare = text.rstrip(MARKS)
    label = text.rpartition(">")[2].strip()
    return text if label in asked or bare.endswith(">") else bare


def _choose(
    objects: data_objects.Objects | None,
    places: Sequence[int],
    num_texts: int,
    source: str,
    tally: example.Tally,
) -> data_objects.Objects | None:
    """Returns the objects at these places of a suffix; none where they are not the suffix's."""
    if objects is None or len(objects) != num_texts:
        if objects is not None:
            detail = f"{len(objects)} beside the {num_texts} of the suffix"
            tally.drop("object list", "not the objects of its suffix", source, detail)
        return None
    if len(places) == num_texts:
        return objects
    return data_objects.select(objects, np.array(places, int))
