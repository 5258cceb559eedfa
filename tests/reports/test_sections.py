"""One list of sections becomes text, a page that needs no network, and JSON."""

import html.parser
import re

from PIL import Image

from paligemma_jax.reports import sections

EVIL = "<script>alert('x')</script>"
TABLE = sections.Table(
    *("Tokens", ("piece", "id"), (("a", "1"), (EVIL, "2"), ("c", "333"))),
    styles=("prefix", "suffix", "padding"),
    num_shown=2,
)
PARTS = (
    sections.Section(
        "example",
        "One example",
        (
            sections.Facts((("row", "x:1"), ("a long name", EVIL))),
            TABLE,
            sections.Picture(Image.new("RGB", (4, 4)), "what a model sees"),
        ),
    ),
)
FOUND = [
    {
        **{"severity": "error", "kind": "box of zero area", "what": EVIL, "remedy": "draw again"},
        **{"subject": "evals.val", "count": 7, "places": ["x:1", "x:2"]},
    }
]


class Text(html.parser.HTMLParser):
    """The tags that are opened, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_text_is_aligned_and_says_what_it_leaves_out():
    lines = sections.to_text(PARTS, FOUND).splitlines()
    assert lines[:4] == ["One example", "=" * 11, "row          x:1", f"a long name  {EVIL}"]
    assert lines[5:8] == ["Tokens", f"{'piece':<27}  id", f"{'a':<27}  1"]
    assert "... and 1 more: --out FOLDER writes all" in lines
    assert lines[-4:] == [
        "ERROR  evals.val: box of zero area (7)",
        f"    {EVIL}",
        "    x:1, 2, and 5 more",
        "    -> draw again",
    ]


def test_what_places_share_is_said_once():
    places = ["a:1", "a:2", "a:3 (needs 7)", "a:4 (needs 7)", "b:4 (needs 7)", "a picture.png"]
    text = sections.to_text([], [{**FOUND[0], "what": "two\nlines", "places": places}])
    assert text.splitlines()[1:4] == [
        "    two",
        "    lines",
        "    a:1, 2; 3, 4 (needs 7); b:4 (needs 7); a picture.png, and 1 more",
    ]


def test_empty_parts_leave_no_blank_lines_and_an_empty_section_no_title():
    parts = (sections.Facts(()), sections.Table("T", ("x",), ()), TABLE)
    lines = sections.to_text([sections.Section("a", "A", parts)], []).splitlines()
    assert lines[:3] == ["A", "=", "Tokens"] and "" not in lines[:-1]
    assert sections.to_text([sections.Section("b", "B", parts[:2])], []) == ""


def test_a_page_holds_everything_and_loads_nothing():
    page = sections.to_html("a check", PARTS, FOUND)
    parsed = Text(page)
    assert "script" not in [tag for tag, _ in parsed.tags]
    assert parsed.text.count(EVIL) == 3
    assert [attrs["class"] for tag, attrs in parsed.tags if tag == "tr" and attrs.get("class")] == [
        *("prefix", "suffix", "padding")
    ]
    assert "x:1, 2, and 5 more" in parsed.text
    (picture,) = [attrs for tag, attrs in parsed.tags if tag == "img"]
    assert picture["src"].startswith("data:image/png;base64,")
    assert not re.search(r"https?://", page)


def test_a_table_that_a_terminal_leaves_out_is_folded_away_on_the_page():
    section = sections.Section("a", "A", (sections.Table("T", ("x",), (("1",),), num_shown=0),))
    assert "T" not in sections.to_text([section], [])
    assert "details" in [tag for tag, _ in Text(sections.to_html("a", [section], [])).tags]


def test_json_has_every_row():
    assert sections.to_json(PARTS, FOUND) == {
        "findings": FOUND,
        "sections": {
            "example": {
                "row": "x:1",
                "a long name": EVIL,
                "Tokens": [
                    {"piece": "a", "id": "1"},
                    {"piece": EVIL, "id": "2"},
                    {"piece": "c", "id": "333"},
                ],
            }
        },
    }


def test_bars_end_where_the_room_ends_in_text_and_on_the_page():
    fits = sections.Bar("a", (("trained", 10.0, "trained"), ("frozen", 10.0, "frozen")), 40.0, "20")
    over = sections.Bar("bb", (("trained", 80.0, "trained"),), 40.0, "80 of 40")
    part = sections.Bars("memory", (fits, over))
    parts = (sections.Section("device", "On it", (part,)),)
    lines = sections.to_text(parts, []).splitlines()
    assert lines[2:6] == [
        "memory",
        f"a   {'T' * 10}{'F' * 10}{'.' * 20}|  20",
        f"bb  {'T' * 20}|{'T' * 20}  80 of 40",
        "(T trained, F frozen)",
    ]
    page = Text(sections.to_html("t", parts))
    rows = [attrs["class"] for tag, attrs in page.tags if attrs.get("class", "").startswith("row")]
    assert rows == ["row", "row over"]
    widths = [attrs["style"] for tag, attrs in page.tags if "width" in attrs.get("style", "")]
    assert widths == ["width:25.00%", "width:25.00%", "width:100.00%"]
    assert sections.to_json(parts, [])["sections"]["device"]["memory"][1] == {
        "label": "bb",
        "trained": 80.0,
        "capacity": 40.0,
    }
