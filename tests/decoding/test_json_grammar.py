"""JSON of a schema against json.loads, json.dumps and a plain reading of the schema."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton, constraint, json_grammar

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
    state = 0
    for byte in text.encode():
        chosen, targets = language.moves[state]
        (found,) = np.nonzero(chosen == byte)
        if not len(found):
            return False
        state = int(targets[found[0]])
    return state in language.accepting


def write(language, random, *, spare):
    """Writes a text at random, of at most so many bytes more than the shortest one has."""
    end = 256
    made = constraint.compile_grammars([language], eos=end, vocab_size=end + 1)
    room = constraint.shortest_answers(made)[0] + spare
    state, text = made.starts[0], bytearray()
    while True:
        targets = made.moves[state, made.classes]
        chosen = random.choice(np.flatnonzero(made.left[targets] < room - len(text)).tolist())
        if chosen == end:
            return text.decode()
        text.append(chosen)
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
        ({"type": "string", "maxLength": -1}, "maxLength=-1: expected a whole number"),
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
