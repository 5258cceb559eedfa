"""Data sets at rest: one JSON object per line, images beside the file.

A line is what Roboflow and big_vision's JSONL export hold:

    {"image": "a.png", "prefix": "detect cat", "suffix": "<loc0100><loc0200><loc0300><loc0400> cat"}

`image` is a path or an address (gs:// s3:// https://), a list of these (several images), or null or
[] (text only). A row may also keep the objects that its suffix was made of, as importers write
them: see `objects`. Other keys stay with the row as `extra`. Everything but the pixels is checked
when the file is read, and every bad line is counted: a row is never skipped.
"""

import dataclasses
import os
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from paligemma_jax.data import jsonl, locations
from paligemma_jax.data import objects as data_objects

KEYS = {"image": "image", "prefix": "prefix", "suffix": "suffix"}
OBJECTS_KEYS = ("width", "height", "objects")
PROGRESS_LINES = 1000
BETWEEN_CHOICES = " \t "  # in a prompt: as in big_vision's transfers with choices
MISSING, BAD_SUFFIX = "missing key", "bad suffix"

Problem = locations.Problem


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One example: images (absolute paths, maybe none), a prompt and its answer.

    Attributes:
      images: absolute paths or addresses, in the order of the row.
      prefix: the prompt, without bos or a closing newline.
      suffix: the answer, without eos; None where the row has none (prediction).
      source: where the row stands, "file.jsonl:12".
      extra: the row's other keys.
      objects: of the one image, in the order of the suffix; None where the row keeps none.
    """

    images: tuple[str, ...]
    prefix: str
    suffix: str | None = None
    source: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    objects: data_objects.Objects | None = None


def read_jsonl(
    path: str | os.PathLike[str],
    *,
    keys: Mapping[str, str] = KEYS,
    required: Collection[str] = ("image", "prefix", "suffix"),
    prefix_template: str | None = None,
    image_dir: str | os.PathLike[str] | None = None,
    check: Callable[[str], str | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Returns the records of a JSONL file, all of them or none.

    Args:
      path: the file, UTF-8 (a byte order mark and CRLF are accepted).
      keys: the row's names for image, prefix and suffix, as {"prefix": "question"}; those left out
        keep their own.
      required: which of image, prefix, suffix every row must have; ("image", "prefix") where
        answers are to be predicted.
      prefix_template: makes the prefix from keys of the row, see `fill_template`; the prefix key
        itself is then not read.
      image_dir: the folder (or its address) that image paths are relative to and must not leave,
        symbolic links resolved; None is the folder of the file.
      check: returns what is wrong with a suffix, or None: the task's grammar.
      progress: called now and then with (bytes read, bytes of the file).

    Raises:
      ValueError: no such file, an empty one, or bad lines: the first 20 with file:line and reason,
        and how many there are of each kind.
    """
    records, report = scan_jsonl(
        path,
        keys=keys,
        required=required,
        prefix_template=prefix_template,
        image_dir=image_dir,
        check=check,
        progress=progress,
    )
    report.raise_problems()
    return records


def scan_jsonl(
    path: str | os.PathLike[str],
    *,
    keys: Mapping[str, str] = KEYS,
    required: Collection[str] = ("image", "prefix", "suffix"),
    prefix_template: str | None = None,
    image_dir: str | os.PathLike[str] | None = None,
    check: Callable[[str], str | None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Record], jsonl.Report]:
    """Returns (records of the good lines, what is wrong with the others), to look at a data set.

    Takes the arguments of `read_jsonl`, and raises as it does where the file itself cannot be read.
    """
    path = os.fspath(path)
    jsonl.check_path(path)
    row_format = _RowFormat.make(keys, required, prefix_template, check)
    folder = locations.ImageFolder(image_dir or os.path.dirname(os.path.abspath(path)))
    report = jsonl.Report(path)
    records, done, total = [], 0, os.path.getsize(path)
    for number, line in jsonl.read_lines(path):
        source = f"{path}:{number}"
        record, problems = _parse_line(line, source, row_format, folder, report)
        report.add(source, problems)
        if record is not None:
            records.append(record)
        done += len(line)
        if progress and number % PROGRESS_LINES == 0:
            progress(done, total)
    if progress:
        progress(total, total)
    if report.num_lines == report.kinds[MISSING]:
        report.remedies[MISSING] = row_format.propose(path)
    if report.kinds[BAD_SUFFIX]:
        report.remedies[BAD_SUFFIX] = f"{jsonl.CORRECT}. {jsonl.suggest_rewriting(path)}"
    return records, report


@dataclasses.dataclass(frozen=True)
class _RowFormat:
    """What a row must look like: `needed` are the keys that it must have."""

    keys: Mapping[str, str]
    required: frozenset[str]
    needed: tuple[str, ...]
    template: str | None
    template_fields: tuple[str, ...]
    check: Callable[[str], str | None] | None

    @classmethod
    def make(cls, keys, required, template, check) -> "_RowFormat":
        if unknown := (set(keys) | set(required)) - set(KEYS):
            raise ValueError(f"unknown names {sorted(unknown)} for a row's keys: use {list(KEYS)}")
        named = {**KEYS, **keys}
        fields = _template_fields(template) if template is not None else ()
        made = "prefix" if template is not None else None
        read = [named[name] for name in KEYS if name in required and name != made]
        needed = tuple(dict.fromkeys((*read, *fields)))
        return cls(named, frozenset(required), needed, template, fields, check)

    def propose(self, path: str) -> str:
        """Returns what to do about a file none of whose rows has all keys, going by the first."""
        row = jsonl.parse_line(next(jsonl.read_lines(path))[1])[0] or {}
        missing = [key for key in self.needed if key not in row]
        ours = [name for name in KEYS if self.keys[name] in missing]
        unknown = [field for field in self.template_fields if field in missing]
        return jsonl.propose_names(path, row, missing=ours, unknown=unknown)


def _template_fields(template: str) -> tuple[str, ...]:
    """Returns the row keys that a prefix template names; only plain {key} fields are allowed."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"prefix_template {template!r}: {error}") from error
    fields = []
    for _, field, spec, conversion in parts:
        if field is None:
            continue
        if not field or spec or conversion or field.isdigit() or set(field) & set(".[]"):
            raise ValueError(
                f"prefix_template {template!r}: write keys of the row as {{key}}, found "
                f"'{{{field}}}'; a literal brace is written twice"
            )
        fields.append(field)
    return tuple(dict.fromkeys(fields))


def fill_template(template: str, values: Mapping[str, Any]) -> tuple[str, str | None]:
    """Returns (a prompt, what was not done to the letter, in words of many prompts, or None).

    "answer en {question}" makes "answer en how many?" of "how many?", and of "answer en how many?"
    too: words at the beginning that the value of the first field has itself are written once.
    """
    prompt = template.format(**values)
    head, field, _, _ = next(iter(string.Formatter().parse(template)), ("", None, None, None))
    words, value = head.lower().split(), str(values.get(field or "", "")).strip()
    if not words or value.lower().split()[: len(words)] != words:
        return prompt, None
    return prompt[len(head) :].lstrip(), f"prompts with their own '{head.strip()}': written once"


def _parse_line(
    line: bytes,
    source: str,
    row_format: _RowFormat,
    folder: locations.ImageFolder,
    report: jsonl.Report,
) -> tuple[Record | None, list[Problem]]:
    """Returns (record, []) or (None, everything that is wrong with the line)."""
    row, problem = jsonl.parse_line(line)
    if row is None:
        return None, [problem] if problem else []
    missing = [key for key in row_format.needed if key not in row]
    problems: list[Problem] = [_missing(missing, row)] if missing else []
    images = _find_images(row, row_format, folder, problems)
    prefix = _make_prefix(row, row_format, problems, report)
    suffix = _get_text(row, "suffix", row_format, problems)
    if suffix is not None and row_format.check and (reason := row_format.check(suffix)):
        problems.append((BAD_SUFFIX, f"suffix {_shorten(suffix)}: {reason}"))
    kept = _read_objects(row, images, problems)
    if problems:
        return None, problems
    used = {*row_format.keys.values(), *(OBJECTS_KEYS if kept is not None else ())}
    extra = {key: value for key, value in row.items() if key not in used}
    return Record(images, prefix or "", suffix, source, extra, kept), []


def _find_images(row, row_format, folder, problems: list[Problem]) -> tuple[str, ...]:
    key = row_format.keys["image"]
    if key not in row:
        return ()
    value = row[key]
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        problems.append(
            ("wrong type", f"key '{key}': expected a path or a list of paths, found {value!r:.80}")
        )
        return ()
    located = [folder.locate(name) for name in names]
    problems += [problem for _, problem in located if problem]
    return tuple(path for path, _ in located)


def _read_objects(row, images, problems: list[Problem]) -> data_objects.Objects | None:
    if row.get("objects") is None:
        return None
    try:
        kept = data_objects.from_row(row)
    except ValueError as error:
        problems.append(("bad objects", str(error)))
        return None
    if len(images) != 1 and not problems:
        problems.append(("bad objects", f"key 'objects': needs one image, found {len(images)}"))
    return kept


def _make_prefix(row, row_format, problems: list[Problem], report: jsonl.Report) -> str | None:
    if row_format.template is None:
        return _get_text(row, "prefix", row_format, problems)
    values = {}
    for field in row_format.template_fields:
        value = row.get(field)
        if field not in row:
            continue
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            value = BETWEEN_CHOICES.join(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            problems.append(_wrong_type(field, "text, a number or a list of texts", value))
        elif isinstance(value, str) and not _is_unicode(value):
            problems.append(_broken_unicode(field))
        values[field] = value
    if problems:
        return None
    prefix, note = fill_template(row_format.template, values)
    if note:
        report.notes[note] += 1
    return prefix


def _get_text(row, name: str, row_format, problems: list[Problem]) -> str | None:
    key = row_format.keys[name]
    value = row.get(key)
    is_required = name in row_format.required
    if key not in row:
        return None
    if not isinstance(value, str) and (is_required or value is not None):
        problems.append(_wrong_type(key, "text", value))
    elif isinstance(value, str) and not _is_unicode(value):
        problems.append(_broken_unicode(key))
    else:
        return value
    return None


def _missing(keys: Sequence[str], row: Mapping[str, Any]) -> Problem:
    names = ", ".join(f"'{key}'" for key in keys)
    return MISSING, f"key{'s' * (len(keys) > 1)} {names} missing; found {sorted(row)}"


def _wrong_type(key: str, expected: str, value: Any) -> Problem:
    actual = f"{type(value).__name__} {value!r:.80}" if value is not None else "null"
    return "wrong type", f"key '{key}': expected {expected}, found {actual}"


def _broken_unicode(key: str) -> Problem:
    return "broken text", f"key '{key}': half of a surrogate pair (\\ud800..\\udfff) is no text"


def _is_unicode(text: str) -> bool:
    """False for text with a lone surrogate, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
