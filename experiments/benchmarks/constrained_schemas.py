"""JSON schemas of the kinds that people ask for, to compile at a real vocabulary."""

KEYS = ("cent", "nickel", "dime", "quarter", "half", "dollar", "euro", "pound", "yen", "franc")
LINE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["food", "drink", "other"]}, "maxItems": 3},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
SCHEMAS = {
    "text_80": {"type": "string", "maxLength": 80},
    "ten_integers": {
        "type": "object",
        "properties": {key: {"type": "integer", "minimum": 0, "maximum": 99} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    },
    "ten_texts": {
        "type": "object",
        "properties": {key: {"type": "string", "maxLength": 80} for key in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "title": {"type": "string", "maxLength": 120},
            "kind": {"enum": ["invoice", "receipt", "other"]},
            "lines": {"type": "array", "items": LINE, "maxItems": 8},
        },
        "required": ["title", "kind", "lines"],
        "additionalProperties": False,
    },
}
