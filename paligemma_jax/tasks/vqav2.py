"""VQAv2's accuracy, with the changes of spelling that its server makes before it compares.

https://visualqa.org/evaluation.html, the official code's two slips included, since published
numbers have them: one comma between digits lets every mark vanish instead of becoming a space, and
a point goes if no digit follows, whatever stands before it.
"""

import re
from collections.abc import Sequence

import numpy as np

ARTICLES = ("a", "an", "the")
MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
POINT = re.compile(r"\.(?!\d)")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
# Words that are written without one of their apostrophes get it back.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
    should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
    someone'll someone's something'd something'd've something'll that's there'd there'd've there're
    there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
    you're you've
"""


def accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns the mean of min(1, n / 3) over all ways to leave one of the people's answers out.

    n of the others gave this answer. Spelling is changed only where people do not all agree. Any
    number of answers will do; VQAv2 has ten.
    """
    text, truths = _strip(prediction), [_strip(reference) for reference in references]
    if len(set(truths)) > 1:
        text, truths = normalize(text), [normalize(truth) for truth in truths]
    matches = np.array([text == truth for truth in truths])
    if len(matches) == 1:
        return float(matches[0])
    return float(np.mean(np.minimum(1, (matches.sum() - matches) / 3)))


def normalize(text: str) -> str:
    """Returns an answer in lower case without marks and articles, numbers up to ten as digits."""
    has_digit_comma = DIGIT_COMMA.search(text)
    changed = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if has_digit_comma or beside_space else " ")
    words = POINT.sub("", changed).lower().split()
    return " ".join(SPELLING.get(word, word) for word in words if word not in ARTICLES)


def _spelling() -> dict[str, str]:
    spelling = {number: str(value) for value, number in enumerate(NUMBERS)} | {"none": "0"}
    for word in CONTRACTIONS.split():
        for place in [place for place, letter in enumerate(word) if letter == "'"]:
            spelling[word[:place] + word[place + 1 :]] = word
    return spelling | {"somebody'd": "somebodyd"}


SPELLING = _spelling()


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
