"""JSON texts of a schema, as a part over bytes: what a model may write when it is to write JSON.

A subset of JSON Schema; the rest is an error that names the place:

    object    properties, in the order of the schema, of which those not `required` may be left
              out; additionalProperties, which must be false
    array     items, minItems, maxItems, up to 1000
    string    maxLength, in characters, up to a million; no surrogates
    integer   up to 9 digits; "minimum": 0 leaves the sign out; minimum and maximum together, at
              most 1000 apart, list the numbers one by one
    number    up to 9 digits, then up to 6 decimals, no exponent; "minimum": 0
    boolean, null, a list of types; enum and const of texts, numbers, booleans, null

Objects and arrays within each other are at most 32 deep.

White space is what Python's json.dumps writes: on one line, with indent=2, or with the separators
(",", ":"). An answer keeps to one of the three; the model says which. What has no limit of its own,
a text or an array, is ended in time by the room for tokens.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from paligemma_jax.decoding import automaton

Schema = Mapping[str, Any]

DIGITS, DECIMALS = 9, 6
MAX_LISTED = 1000  # integers
MAX_LENGTH, MAX_ITEMS, MAX_DEPTH = 1_000_000, 1000, 32
MAX_INTEGER = 10**18  # of a minimum, a maximum
SMALLER = "give fewer properties, shorter lists, or a lower maxItems or minItems of an array"

DECIMAL, HEXADECIMAL = b"0123456789", b"0123456789abcdefABCDEF"
ANNOTATIONS = {"$schema", "title", "description"}
# type -> the keywords that limit it
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum"},
    "boolean": set(),
    "null": set(),
}
# json.dumps's (item separator, key separator, indent): on one line, with indent=2, tight.
LAYOUTS = ((", ", ": ", None), (",", ": ", "  "), (",", ":", None))


class Place(NamedTuple):
    """Where in a schema, `path`, and how its text is laid out there."""

    path: str
    depth: int
    comma: str
    colon: str
    indent: str | None

    def inside(self, name: str) -> "Place":
        """Returns the place of a member."""
        return self._replace(path=f"{self.path}{name}", depth=self.depth + 1)

    def line(self, depth: int) -> str:
        """Returns the start of a line, which is nothing where all is on one."""
        return "" if self.indent is None else "\n" + self.indent * depth

    def brackets(self, pair: str) -> tuple[automaton.Part, automaton.Part, automaton.Part]:
        """Returns what opens members, what parts them and what closes them."""
        inner, outer = self.line(self.depth + 1), self.line(self.depth)
        return _text(pair[0] + inner), _text(self.comma + inner), _text(outer + pair[1])

    def error(self, problem: str) -> ValueError:
        return ValueError(f"JSON schema, {self.path}: {problem}")


def make(schema: Schema) -> automaton.Part:
    """Returns the language of the schema's JSON texts.

    Raises:
      ValueError: a schema outside the subset.
    """
    return automaton.either(*(_value(schema, Place("$", 0, *layout)) for layout in LAYOUTS))


def _value(schema: Any, place: Place) -> automaton.Part:
    """The texts of a schema, which may take so many nodes that the place is named."""
    part = _read(schema, place)

    def add(net: automaton.Net, start: int) -> int:
        try:
            return part(net, start)
        except automaton.TooLargeError as error:
            raise place.error(f"{error}: {SMALLER}") from None

    return add


def _read(schema: Any, place: Place) -> automaton.Part:
    if not isinstance(schema, Mapping):
        raise place.error(f"expected an object, found {schema!r:.80}")
    if place.depth > MAX_DEPTH:
        raise place.error(f"more than {MAX_DEPTH} objects and arrays within each other")
    types = schema.get("type", [])
    types = types if isinstance(types, list) else [types]
    for kind in types:
        if not isinstance(kind, str) or kind not in KEYWORDS:
            raise place.error(f"type {kind!r:.80} is none of {list(KEYWORDS)}")
    listed = [key for key in ("enum", "const") if key in schema]
    known = {"type"}.union(listed[:1] or ["enum", "const"])
    if not listed:
        known = known.union(*(KEYWORDS[kind] for kind in types))
    if unknown := sorted(set(schema) - ANNOTATIONS - known):
        raise place.error(f"'{unknown[0]}' is not supported here, only {sorted(known)}")
    if listed:
        return _listed(schema, types, place)
    if not types:
        raise place.error("neither type nor enum nor const; any value would be too much")
    return automaton.either(*(WRITERS[kind](schema, place) for kind in types))


def _listed(schema: Schema, types: Sequence[str], place: Place) -> automaton.Part:
    """One of the values of an enum, or the value of a const."""
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    if not isinstance(values, list) or not values:
        raise place.error(f"enum must be a list of values, found {values!r:.80}")
    for value in values:
        if isinstance(value, list | Mapping):
            raise place.error(f"{value!r:.80} in enum or const: no lists, no objects")
        _check_scalar(value, place)
        if types and not _kinds(value) & set(types):
            raise place.error(f"{value!r:.80} is not of the type {types}")
    return automaton.either(*map(_scalar, values))


def _kinds(value: Any) -> set[str]:
    if value is None or isinstance(value, bool):
        return {"null" if value is None else "boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == math.floor(value) else {"number"}
    return {"string"}


def _check_scalar(value: Any, place: Place) -> None:
    """Makes sure that a value has a text in JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise place.error(f"{value} is not a number that JSON can write; give finite ones")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise place.error("a number of more than 18 digits; give it as a text")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise place.error(f"{value!r:.80} holds half a surrogate pair, which is no text")


def _scalar(value: Any) -> automaton.Part:
    """A known value; in a text, characters beyond ASCII escaped or as they are."""
    spelt = {json.dumps(value), json.dumps(value, ensure_ascii=False)}
    return automaton.either(*map(_text, sorted(spelt)))


def _object(schema: Schema, place: Place) -> automaton.Part:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise place.error("properties must be an object of schemas")
    if not isinstance(required, list):
        raise place.error(f"required must be a list of properties, found {required!r:.80}")
    if missing := [key for key in required if key not in list(properties)]:
        raise place.error(f"{missing[0]!r:.80} is required, but not among the properties")
    if schema.get("additionalProperties", False) is not False:
        raise place.error("additionalProperties must be false")
    for key in properties:
        _check_scalar(key, place)
    members = [
        automaton.sequence(_scalar(key), _text(place.colon), _value(inner, place.inside(f".{key}")))
        for key, inner in properties.items()
    ]
    opening, comma, closing = place.brackets("{}")

    def add(net: automaton.Net, start: int) -> int:
        # Two tracks side by side: before the first member that is written, and after one.
        before, after = start, net.node()
        end = net.node()
        for key, member in zip(properties, members, strict=True):
            begin, written = net.node(), net.node()
            net.jumps[opening(net, before)].append(begin)
            net.jumps[comma(net, after)].append(begin)
            net.jumps[member(net, begin)].append(written)
            if key in required:
                before = net.node()  # which nothing leads to
            else:
                net.jumps[after].append(written)
            after = written
        net.jumps[closing(net, after)].append(end)
        net.jumps[_text("{}")(net, before)].append(end)
        return end

    return add


def _array(schema: Schema, place: Place) -> automaton.Part:
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    _check_count(place, MAX_ITEMS, minItems=least, maxItems=most)
    if "items" not in schema:
        raise place.error("an array without items; any value would be too much")
    if most is not None and most < max(least, 1):
        raise place.error(f"maxItems={most} is below 1 or below minItems={least}")
    item = _value(schema["items"], place.inside("[]"))
    opening, comma, closing = place.brackets("[]")
    more = automaton.repeat(
        automaton.sequence(comma, item),
        least=max(least - 1, 0),
        most=None if most is None else most - 1,
    )
    full = automaton.sequence(opening, item, more, closing)
    return full if least else automaton.either(full, _text("[]"))


def _string(schema: Schema, place: Place) -> automaton.Part:
    longest = schema.get("maxLength")
    _check_count(place, MAX_LENGTH, maxLength=longest)
    if longest is None:
        inner = automaton.repeat(_character())
    else:
        inner = automaton.counted(_character(), most=longest)
    return automaton.sequence(_text('"'), inner, _text('"'))


@functools.cache
def _character() -> automaton.Part:
    """A character of a text: UTF-8 (Unicode, table 3-7), or an escape."""
    end = range(0x80, 0xC0)
    plain = [byte for byte in range(0x20, 0x80) if byte not in b'"\\']
    other_than_d = [digit for digit in HEXADECIMAL if digit not in b"dD"]
    rows = (
        (plain,),
        (range(0xC2, 0xE0), end),
        ((0xE0,), range(0xA0, 0xC0), end),
        ((*range(0xE1, 0xED), 0xEE, 0xEF), end, end),
        ((0xED,), range(0x80, 0xA0), end),
        ((0xF0,), range(0x90, 0xC0), end, end),
        (range(0xF1, 0xF4), end, end, end),
        ((0xF4,), range(0x80, 0x90), end, end),
        (b"\\", b'"\\/bfnrt'),
        (b"\\", b"u", other_than_d, HEXADECIMAL, HEXADECIMAL, HEXADECIMAL),
        (b"\\", b"u", b"dD", b"01234567", HEXADECIMAL, HEXADECIMAL),
    )
    return automaton.either(*(automaton.sequence(*map(automaton.symbols, row)) for row in rows))


def _integer(schema: Schema, place: Place) -> automaton.Part:
    least, most = schema.get("minimum"), schema.get("maximum")
    if most is None:
        return automaton.sequence(_sign(least, place), _digits())
    if type(least) is not int or type(most) is not int or not 0 <= most - least <= MAX_LISTED:
        raise place.error(
            f"minimum={least!r:.40} and maximum={most!r:.40}; a maximum needs a minimum that is at "
            f"most {MAX_LISTED} below it, both whole numbers"
        )
    if max(-least, most) >= MAX_INTEGER:
        raise place.error("minimum and maximum have more than 18 digits; give smaller ones")
    ranges = []
    if least < 0:
        ranges.append(automaton.sequence(_text("-"), _range(max(1, -most), -least)))
    if most >= 0:
        ranges.append(_range(max(0, least), most))
    return automaton.either(*ranges)


def _range(least: int, most: int) -> automaton.Part:
    """The whole numbers from `least` >= 0 to `most`, by their number of digits."""
    parts = []
    for size in range(len(str(least)), len(str(most)) + 1):
        shortest = 10 ** (size - 1) if size > 1 else 0
        low, high = max(least, shortest), min(most, 10**size - 1)
        parts.append(_digits_between(str(low), str(high)))
    return automaton.either(*parts)


def _digits_between(low: str, high: str) -> automaton.Part:
    """The texts of as many digits that are not below `low` and not above `high`."""
    if not low:
        return _text("")
    rest = len(low) - 1
    if low[0] == high[0]:
        return automaton.sequence(_text(low[0]), _digits_between(low[1:], high[1:]))
    inner = DECIMAL[int(low[0]) + 1 : int(high[0])]
    parts = [
        automaton.sequence(_text(low[0]), _digits_between(low[1:], "9" * rest)),
        automaton.sequence(_text(high[0]), _digits_between("0" * rest, high[1:])),
    ]
    if inner:
        any_digits = [automaton.symbols(DECIMAL)] * rest
        parts.append(automaton.sequence(automaton.symbols(inner), *any_digits))
    return automaton.either(*parts)


def _number(schema: Schema, place: Place) -> automaton.Part:
    decimals = automaton.repeat(automaton.symbols(DECIMAL), least=1, most=DECIMALS)
    fraction = automaton.optional(automaton.sequence(_text("."), decimals))
    return automaton.sequence(_sign(schema.get("minimum"), place), _digits(), fraction)


def _sign(least: Any, place: Place) -> automaton.Part:
    """A minus or none; with a minimum of 0 none."""
    if isinstance(least, bool) or least not in (None, 0):
        raise place.error(f"minimum={least!r:.40} without maximum; only 0 is supported")
    return _text("") if least == 0 else automaton.optional(_text("-"))


def _digits() -> automaton.Part:
    """A whole number without sign and leading zeros."""
    more = automaton.repeat(automaton.symbols(DECIMAL), most=DIGITS - 1)
    return automaton.either(_text("0"), automaton.sequence(automaton.symbols(b"123456789"), more))


def _check_count(place: Place, highest: int, **counts: Any) -> None:
    for keyword, value in counts.items():
        if value is not None and (type(value) is not int or not 0 <= value <= highest):
            raise place.error(
                f"{keyword}={value!r:.40}: expected a whole number from 0 on, up to {highest:,}"
            )


def _text(text: str) -> automaton.Part:
    return automaton.text(text.encode())


WRITERS: dict[str, Callable[[Schema, Place], automaton.Part]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda *_: automaton.either(_text("true"), _text("false")),
    "null": lambda *_: _text("null"),
}
