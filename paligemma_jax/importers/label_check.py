"""The check of every import: what a source says of its images must be in the rows.

Labels that no importer finds look like images without objects, and a model that is trained on these
learns to answer nothing. So rows without any object are an error, and so is a source of which less
than one label, answer or image in a hundred arrived.
"""

from collections.abc import Mapping, Sequence

from paligemma_jax.console import say
from paligemma_jax.importers import example, import_report, splits
from paligemma_jax.tasks import definition
from paligemma_jax.tasks import task as tasks
from paligemma_jax.wording import phrases

MIN_SHARE = 0.01
MAX_SHOWN = 12
# What is dropped (`example.Drop.what`) and would have been an object, or several.
LABELS = ("object", "mask", "label file")
REMEDY = "Correct the source, or name the right places: --format, --images, --classes, --columns"


def check(
    rows: Sequence[splits.Row], tally: example.Tally, *, source: str, task: str, searched: str
) -> None:
    """Raises a ValueError if nothing, or almost nothing, of a source arrived in its rows.

    Args:
      rows: that would be written.
      tally: what was read and dropped.
      source: for the error.
      task: what rows are made for, as `--task` calls it.
      searched: where the importer looked for labels or answers.
    """
    problem = None
    if not rows:
        problem = "nothing is left to write"
    elif _has_objects(task):
        problem = _check_objects(rows, tally)
    problem = problem or _check_rows(rows, tally)
    if problem:
        what = "objects" if _has_objects(task) else "texts"
        lines = (
            f"{source}: {problem}",
            *import_report.change_lines(tally.changed),
            *import_report.drop_lines(tally),
            f"searched {what}: {searched}",
            REMEDY,
        )
        raise ValueError("\n".join(lines))


def warn_of_empty_splits(parts: Mapping[str, Sequence[splits.Row]], *, task: str) -> None:
    """Warns of splits without an object, where others have some."""
    empty = [split for split, rows in parts.items() if not sum(map(_count_objects, rows))]
    if _has_objects(task) and empty and len(empty) < len(parts):
        names = ", ".join(f"{split} ({len(parts[split])} images)" for split in empty)
        say.warning(f"no object in any image of {names}: are its labels missing?")


def warn_of_unused_classes(classes: Sequence[str], rows: Sequence[splits.Row]) -> None:
    """Warns of classes that every prompt asks for and no row has."""
    kept = [row.line["objects"] for row in rows if "objects" in row.line]
    used = {one["label"] for objects in kept for one in objects}
    unused = [name for name in classes if name not in used]
    if kept and unused:
        shown = ", ".join(unused[:MAX_SHOWN]) + ", ..." * (len(unused) > MAX_SHOWN)
        say.warning(
            f"{phrases.count(len(unused), 'classes')} of {len(classes)} in every prompt and in "
            f"no row: {shown}. A model learns not to find them: --prompt 'detect a ; b' names "
            f"others"
        )


def _has_objects(task: str) -> bool:
    return tasks.rule(task).source == definition.OBJECTS


def _check_objects(rows: Sequence[splits.Row], tally: example.Tally) -> str | None:
    num_kept = sum(map(_count_objects, rows))
    num_lost = sum(drop.what in LABELS for drop in tally.drops)
    if num_kept == 0:
        of = f" (of {num_lost} that the source has)" if num_lost else ""
        return f"no row has an object{of}; {phrases.count(len(rows), 'images')} without any"
    if num_kept < MIN_SHARE * (num_kept + num_lost):
        return f"only {num_kept} of {num_kept + num_lost} objects arrived in the rows"
    return None


def _check_rows(rows: Sequence[splits.Row], tally: example.Tally) -> str | None:
    for what in ("images", "rows", "captions"):
        if len(rows) < MIN_SHARE * tally.read[what]:
            return f"only {len(rows)} of {tally.read[what]} {what} can be used"
    return None


def _count_objects(row: splits.Row) -> int:
    """Returns the number of objects; a suffix from the source counts as one."""
    if "objects" in row.line:
        return len(row.line["objects"])
    return int(bool(row.line["suffix"].strip()))
