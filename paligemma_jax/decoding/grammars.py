"""Grammars of answers, as automata over token ids.

Text that is known beforehand, labels and listed answers, is spelt as the tokenizer spells it where
it stands in an answer, and in no other way: so a model was taught it, a text has one probability,
and beams do not fill up with spellings of the same text. JSON is spelt in every way there is, for
where its texts and numbers end is not known beforehand, and pieces reach over these borders.
"""

from collections.abc import Callable, Sequence

from paligemma_jax.data import tokens
from paligemma_jax.decoding import automaton, json_grammar, spelling
from paligemma_jax.tasks import box_text

BOX = "".join(tokens.LOC_PIECES[:4])


def objects(
    tokenizer: tokens.Tokenizer,
    labels: Sequence[str],
    *,
    num_segs: int,
    check: Callable[[str], str | None],
    room: int,
) -> automaton.Automaton:
    """Returns the grammar of objects: boxes that have an area, each with one of the labels.

    `<loc><loc><loc><loc> label` joined by ` ; `, or nothing; with `num_segs` `<seg>` tokens behind
    every box. The label "" stands for an object without label, as referring expressions have it.

    Args:
      tokenizer: of the model.
      labels: that an object may have.
      num_segs: 0 for boxes alone.
      check: (text) -> what is wrong with it, of the task.
      room: tokens that an answer may have, eos included.

    Raises:
      ValueError: no label; one that would not read back, or of which no object fits into `room`.
    """
    if not labels:
        raise ValueError("a grammar of objects without a label")
    segs = automaton.repeat(automaton.symbols(tokenizer.seg_ids), least=num_segs, most=num_segs)
    part = automaton.sequence(_box(tokenizer), segs) if num_segs else _box(tokenizer)
    text = BOX + "".join(tokens.SEG_PIECES[:num_segs])
    taken, loc = len(tokenizer.encode(text)), tokenizer.loc_ids[0]
    inner, last = [], []
    for label in labels:
        named = f"{text} {label}" if label else text
        if problem := check(named):
            raise ValueError(f"label '{label}': {problem}")
        ids = tokenizer.encode(named)
        _check_room(f"an object with the label '{label}'", len(ids) + 1, room)
        last.append(automaton.text(ids[taken:]))
        # Where another object follows, what parts them may be one piece with the label.
        ids = tokenizer.encode(f"{named}{box_text.SEPARATOR}{tokens.LOC_PIECES[0]}")
        inner.append(automaton.text(ids[taken : ids.index(loc, taken)]))
    more = automaton.repeat(automaton.sequence(part, automaton.either(*inner)))
    written = automaton.sequence(more, part, automaton.either(*last))
    return automaton.determinize(automaton.optional(written))


def choose(
    tokenizer: tokens.Tokenizer, answers: Sequence[str], *, room: int
) -> automaton.Automaton:
    """Returns the grammar of a closed list of answers.

    Raises:
      ValueError: an empty list; an answer that the tokenizer does not give back, or that does not
        fit into `room` tokens, eos included.
    """
    if not answers:
        raise ValueError("a list of answers without an answer")
    spelt = [tokenizer.encode(answer) for answer in answers]
    for answer, ids in zip(answers, spelt, strict=True):
        if (decoded := tokenizer.decode(ids)) != answer:
            raise ValueError(f"answer '{answer}': the tokenizer reads it back as '{decoded}'")
        _check_room(f"answer '{answer}'", len(ids) + 1, room)
    return automaton.determinize(automaton.either(*map(automaton.text, spelt)))


def write_json(tokenizer: tokens.Tokenizer, schema: json_grammar.Schema) -> spelling.Spelt:
    """Returns the grammar of JSON texts of a schema; see `json_grammar.make`.

    Raises:
      ValueError: a schema outside the subset, or one that is too large.
    """
    try:
        over_bytes = automaton.determinize(json_grammar.make(schema))
    except automaton.TooLargeError as error:
        raise ValueError(f"JSON schema: {error}: {json_grammar.SMALLER}") from None
    return spelling.spell(over_bytes, tokenizer.spellings())


def _box(tokenizer: tokens.Tokenizer) -> automaton.Part:
    """Four `<loc>`: y1 x1 y2 x2 with y2 > y1 and x2 > x1, so never the last place first."""
    tokens.check_has_places(tokenizer, "a grammar of objects")
    first = automaton.symbols(tokenizer.loc_ids[:-1])
    second = automaton.rising(tokenizer.loc_ids)
    return automaton.sequence(first, first, second, second)


def _check_room(what: str, needed: int, room: int) -> None:
    if needed > room:
        raise ValueError(
            f"{what} takes {needed} tokens, and there is room for {room}: set max_new_tokens"
        )
