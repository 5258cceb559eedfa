"""Scores of answers in words: those of VQA data sets, as big_vision's evaluators define them.

Texts are compared in lower case with their words one space apart; big_vision compares as written
unless told `to_lower`, which its transfer configs of these data sets mostly are.

VQAv2's own accuracy has the changes of spelling that its server makes before it compares
(https://visualqa.org/evaluation.html), the official code's two slips included, since published
numbers have them: one comma between digits lets every mark vanish instead of becoming a space, and
a point goes if no digit follows, whatever stands before it.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import text_metrics

ANLS_THRESHOLD = 0.5
MAX_RELATIVE_ERROR = 0.05
YES_NO = ("yes", "no")
CHOICE = re.compile(r"the answer is ([a-z])\.")
COUNT = "count"  # group of TallyQA's true counts
NUMBER_WORDS = {
    **{"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"},
    **{"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11"},
    **{"twelve": "12", "thirteen": "13", "fourteen": "14", "fifteen": "15", "sixteen": "16"},
    **{"seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20"},
}
# RSVQA's types of questions whose answers are no numbers: of low and of high resolution.
WITHOUT_NUMBERS = (("comp", "presence", "rural_urban"), ("comp", "presence"))


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if the answer is one of the true ones (big_vision's acc_any)."""
    return float(text_metrics.canonical(prediction) in map(text_metrics.canonical, references))


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns min(1, n / 3) where n of several people gave this answer (OKVQA, A-OKVQA, VizWiz).

    A single true answer is compared with. https://visualqa.org/evaluation.html without its average
    over leave-one-out sets and without its changes of spelling, which `vqav2.vqav2_accuracy` has.
    """
    if len(references) == 1:
        return exact_match(prediction, references)
    matches = sum(exact_match(prediction, [reference]) for reference in references)
    return min(1.0, matches / 3)


def anls(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 - edit distance / longer length, 0 below one half; of the nearest true answer.

    DocVQA, InfoVQA, ST-VQA: arXiv:1907.00490, equation 1.
    """
    text = text_metrics.canonical(prediction)
    return max(_similarity(text, text_metrics.canonical(reference)) for reference in references)


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if a number is within 5% of a true one, or the text is the same (ChartQA).

    arXiv:2203.10244, 5.1. "12%" is 0.12. A true number of 0 asks for the same text, as in the
    authors' and big_vision's code: 5% of nothing is nothing, and scores stay comparable.
    """
    return float(
        any(
            _is_near(text_metrics.canonical(prediction), text_metrics.canonical(text))
            for text in references
        )
    )


def pope_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if yes or no is right. Both are lower-cased; big_vision does so to one of them."""
    return exact_match(prediction, references)


def summarize_pope(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns how many answers were yes or no at all."""
    valid = [text_metrics.canonical(row["prediction"]) in YES_NO for row in rows]
    return {"pope_valid": text_metrics.mean(valid)}


def tallyqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if a count is right; words up to twenty, and "none", are numbers."""
    return float(_to_numeral(prediction) in map(_to_numeral, references))


def summarize_tallyqa(rows: Sequence[text_metrics.Row]) -> dict[str, Any]:
    """Returns means of the rows of each true count, whatever it is (big_vision's end at 15)."""
    counts: dict[str, list[float]] = {}
    for row in rows:
        count = _to_numeral(row["references"][0])
        counts.setdefault(count, []).append(row["values"]["tallyqa_accuracy"])
    ordered = sorted(counts, key=lambda count: (len(count), count))
    return {
        "per_count": {
            count: {"tallyqa_accuracy": text_metrics.mean(counts[count]), "num": len(counts[count])}
            for count in ordered
        }
    }


def scienceqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns 1 if both texts begin with "the answer is x." and x is the same letter."""
    letter = _choice(prediction)
    return float(letter is not None and letter in map(_choice, references))


def summarize_scienceqa(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns how many answers do not begin so."""
    failed = [_choice(row["prediction"]) is None for row in rows]
    return {"scienceqa_parse_failures": text_metrics.mean(failed)}


def summarize_rsvqa(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns the mean over types of questions, and over those whose answers are no numbers."""
    by_type: dict[str, list[float]] = {}
    for row in rows:
        kind = row["groups"]["question_type"]
        by_type.setdefault(kind, []).append(row["values"]["rsvqa_accuracy"])
    means = {kind: text_metrics.mean(values) for kind, values in by_type.items()}
    averages = {"rsvqa_average": text_metrics.mean(list(means.values()))}
    # big_vision reports both sets under one name, so that on low resolution rural_urban is lost.
    for kinds in WITHOUT_NUMBERS:
        if set(kinds) <= set(means):
            nonum = text_metrics.mean([means[kind] for kind in kinds])
            return {**averages, "rsvqa_average_nonum": nonum}
    return averages


def _similarity(text: str, truth: str) -> float:
    if not truth:
        return float(not text)
    longer = max(len(text), len(truth))
    if abs(len(text) - len(truth)) >= ANLS_THRESHOLD * longer:
        return 0.0  # as many letters at least are missing
    distance = _edit_distance(text, truth) / longer
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _edit_distance(first: str, second: str) -> int:
    """Returns how many insertions, deletions and replacements make one text the other.

    A column of the table of distances is two integers, one bit a letter: where the next entry is
    one more, and where it is one less (Hyyro, 2003: a bit-vector algorithm for edit distances).
    Two texts of 4,000 letters take 0.01 s, and the table itself 4 s.
    """
    if not second:
        return len(first)
    places = text_metrics.places(second)
    every, last, distance = (1 << len(second)) - 1, 1 << (len(second) - 1), len(second)
    more, less = every, 0
    for letter in first:
        same = places.get(letter, 0)
        across = (((same & more) + more) ^ more) | same
        more_across, less_across = less | (every & ~(across | more)), more & across
        distance += bool(more_across & last) - bool(less_across & last)
        more_across, less_across = (more_across << 1) | 1, less_across << 1
        down = same | less
        more, less = less_across | (every & ~(down | more_across)), more_across & down
        more, less = more & every, less & every
    return distance


def _is_near(text: str, truth: str) -> bool:
    number, true = _to_float(text), _to_float(truth)
    if number is None or not true:  # no number, or 0
        return text == truth
    return abs(number - true) / abs(true) <= MAX_RELATIVE_ERROR


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _to_numeral(text: str) -> str:
    return NUMBER_WORDS.get(text_metrics.canonical(text), text_metrics.canonical(text))


def _choice(text: str) -> str | None:
    match = CHOICE.match(text.lower())
    return match[1] if match else None


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


def vqav2_accuracy(prediction: str, references: Sequence[str]) -> float:
    """Returns the mean of min(1, n / 3) over all ways to leave one of the people's answers out.

    n of the others gave this answer. Spelling is changed only where people do not all agree. Any
    number of answers will do; VQAv2 has ten.
    """
    text, truths = _strip(prediction), [_strip(reference) for reference in references]
    if len(set(truths)) > 1:
        text, truths = normalize_vqav2(text), [normalize_vqav2(truth) for truth in truths]
    matches = np.array([text == truth for truth in truths])
    if len(matches) == 1:
        return float(matches[0])
    return float(np.mean(np.minimum(1, (matches.sum() - matches) / 3)))


def normalize_vqav2(text: str) -> str:
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


# Scores of captions: CIDEr-D, BLEU-4 and ROUGE-L as the COCO caption evaluation defines them.
#
# On words that are split alike they equal pycocoevalcap, which big_vision uses. It splits them with
# Stanford's tokenizer, which needs Java; `split_words` follows its rules for English in one pattern
# and differs in rare words (abbreviations with points, currencies, brackets), so that published
# numbers are comparable to about a tenth of a point. METEOR and SPICE need Java too.

MAX_ORDER = 4  # words in an n-gram
SIGMA = 6.0  # of CIDEr-D's penalty on lengths that differ
BETA = 1.2  # ROUGE-L's weight of recall over precision
# Clitics stand apart as in the Penn Treebank (dog 's, do n't); what is no word is dropped.
WORD = re.compile(r"\w+(?=n't)|n't|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,:]\d+)*|\w+(?:-\w+)*")

Grams = Counter[tuple[str, ...]]


def split_words(text: str) -> list[str]:
    """Returns a caption's words in lower case, without marks."""
    return WORD.findall(text.lower())


def word_f1(prediction: str, references: Sequence[str]) -> float:
    """Returns the F1 of two bags of words, 0..1, of the most similar true answer.

    As SQuAD's F1 (arXiv:1606.05250, 6.1), but words keep their articles and punctuation.
    """
    words = Counter(text_metrics.canonical(prediction).split())
    truths = [Counter(text_metrics.canonical(reference).split()) for reference in references]
    totals = [words.total() + truth.total() for truth in truths]
    pairs = zip(truths, totals, strict=True)
    return max(2 * (words & truth).total() / total if total else 1.0 for truth, total in pairs)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Returns ROUGE-L: precision and recall of the longest common subsequence of words.

    Each is the best over the true captions, joined with recall weighing 1.2 times as much.
    """
    words, truths = split_words(prediction), [split_words(text) for text in references]
    common = [_longest_common(words, truth) for truth in truths]
    precision = max(common) / len(words) if words else 0.0
    shares = zip(common, truths, strict=True)
    recall = max(length / len(truth) if truth else 0.0 for length, truth in shares)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def summarize_bleu(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns BLEU-4 of a data set: n-grams are counted over all rows together, not smoothed."""
    matches, totals = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    length = true_length = 0
    for words, truths in _split_rows(rows):
        length += len(words)
        true_length += min((abs(len(t) - len(words)), len(t)) for t in truths)[1]
        grams, known = _grams(words), [_grams(truth) for truth in truths]
        for gram, count in grams.items():
            matches[len(gram) - 1] += min(count, max(truth[gram] for truth in known))
            totals[len(gram) - 1] += count
    if not rows:
        return {"bleu4": float("nan")}
    if not matches.all():
        return {"bleu4": 0.0}
    brevity = min(0.0, 1 - true_length / length)
    return {"bleu4": float(np.exp(np.mean(np.log(matches / totals)) + brevity))}


def summarize_cider(rows: Sequence[text_metrics.Row]) -> dict[str, float]:
    """Returns CIDEr-D (arXiv:1411.5726): the mean over rows, 0..10.

    n-grams weigh by how few images' true captions hold them, so the score of a row depends on the
    others; of a single image it is 0.
    """
    split = [
        (_grams(words), [_grams(truth) for truth in truths]) for words, truths in _split_rows(rows)
    ]
    documents = Counter(gram for _, truths in split for gram in set().union(*truths))
    num_images = math.log(max(len(split), 1))
    scores = []
    for grams, truths in split:
        vector = _Vector(grams, documents, num_images)
        similar = [vector.similarity(_Vector(t, documents, num_images)) for t in truths]
        scores.append(10 * text_metrics.mean(similar))
    return {"cider": text_metrics.mean(scores)}


class _Vector:
    """A caption as weights of its n-grams, the orders apart."""

    def __init__(self, grams: Grams, documents: Grams, log_images: float):
        self.weights = {
            gram: count * (log_images - math.log(max(1, documents[gram])))
            for gram, count in grams.items()
        }
        squares = np.zeros(MAX_ORDER)
        for gram, weight in self.weights.items():
            squares[len(gram) - 1] += weight**2
        self.norms = np.sqrt(squares)
        # As in pycocoevalcap, a caption's length is the number of its pairs of words.
        self.length = sum(count for gram, count in grams.items() if len(gram) == 2)

    def similarity(self, truth: "_Vector") -> float:
        """Returns the mean over orders of the cosine, repeated words clipped, lengths penalized."""
        products = np.zeros(MAX_ORDER)
        for gram, weight in self.weights.items():
            other = truth.weights.get(gram, 0.0)
            products[len(gram) - 1] += min(weight, other) * other
        norms = self.norms * truth.norms
        cosines = np.divide(products, norms, out=products, where=norms != 0)
        return float(
            np.mean(cosines) * math.exp(-((self.length - truth.length) ** 2) / (2 * SIGMA**2))
        )


def _split_rows(rows: Sequence[Any]) -> list[tuple[list[str], list[list[str]]]]:
    return [
        (split_words(row["prediction"]), [split_words(text) for text in row["references"]])
        for row in rows
    ]


def _grams(words: Sequence[str]) -> Grams:
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(words) - order + 1)
    )


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence.

    A row of its table is one integer: bit j is 0 where the entry is one more than the one before it
    (Hyyro, 2004: bit-parallel LCS-length computation revisited).
    """
    places, every = text_metrics.places(second), (1 << len(second)) - 1
    row = every
    for word in first:
        same = row & places.get(word, 0)
        row = ((row + same) | (row - same)) & every
    return len(second) - row.bit_count()
