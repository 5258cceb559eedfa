"""What can be asked of a scene, and the answers: rows of (prompt, answer, kind).

The prompts are PaliGemma's: detect, segment, count, answer en, caption en, ocr.
"""

import collections
import json

import drawn
import numpy as np
import scenes
import sources

from paligemma_jax.tasks import box_text, geometry, mask_text, task

KINDS = ("detect", "segment", "count", "answer", "caption", "ocr")
SHARES = (0.56, 0.1, 0.08, 0.11, 0.08, 0.07)
MAX_BOXES, MAX_MASKS, MAX_NAMES = 5, 2, 3
ALONE, MAX_ALONE = "alone", 4  # a kind of its own; rows of a scene
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
NOUNS = [
    *(*drawn.SHAPES, *sources.PORTRAITS, *scenes.FLAWS, "coin", "face", "horse", "word"),
    *("shape", "digit", "letter", "photo", "flaw", *scenes.DIGITS),
]
PLACES = (("top left", "top", "top right"), ("left", "middle", "right"))
PLACES = (*PLACES, ("bottom left", "bottom", "bottom right"))


def make(rng, scene, *, count, encode):
    """Returns `count` different rows of a scene, fewer where little is in it.

    Args:
      encode: bool[H, W] masks and their boxes to text of <seg> tokens, see `make_data`.
    """
    rows = {}
    for _ in range(3 * count):
        if len(rows) == count:
            break
        kind = str(rng.choice(KINDS, p=SHARES))
        ask = {"segment": segment}.get(kind)
        made = ask(rng, scene, encode) if ask else ASK[kind](rng, scene)
        if made is not None:
            rows[made[0]] = (*made, kind)
    return list(rows.values())


def in_order(things):
    """Returns things as they are read: by their upper side, then by their left one."""
    return sorted(things, key=lambda thing: (thing.box[1], thing.box[0]))


def by_phrase(scene):
    """Returns phrase -> the things that it means."""
    found = collections.defaultdict(list)
    for thing in scene.things:
        for phrase in thing.phrases:
            found[phrase].append(thing)
    return dict(sorted(found.items()))


def absent(rng, present):
    """Returns a phrase that means nothing in the scene."""
    while True:
        phrase = str(rng.choice(NOUNS))
        if rng.random() < 0.35:
            phrase = f"{rng.choice(list(scenes.COLORS))} {phrase}"
        if phrase not in present:
            return phrase


def choose(rng, scene, limit):
    """Returns [(phrase, things)] of different things, at most `limit` of these in all."""
    phrases, chosen, used = by_phrase(scene), [], []
    wanted = int(rng.choice([1, 2, MAX_NAMES], p=[0.4, 0.33, 0.27]))
    for phrase in rng.permutation(list(phrases)):
        things = phrases[str(phrase)]
        if any(thing is other for thing in things for other in used):
            continue
        if len(used) + len(things) <= limit and len(chosen) < wanted:
            chosen.append((str(phrase), things))
            used += things
    return chosen


def bins(thing):
    """Returns yxyx bins of a thing's box."""
    x1, y1, x2, y2 = thing.box
    return geometry.to_bins(np.array([[y1, x1, y2, x2]]) / scenes.SIDE)[0]


def locs(thing):
    return "".join(f"<loc{value:04d}>" for value in bins(thing))


def detect(rng, scene):
    if scene.things and len(scene.things) <= MAX_BOXES and rng.random() < 0.18:
        named = [f"{locs(thing)} {thing.noun}" for thing in in_order(scene.things)]
        return f"detect {box_text.EVERYTHING}", box_text.SEPARATOR.join(named)
    chosen, present = choose(rng, scene, MAX_BOXES), by_phrase(scene)
    if not chosen or rng.random() < 0.05:
        return f"detect {absent(rng, present)}", ""
    names = [phrase for phrase, _ in chosen]
    if len(names) > 1 and rng.random() < 0.3:
        names.insert(int(rng.integers(len(names) + 1)), absent(rng, present))
    labels = {id(thing): phrase for phrase, things in chosen for thing in things}
    things = in_order([thing for _, things in chosen for thing in things])
    answer = box_text.SEPARATOR.join(f"{locs(thing)} {labels[id(thing)]}" for thing in things)
    return f"detect {box_text.SEPARATOR.join(names)}", answer


def alone(rng, scene):
    """Returns rows that ask for one thing that a scene has once, from which all else follows."""
    once = {phrase: things[0] for phrase, things in by_phrase(scene).items() if len(things) == 1}
    chosen = rng.permutation(list(once))[:MAX_ALONE]
    return [(f"detect {name}", f"{locs(once[str(name)])} {name}", ALONE) for name in chosen]


def segment(rng, scene, encode):
    fitting = [thing for thing in scene.things if not thing.text]
    phrases = {
        phrase: things
        for phrase, things in by_phrase(scene).items()
        if len(things) <= MAX_MASKS and all(thing in fitting for thing in things)
    }
    if not phrases:
        return None
    phrase = str(rng.choice(list(phrases)))
    things = in_order(phrases[phrase])
    codes = encode([thing.mask for thing in things])
    texts = [
        f"{locs(thing)}{''.join(f'<seg{code:03d}>' for code in row)} {phrase}"
        for thing, row in zip(things, codes, strict=True)
    ]
    answer = box_text.SEPARATOR.join(texts)
    return None if mask_text.check(answer) else (f"segment {phrase}", answer)


def count(rng, scene):
    phrases = {key: len(things) for key, things in by_phrase(scene).items() if len(things) < 9}
    if len(phrases) > 1 and rng.random() < 0.2:
        asked = sorted(str(phrase) for phrase in rng.permutation(list(phrases))[:3])
        prompt = task.rule("counting").prompt.format(classes=box_text.SEPARATOR.join(asked))
        return prompt, json.dumps({phrase: phrases[phrase] for phrase in asked}, indent=2)
    if not phrases or rng.random() < 0.15:
        return f"count {absent(rng, phrases)}", "0"
    phrase = weighted(rng, phrases)
    return f"count {phrase}", str(phrases[phrase])


def weighted(rng, counts):
    """Returns a key, large numbers more often than there are phrases that mean many things."""
    weights = np.array(list(counts.values()), float)
    return str(rng.choice(list(counts), p=weights / weights.sum()))


def answer(rng, scene):
    asked = QUESTIONS[rng.integers(len(QUESTIONS))](rng, scene)
    return asked and (f"answer en {asked[0]}?", asked[1])


def ask_number(rng, scene):
    phrases = {key: len(things) for key, things in by_phrase(scene).items() if len(things) < 9}
    if phrases:
        phrase = weighted(rng, phrases)
        return f"how many {plural(phrase)} are there", str(phrases[phrase])
    return None


def ask_presence(rng, scene):
    phrases = by_phrase(scene)
    if not phrases or rng.random() < 0.5:
        return f"is there a {absent(rng, phrases)}", "no"
    return f"is there a {rng.choice(list(phrases))}", "yes"


def ask_look(rng, scene):
    only = [t for t in scene.things if t.adjective and count_noun(scene, t.noun) == 1]
    if not only:
        return None
    thing = only[rng.integers(len(only))]
    is_color = thing.adjective in scenes.COLORS
    return (f"what {'color' if is_color else 'pattern'} is the {thing.noun}", thing.adjective)


def ask_place(rng, scene):
    only = [t for t in scene.things if count_noun(scene, t.noun) == 1]
    if not only:
        return None
    thing = only[rng.integers(len(only))]
    x1, y1, x2, y2 = thing.box
    row, column = (min(2, int(3 * (a + b) / 2 / scenes.SIDE)) for a, b in ((y1, y2), (x1, x2)))
    return f"where is the {thing.noun}", PLACES[row][column]


def ask_extreme(rng, scene):
    if len(scene.things) < 2:
        return None
    x1, y1, x2, y2 = np.array([thing.box for thing in scene.things]).T
    values = {
        "on the left": (x1 + x2) / 2,
        "on the right": -(x1 + x2) / 2,
        "at the top": (y1 + y2) / 2,
        "at the bottom": -(y1 + y2) / 2,
        "largest": -np.sqrt((x2 - x1) * (y2 - y1)),
        "smallest": np.sqrt((x2 - x1) * (y2 - y1)),
    }
    which = str(rng.choice(list(values)))
    first, second = np.argsort(values[which])[:2]
    if values[which][second] - values[which][first] < 20:
        return None
    return f"what is {which}", scene.things[first].noun


def ask_background(rng, scene):
    del rng
    return "what is the background", scene.background


QUESTIONS = (ask_number, ask_presence, ask_look, ask_place, ask_extreme, ask_background)


def count_noun(scene, noun):
    return sum(thing.noun == noun for thing in scene.things)


def plural(noun):
    return f"{noun}es" if noun.endswith(("s", "x", "h")) else f"{noun}s"


def caption(rng, scene):
    del rng
    if len(scene.things) > MAX_BOXES:
        return None
    names = [f"{t.adjective} {t.noun}" if t.adjective else t.noun for t in in_order(scene.things)]
    parts = [
        f"{NUMBERS[number]} {plural(name) if number > 1 else name}"
        for name, number in collections.Counter(names).items()
    ]
    return "caption en", f"{' and '.join(parts) or 'nothing'} on {scene.background}"


def read(rng, scene):
    del rng
    texts = [thing.text or thing.noun for thing in in_order(scene.things) if is_read(thing)]
    return ("ocr", " ".join(texts)) if texts else None


def is_read(thing):
    return bool(thing.text) or thing.group in ("letter", "digit")


ASK = {"detect": detect, "count": count, "answer": answer, "caption": caption, "ocr": read}
