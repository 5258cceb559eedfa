"""JSON files of settings that other programs wrote, read against a closed list.

A setting that nobody looks at can change what the numbers beside it mean. So every key is either
read, known to change nothing, or refused by name.
"""

import json
import math
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

# Values that say: this is not used. A key that has one is as good as absent.
NEUTRAL: tuple[Any, ...] = (None, False, "", [], {})
MAX_BYTES = 2**26  # tokenizers aside, such files take a few thousand
MAX_SHOWN = 60


def read(path: pathlib.Path, what: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: the file.
      what: what it is for, as in "it describes the model of the weights".

    Raises:
      ValueError: there is none, it is too long, or no JSON object.
    """
    try:
        if not path.is_file():
            raise ValueError(f"{path}: not found; {what}: copy it too")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ValueError(f"{path}: {size} bytes, expected a short JSON object: {what}")
        content = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}. {_AGAIN}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: not in UTF-8. {_AGAIN}") from error
    except RecursionError:
        raise ValueError(f"{path}: not JSON: brackets too deep. {_AGAIN}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); {what}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {shown(content)}, expected a JSON object: {what}. {_AGAIN}")
    return content


_AGAIN = "Download or copy it again"


def is_neutral(value: Any) -> bool:
    """Whether a value says that its key is not used."""
    return any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL)


def section(settings: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """Returns an object inside of an object; {} where it is absent."""
    value = settings.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {key} is {shown(value)}, expected an object")
    return value


def check_closed(
    settings: Mapping[str, Any],
    *,
    read_elsewhere: Collection[str],
    without_effect: Collection[str],
    allowed: Mapping[str, tuple[Any, ...]],
    where: str,
    remedy: str,
) -> None:
    """Raises a ValueError that names every key which would change what the numbers mean.

    Args:
      settings: what the file holds.
      read_elsewhere: keys that the caller reads and checks itself.
      without_effect: keys that change nothing here, whatever they say.
      allowed: key -> the values that change nothing, besides the neutral ones.
      where: the file, and the place in it.
      remedy: what to do about such a key.
    """
    wrong = []
    for key, value in settings.items():
        if key in read_elsewhere or key in without_effect or is_neutral(value):
            continue
        if key in allowed:
            if not any(_equal(value, one) for one in allowed[key]):
                expected = " or ".join(map(shown, allowed[key]))
                wrong.append(f"{key} is {shown(value)}, expected {expected}")
        else:
            wrong.append(f"{key} is {shown(value)}, and this key is not known")
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}: {remedy}")


def whole(settings: Mapping[str, Any], key: str, where: str, *, most: int) -> int:
    """Returns a whole number from 1 to `most`."""
    value = settings.get(key)
    if type(value) is not int or not 1 <= value <= most:
        given = "missing" if value is None else shown(value)
        raise ValueError(f"{where}: {key} is {given}, expected a whole number from 1 to {most}")
    return value


def number(settings: Mapping[str, Any], key: str, where: str, *, default: float) -> float:
    """Returns a finite number that is not negative; `default` where it is absent or null."""
    value = settings.get(key)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1e9 or not math.isfinite(value):
        raise ValueError(f"{where}: {key} is {shown(value)}, expected a number from 0")
    return float(value)


def compare(facts: Mapping[str, Any], expected: Any, why: str, where: str) -> None:
    """Raises a ValueError if facts that are there (not None) are not what another one says."""
    wrong = [
        f"{name} is {shown(value)}"
        for name, value in facts.items()
        if value is not None and not _equal(value, expected)
    ]
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}, expected {shown(expected)}: {why}")


def shown(value: Any) -> str:
    """Returns a value in a message: not the whole of a long one."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, say
        text = f"a {type(value).__name__} that is too long"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 4]} ..."


def _equal(one: Any, other: Any) -> bool:
    # To Python, 1 == True.
    return one == other and isinstance(one, bool) == isinstance(other, bool)
