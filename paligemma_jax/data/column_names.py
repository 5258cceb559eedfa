"""What the columns of a data set, or the keys of its rows, are called elsewhere."""

from collections.abc import Iterable

# Our name -> what the column may be called.
ALIASES = {
    "image": (
        "image",
        "images",
        "image_path",
        "image_name",
        "file_name",
        "filename",
        "file",
        "path",
        "img",
    ),
    "prefix": ("prefix",),
    "suffix": ("suffix",),
    "question": ("question", "query", "prompt"),
    "answer": ("answer", "response", "output", "multiple_choice_answer", "label", "answers"),
    "caption": ("caption", "captions", "text", "description", "title", "comment"),
    "objects": ("objects",),
    "split": ("split",),
}


def find(ours: str, columns: Iterable[str]) -> str | None:
    """Returns which of the columns is likely ours, whatever its case; None if none is."""
    lowered = {name.strip().lower(): name for name in columns}
    return next((lowered[alias] for alias in ALIASES[ours] if alias in lowered), None)
