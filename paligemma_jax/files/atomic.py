"""Small files of a run that appear whole or not at all."""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file in its folder's place of the old one, if any; makes the folder."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """As `write_text`, of bytes."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes nested dictionaries, lists and numbers as JSON; nan and infinities become null."""
    write_text(path, _dumps(value, indent=2) + "\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one line of JSON per row (predictions.jsonl); nan and infinities become null."""
    write_text(path, "".join(_dumps(row) + "\n" for row in rows))


def _dumps(value: Any, *, indent: int | None = None) -> str:
    return json.dumps(_to_json(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
