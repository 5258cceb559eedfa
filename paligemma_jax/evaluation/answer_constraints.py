"""From settings to what may be answered: `evals.NAME.constrain`, and ids that never come."""

import json
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from paligemma_jax.data import noise_boxes, prefix_lm, tokens
from paligemma_jax.decoding import automaton, constraint, grammars, json_grammar
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text, task

# (prompts, one for each row of a data set or one for all; room for tokens) -> what may be said.
Constrain = Callable[[Sequence[str], int], constraint.Constraint | None]
# (what a prompt says of its grammar, room for tokens) -> grammar
MakeGrammar = Callable[[Any, int], constraint.Grammar]

OF_TASK = "task"


def make(
    settings: schema.Settings,
    chosen: str | Sequence[Any] | None,
    *,
    tokenizer: tokens.Tokenizer,
    vocab_size: int,
    noise: noise_boxes.NoiseBoxes | None = None,
) -> Constrain:
    """Returns what makes a constraint for prompts.

    Rows of the embedding beyond the tokenizer's pieces never come, nor does what a model that was
    trained with noise boxes may not say.

    Args:
      settings: all settings.
      chosen: value of the key `constrain`.
      tokenizer: of the model.
      vocab_size: V, rows of the embedding.
      noise: fills answers up in training.

    Raises:
      ValueError: a grammar that the task does not have, or a schema that cannot be used. The
        returned function raises one for a prompt that names no label, and for too little room.
    """
    if chosen is None:
        beyond = range(tokenizer.vocab_size, vocab_size)
        forbidden = (*beyond, *(noise.forbidden_ids if noise else ()))
        free = constraint.forbid(forbidden, vocab_size=vocab_size) if forbidden else None
        return lambda prompts, room: free  # noqa: ARG005 (a Constrain)
    if noise:
        raise ValueError("constrain ends answers, and with input.noise_piece they have no end")
    read_prompt, make_grammar = _choose(settings, chosen, tokenizer)

    def constrain(prompts: Sequence[str], room: int) -> constraint.Constraint:
        keys = [read_prompt(prompt) for prompt in prompts]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        made = constraint.compile_grammars(
            [make_grammar(key, room) for key in distinct],
            grammar_of_row=[distinct[key] for key in keys] if len(distinct) > 1 else [0],
            eos=tokenizer.eos,
            vocab_size=vocab_size,
        )
        if (longest := constraint.shortest_answers(made).max()) > room:
            raise ValueError(
                f"constrain={chosen!r:.80}: the shortest answer takes {longest} tokens, and there "
                f"is room for {room}: set max_new_tokens"
            )
        return made

    return constrain


def _choose(
    settings: schema.Settings, chosen: str | Sequence[Any], tokenizer: tokens.Tokenizer
) -> tuple[Callable[[str], Hashable], MakeGrammar]:
    """Returns what a prompt says of its grammar, and what makes the grammar of that."""
    listed = None if isinstance(chosen, str) else tuple(dict.fromkeys(map(str, chosen)))
    asked = task.look_up(settings.task)
    if grammar := asked.grammar:
        if listed is None and chosen != OF_TASK:
            raise ValueError(
                f"constrain='{chosen}': for {asked.name} '{OF_TASK}' (labels as the prompt asks "
                f"for) or a list of labels"
            )
        lowercase = settings.input.lowercase

        def read_labels(prompt: str) -> Hashable:
            return listed or _labels(prompt, grammar.verb, lowercase=lowercase)

        def make_grammar(labels: Sequence[str], room: int) -> automaton.Automaton:
            return grammars.objects(
                tokenizer, labels, num_segs=grammar.num_segs, check=asked.check, room=room
            )

        return read_labels, make_grammar
    if listed is not None:
        return _nothing, lambda _, room: grammars.choose(tokenizer, listed, room=room)
    if chosen == OF_TASK:
        fitting = " and ".join(one.name for one in task.every() if one.grammar)
        raise ValueError(
            f"constrain='{OF_TASK}' is for {fitting}; for the task '{asked.name}' "
            f"give a list of answers, or the path of a JSON schema"
        )
    asked_json = _read_schema(str(chosen))
    try:
        written = grammars.write_json(tokenizer, asked_json)
    except ValueError as error:
        raise ValueError(f"constrain='{chosen}': {error}") from error
    return _nothing, lambda _, room: written  # noqa: ARG005 (a MakeGrammar)


def _nothing(prompt: str) -> Hashable:
    """The grammar is the same whatever the prompt."""
    del prompt


def _labels(prompt: str, verb: str, *, lowercase: bool) -> tuple[str, ...]:
    """Returns the labels that a prompt asks for, sorted: "detect b ; a" -> ("a", "b")."""
    cleaned, _, _ = prefix_lm.clean(prompt, "", lowercase=lowercase)
    labels = box_text.prefix_classes(cleaned, verb=verb)
    if not labels:
        raise ValueError(
            f"constrain='{OF_TASK}': prompt '{prompt}' names no labels, as '{verb} cat ; dog' "
            f"does; give their list instead: constrain=['cat', 'dog']"
        )
    return tuple(sorted(set(labels)))


def _read_schema(path: str) -> Mapping[str, Any]:
    """Returns a JSON schema from its file."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ValueError(
            f"constrain='{path}': no such file. Give '{OF_TASK}', a list of answers, or the path "
            f"of a JSON schema"
        ) from None
    except OSError as error:
        raise ValueError(f"constrain='{path}': cannot be read: {error.strerror}") from error
    except RecursionError:
        raise ValueError(
            f"constrain='{path}': objects and arrays too deep within each other; a JSON schema of "
            f"at most {json_grammar.MAX_DEPTH} levels can be used"
        ) from None
    except ValueError as error:
        raise ValueError(f"constrain='{path}': not JSON: {error}") from error
