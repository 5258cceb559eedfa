"""JSON of a schema against json.loads, json.dumps and a plain reading of the schema."""

import itertools
import json

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton, constraint, grammars, json_grammar

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
SCALARS = st.none() | st.booleans() | st.integers(-999, 999) | TEXTS


def plain(kind, values, **limits):
    """A strategy of (schema, strategy of its values)."""
    return st.just(({"type": kind, **limits}, values))


def make_object(members, required):
    schema = {
        "type": "object",
        "properties": {key: inner for key, (inner, _) in members.items()},
        "required": [key for key in members if key in required],
    }
    needed = {key: values for key, (_, values) in members.items() if key in required}
    others = {key: values for key, (_, values) in members.items() if key not in required}
    found = st.fixed_dictionaries(needed, optional=others)
    return schema, found.map(lambda value: {key: value[key] for key in members if key in value})


def make_array(item, least, more):
    most = None if more is None else max(1, least + more)
    schema = {"type": "array", "items": item[0], "minItems": least}
    schema |= {} if most is None else {"maxItems": most}
    return schema, st.lists(item[1], min_size=least, max_size=3 if most is None else most)


KEYS = st.sampled_from(["a", "b c", "\u00e9", 'q"'])
SCHEMAS = st.recursive(
    plain("string", TEXTS)
    | plain("string", TEXTS.map(lambda text: text[:2]), maxLength=2)
    | plain("integer", st.integers(-(10**9) + 1, 10**9 - 1))
    | plain("integer", st.integers(-2, 11), minimum=-2, maximum=11)
    | plain("number", st.integers(0, 10**6).map(lambda n: n / 64), minimum=0)
    | plain("boolean", st.booleans())
    | plain("null", st.none())
    | st.lists(SCALARS, min_size=1, max_size=3).map(lambda v: ({"enum": v}, st.sampled_from(v)))
    | SCALARS.map(lambda value: ({"const": value}, st.just(value))),
    lambda inner: (
        st.builds(make_object, st.dictionaries(KEYS, inner, max_size=3), st.sets(KEYS))
        | st.builds(make_array, inner, st.integers(0, 2), st.none() | st.integers(0, 2))
    ),
    max_leaves=4,
)
LAYOUTS = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}])


def make(schema):
    return automaton.determinize(json_grammar.make(schema))


def accepts(language, text):
    state, items = 0, 0
    for byte in text.encode():
        chosen, targets = language.moves[state]
        (found,) = np.nonzero(chosen == byte)
        if not len(found):
            return False
        before, state = state, int(targets[found[0]])
        goes_on = before in language.limits and state in language.limits
        items = items + (before in language.between) if goes_on else 0
        if items > language.limits.get(state, items):
            return False
    return state in language.accepting


def write(language, random, *, spare):
    """Writes a text at random, of at most so many bytes more than the shortest one has."""
    end = 256
    pieces = [bytes([byte]) for byte in range(end)]
    made = constraint.compile_grammars(
        [grammars.spell(language, pieces)], eos=end, vocab_size=end + 1
    )
    room = constraint.shortest_answers(made)[0] + spare
    state, items, text = made.starts[0], 0, bytearray()
    while True:
        targets = made.moves[state, made.classes]
        fits = made.left[targets] < room - len(text)
        if made.counts:
            assert not len(made.counts.spare), "every text can be closed at once"
            added, opened = (
                table[state, made.classes] for table in (made.counts.added, made.counts.opened)
            )
            fits &= items + added <= made.counts.limits[state]
        chosen = random.choice(np.flatnonzero(fits).tolist())
        if chosen == end:
            return text.decode()
        text.append(chosen)
        if made.counts:
            items = opened[chosen] if opened[chosen] >= 0 else items + added[chosen]
        state = targets[chosen]


def conforms(value, schema):
    """Says whether a value is one of a schema: a plain reading of what the grammar promises."""
    if "enum" in schema or "const" in schema:
        listed = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(one) and value == one for one in listed)
    if schema["type"] == "object":
        known = schema["properties"]
        named = isinstance(value, dict) and list(value) == [key for key in known if key in value]
        has_all = named and set(schema["required"]) <= set(value)
        return has_all and all(conforms(value[key], known[key]) for key in value)
    if schema["type"] == "array":
        counted = isinstance(value, list) and len(value) >= schema["minItems"]
        counted = counted and len(value) <= schema.get("maxItems", len(value))
        return counted and all(conforms(item, schema["items"]) for item in value)
    if schema["type"] == "string":
        return isinstance(value, str) and len(value) <= schema.get("maxLength", len(value))
    if schema["type"] in ("integer", "number"):
        kinds = int if schema["type"] == "integer" else (int, float)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        return is_number and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return isinstance(value, bool) if schema["type"] == "boolean" else value is None


@given(SCHEMAS, st.data(), LAYOUTS, st.booleans())
def test_what_json_dumps_writes_of_a_schema_is_accepted(schema, data, layout, ascii_only):
    value = data.draw(schema[1])
    assert accepts(make(schema[0]), json.dumps(value, ensure_ascii=ascii_only, **layout)) or (
        ascii_only and "\\ud" in json.dumps(value)
    ), "surrogates are not supported"


@given(SCHEMAS, st.randoms(use_true_random=False), st.integers(0, 60))
def test_what_is_accepted_can_be_loaded_and_conforms(schema, random, spare):
    text = write(make(schema[0]), random, spare=spare)
    assert conforms(json.loads(text), schema[0]), text


@given(SCHEMAS, st.data(), st.integers(0, 99), TEXTS)
def test_a_damaged_text_is_accepted_only_if_it_still_conforms(schema, data, place, inserted):
    text = json.dumps(data.draw(schema[1]))
    place %= len(text) + 1
    for damaged in (text[:place] + inserted + text[place:], text[:place] + text[place + 1 :]):
        if accepts(make(schema[0]), damaged):
            assert conforms(json.loads(damaged), schema[0])


COUNTS = {
    "type": "object",
    "properties": {name: {"type": "integer", "minimum": 0} for name in ("cent", "dime")},
}


def test_members_that_are_not_required_may_be_left_out():
    language = make(COUNTS)
    good = ["{}", '{"cent": 2}', '{"dime": 10}', '{"cent": 2, "dime": 10}', '{\n  "dime": 3\n}']
    bad = ["", "{", '{"cent": -1}', '{"cent": 01}', '{"dime": 1, "cent": 1}', '{"cent": 1,}']
    mixed = ['{ "cent": 1}', '{"cent": 1,"dime": 2}', '{"cent":1, "dime":2}', '{"euro": 1}']
    assert all(accepts(language, text) for text in good)
    assert not any(accepts(language, text) for text in (*bad, *mixed))


def test_numbers_have_bounded_digits():
    language = make({"type": ["integer", "null"]})
    assert accepts(language, "-123456789") and accepts(language, "null")
    assert not accepts(language, "1234567890") and not accepts(language, "1.0")
    number = make({"type": "number"})
    assert accepts(number, "-0.123456") and not accepts(number, "0.1234567")
    assert not accepts(number, "1e5") and not accepts(number, ".5")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, r"\$: neither type nor enum nor const"),
        ([], r"\$: expected an object, found \[\]"),
        ({"type": "text"}, r"\$: type 'text' is none of \['object', 'array'"),
        ({"anyOf": []}, r"\$: 'anyOf' is not supported here, only \['const', 'enum', 'type'\]"),
        ({"type": "string", "pattern": "a"}, r"\$: 'pattern' is not .* \['.*'maxLength', 'type'\]"),
        ({"type": "string", "minItems": 1}, "'minItems' is not supported here"),
        ({"type": "object", "additionalProperties": True}, "must be false"),
        ({"type": "object", "required": ["a"]}, "'a' is required, but not among"),
        ({"type": "object", "properties": {"a": {"type": "int"}}}, r"\$.a: type 'int'"),
        ({"type": "array"}, "an array without items"),
        ({"type": "array", "items": {"type": "object", "x": 1}}, r"\$\[\]: 'x' is not"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, "maxItems=0 is below 1"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1.5}, "minItems=1.5: expected"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 10**6}, "from 0 on, up to 1,000"),
        ({"type": "string", "maxLength": -1}, "maxLength=-1: expected a whole number"),
        ({"type": "string", "maxLength": 10**7}, "from 0 on, up to 1,000,000"),
        ({"type": {"a": 1}}, r"\$: type {'a': 1} is none of \['object'"),
        ({"type": [["string"]]}, r"\$: type \['string'\] is none of"),
        ({"type": "object", "required": 5}, r"required must be a list of properties, found 5"),
        ({"type": "object", "required": [{}]}, r"{} is required, but not among"),
        ({"type": "integer", "minimum": 10**20, "maximum": 10**20}, "more than 18 digits"),
        ({"type": "integer", "minimum": {}, "maximum": 5}, r"minimum={} and maximum=5"),
        ({"type": "number", "minimum": False}, "minimum=False without maximum"),
        ({"const": 10**400}, "more than 18 digits"),
        ({"const": float("nan")}, "nan is not a number that JSON can write"),
        ({"const": "\ud800"}, "half a surrogate pair"),
        ({"type": "object", "properties": {"\udc00": {"type": "null"}}}, "half a surrogate pair"),
        ({"type": "integer", "maximum": 5}, "minimum=None and maximum=5; a maximum needs"),
        ({"type": "integer", "minimum": 0, "maximum": 5000}, "at most 1000 below"),
        ({"type": "number", "minimum": 3}, "minimum=3 without maximum; only 0"),
        ({"enum": []}, "enum must be a list of values"),
        ({"enum": [[1]]}, "no lists, no objects"),
        ({"type": "string", "enum": ["a", 1]}, r"1 is not of the type \['string'\]"),
    ],
)
def test_what_is_outside_the_subset_is_refused_with_its_place(schema, message):
    with pytest.raises(ValueError, match=message):
        json_grammar.make(schema)


def test_too_many_levels_are_refused():
    schema = {"type": "null"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(ValueError, match="more than 32 objects and arrays within each other"):
        json_grammar.make(schema)


def test_arrays_that_grow_too_large_together_are_refused_with_their_place():
    schema = {"type": "string"}
    for key in ("c", "b"):
        schema = {"type": "array", "maxItems": 1000, "items": schema}
        schema = {"type": "object", "properties": {key: schema}}
    with pytest.raises(ValueError, match=r"\$\.b.*more than .* nodes.* lower maxItems"):
        make(schema)


@given(st.integers(-1200, 1200), st.integers(0, 1000), st.integers(-2400, 2400))
def test_a_range_holds_the_numbers_between_its_ends(least, more, number):
    schema = {"type": "integer", "minimum": least, "maximum": least + more}
    assert accepts(make(schema), str(number)) == (least <= number <= least + more)
    for text in ("-0", "01", "", f"{number}0000"):
        assert not accepts(make(schema), text)


# Pieces that hold parts of texts, several characters, ends of one text and beginnings of another.
PIECES = (
    """a|ab|abc|a"|bc"|"a|"|""|","|", "|c", "a|é|xé|[|]|["|"]|, |,|{"k|": "|":"|}|"}|a"}|k|{"|\\"""
)
PIECES += """|n"|n|u00|e9|\n  |\n|  |:| |0|1|12|-|2}"""
PIECES = PIECES.split("|")
BYTES = [b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xa9\xa9"]
COUNTED = st.integers(0, 4).map(lambda most: {"type": "string", "maxLength": most})
SMALL = COUNTED | st.builds(
    lambda item, most: {"type": "array", "items": item, "maxItems": most},
    COUNTED | st.just({"type": "integer", "minimum": -2, "maximum": 12}),
    st.integers(1, 3),
)
SMALL |= st.dictionaries(st.sampled_from(["k", "ab"]), SMALL, max_size=2).map(
    lambda found: {"type": "object", "properties": found}
)


def write_out(schema, pieces):
    """Returns (moves, left): the tables of a schema with every character and piece written out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(automaton, "counted", lambda item, most: automaton.repeat(item, most=most))
        language = make(schema)
    assert not language.limits
    steps = [dict(zip(*(x.tolist() for x in pair), strict=True)) for pair in language.moves]
    moves = [{} for _ in steps]
    for state, piece in itertools.product(range(len(steps)), range(len(pieces))):
        reached = state
        for byte in pieces[piece]:
            reached = None if reached is None else steps[reached].get(byte)
        if reached is not None:
            moves[state][piece] = reached
    left = [1 if state in language.accepting else np.inf for state in range(len(steps))]
    before = None
    while left != before:
        before = left
        left = [
            min([old, *(1 + before[target] for target in found.values())])
            for old, found in zip(before, moves, strict=True)
        ]
    return moves, left


@pytest.mark.slow
@hypothesis.settings(max_examples=150)
@given(
    SMALL,
    st.sets(st.sampled_from(PIECES)),
    st.booleans(),
    st.integers(1, 14),
    st.randoms(use_true_random=False),
)
def test_the_same_ids_may_come_as_when_all_is_written_out(schema, some, has_rest, room, random):
    rest = [bytes([byte]) for byte in range(256)] if has_rest else BYTES
    pieces = [piece.encode() for piece in sorted(some)] + rest
    moves, left = write_out(schema, pieces)
    eos, size = len(pieces), 320
    made = constraint.compile_grammars(
        [grammars.spell(make(schema), pieces)], eos=eos, vocab_size=size
    )
    assert min(constraint.shortest_answers(made)[0], constraint.NEVER) == min(
        left[0], constraint.NEVER
    )
    state, place = 0, constraint.start(made, jnp.array([0]))
    for used in range(room):
        allowed = {i for i, t in moves[state].items() if left[t] < room - used}
        allowed |= {eos} if left[state] == 1 else set()
        scores = constraint.keep_allowed(made, place, jnp.zeros((1, size)), room=room - used)
        assert set(np.flatnonzero(scores[0] == 0).tolist()) == allowed
        if not (going := sorted(allowed - {eos})):
            break
        token = random.choice(going)
        state = moves[state][token]
        place = constraint.advance(made, place, jnp.array([token]))
