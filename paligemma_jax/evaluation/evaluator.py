"""From settings to evaluations: validation loss, answers and what they may be, and their score."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import assembly, datasets, training_data
from paligemma_jax.console import say
from paligemma_jax.data import noise_boxes, pipeline, prefix_lm, tokens
from paligemma_jax.decoding import automaton, generate, grammars, json_grammar
from paligemma_jax.decoding import constraint as constraints
from paligemma_jax.evaluation import prediction_rows
from paligemma_jax.models import family
from paligemma_jax.params import sharding
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text, task
from paligemma_jax.training import step

Params = Mapping[str, jax.Array]
# (prompts, one for each row of a data set or one for all; room for tokens) -> what may be said.
Constrain = Callable[[Sequence[str], int], constraints.Constraint | None]
# (what a prompt says of its grammar, room for tokens) -> grammar
MakeGrammar = Callable[[Any, int], constraints.Grammar]

MAX_EXPONENT = 700  # of exp in float64
NUM_TRIED = 8  # rows whose true answers show which scores there are
NUM_PROGRAMS = 16  # jitted functions that evaluations of one process share
NOT_RANDOM = ("greedy", "beam")  # samplers that draw nothing


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One data set to evaluate on, with everything compiled once.

    Attributes:
      name: key under `evals`.
      settings: of this evaluation, complete.
      records: of the data set.
      task: reads and scores the answers.
      generate: (params, batch) -> Generation, jitted; None where only the loss is wanted.
      max_new_tokens: room for an answer.
      noise: fills the answers up that the loss is of, as in training; None: nothing does.
      prompts, examples: shapes of the batches to answer, and to take the loss of.
      eval_loss: (params, batch) -> (sum of losses, count), jitted.
    """

    name: str
    settings: schema.EvalSettings
    records: datasets.Records
    task: task.Task
    max_new_tokens: int
    prompts: pipeline.BatchSpec
    examples: pipeline.BatchSpec
    generate: Callable[..., generate.Generation] | None
    noise: noise_boxes.NoiseBoxes | None
    eval_loss: Callable[..., Any]

    def score_names(self) -> list[str]:
        """Returns the names of the numbers of `run`; true answers to a few rows show them."""
        names = ["loss", "perplexity"]
        if self.generate is not None:
            scores = prediction_rows.score_truths(self.records[:NUM_TRIED], self.task)
            names += [name for name in scores if isinstance(scores[name], int | float)]
        return names


def make(built: assembly.Assembly, name: str) -> Evaluation:
    """Reads and checks the data and settings of `evals.{name}`; compiles nothing yet."""
    settings, tokenizer = built.settings, built.tokenizer
    chosen = settings.evals[name]
    if chosen.scores and not chosen.decode:
        raise ValueError(f"evals.{name}: scores need answers, and decode is False: leave out one")
    judge = datasets.make_task(settings, chosen.scores) if chosen.scores else built.task
    records = _read(settings, chosen, name)
    if chosen.num_examples:
        records = records[: chosen.num_examples]
    datasets.check_rows(judge, records, name=f"evals.{name}")
    batch_size = round_up(chosen.batch_size or settings.input.batch_size, built.mesh.size)
    text_len = datasets.prompt_len(settings, records, tokenizer)
    datasets.check_lengths(settings, records, tokenizer, name=f"evals.{name}")
    records = datasets.as_learnt(settings, records)
    examples = datasets.spec(settings, batch_size=batch_size)
    pipeline.check_records(records, examples)
    room = chosen.max_new_tokens or datasets.answer_len(settings, records, tokenizer)
    noise = datasets.make_noise(settings, tokenizer, records)
    check_decoding(chosen, noise)
    constrain = make_constrain(settings, built, chosen, noise)
    decode = make_generate(
        built.functions, chosen, eos=tokenizer.eos, max_new_tokens=room, seed=settings.seed
    )
    allowed = constrain([record.prefix for record in records], room)
    return Evaluation(
        name=name,
        settings=chosen,
        records=records,
        task=judge,
        max_new_tokens=room,
        prompts=datasets.spec(settings, batch_size=batch_size, text_len=text_len),
        examples=examples,
        generate=functools.partial(decode, constraint=allowed) if chosen.decode else None,
        noise=noise,
        eval_loss=_jit_loss(built.functions),
    )


def make_constrain(
    settings: schema.Settings,
    built: assembly.Assembly,
    chosen: schema.EvalSettings,
    noise: noise_boxes.NoiseBoxes | None,
) -> Constrain:
    """Returns what makes the constraint on answers to prompts; see `grammars.make`."""
    return constrain_answers(
        settings,
        chosen.constrain,
        tokenizer=built.tokenizer,
        vocab_size=built.functions.vocab_size,
        noise=noise,
    )


def make_generate(
    functions: family.Functions,
    chosen: schema.EvalSettings,
    *,
    eos: int,
    max_new_tokens: int,
    seed: int,
) -> Callable[..., generate.Generation]:
    """Returns the jitted (params, batch, constraint=None) -> Generation of the sampler.

    The same arguments give the same function: evaluations that decode alike compile it once.
    """
    sampling = _Sampling(
        chosen.sampler,
        float(chosen.temperature),
        float(chosen.top_p),
        chosen.best_of,
        chosen.beam_size,
    )
    seed = 0 if chosen.sampler in NOT_RANDOM else seed
    return _jit_generate(functions, sampling, eos=eos, max_new_tokens=max_new_tokens, seed=seed)


@dataclasses.dataclass(frozen=True)
class _Sampling:
    """What an evaluation's settings say of the sampler."""

    sampler: str
    temperature: float
    top_p: float
    best_of: int
    beam_size: int


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def _jit_loss(functions: family.Functions) -> Callable[..., Any]:
    return jax.jit(step.make_eval_loss(functions.apply, functions.logits))


@functools.lru_cache(maxsize=NUM_PROGRAMS)
def _jit_generate(
    functions: family.Functions,
    chosen: _Sampling,
    *,
    eos: int,
    max_new_tokens: int,
    seed: int,
) -> Callable[..., generate.Generation]:
    prefill = functools.partial(functions.prefill, max_new_tokens=max_new_tokens)
    parts = (prefill, functions.decode_step, functions.select_rows)
    common = {"max_new_tokens": max_new_tokens, "eos": eos}
    if chosen.sampler == "beam":
        search = functools.partial(
            generate.beam_search, *parts, beam_size=chosen.beam_size, **common
        )
    else:
        search = functools.partial(
            generate.generate,
            *parts,
            sampler=chosen.sampler,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            best_of=chosen.best_of,
            rng=None if chosen.sampler in NOT_RANDOM else jax.random.key(seed),
            **common,
        )

    def decode(
        params: Params,
        batch: Mapping[str, jax.Array],
        constraint: constraints.Constraint | None = None,
    ) -> generate.Generation:
        return search(params, batch, constraint=constraint)

    return jax.jit(decode)


def run(
    built: assembly.Assembly,
    evaluation: Evaluation,
    params: Params,
    *,
    read_images: pipeline.ReadImages | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns (rows of predictions.jsonl, scores); `read_images` as in `pipeline.eval_batches`.

    Beside the task's, the scores hold the validation loss, the mean over examples of the mean loss
    of their tokens (big_vision's perplexity evaluator calls it avg), and perplexity, its exponent.
    """
    loss = _mean_loss(built, evaluation, params, read_images)
    scores: dict[str, Any] = {"loss": loss, "perplexity": math.exp(min(loss, MAX_EXPONENT))}
    rows: list[dict[str, Any]] = []
    if evaluation.generate is not None:
        batches = pipeline.eval_batches(
            evaluation.records, built.tokenizer, evaluation.prompts, read_images=read_images
        )
        label = f"evaluating {evaluation.name}, answering"
        with say.progress(label, unit="examples", first="compiling") as report:
            rows, task_scores = prediction_rows.evaluate(
                evaluation.generate,
                {**params, **built.functions.unstack(params)},
                datasets.on_mesh(batches, built.mesh),
                evaluation.records,
                built.tokenizer,
                evaluation.task,
                progress=report,
            )
        scores |= task_scores
    return rows, scores


def round_up(number: int, multiple: int) -> int:
    """Returns the smallest multiple that is not below `number`."""
    return -(-number // multiple) * multiple


def check_decoding(chosen: schema.EvalSettings, noise: noise_boxes.NoiseBoxes | None) -> None:
    """Raises a ValueError for settings of a sampler that contradict each other."""
    if noise and chosen.sampler == "beam":
        raise ValueError("sampler 'beam' ends answers, and with input.noise_piece they have no end")
    if chosen.sampler != "beam":
        generate.check_sampling(
            sampler=chosen.sampler, temperature=chosen.temperature, top_p=chosen.top_p
        )
    elif unused := [k for k in ("temperature", "top_p", "best_of") if getattr(chosen, k) != 1]:
        raise ValueError(f"sampler 'beam' has no use for {', '.join(unused)}: leave it out")


def _read(settings: schema.Settings, chosen: schema.EvalSettings, name: str) -> datasets.Records:
    """Returns the records of a file, or those that are trained on."""
    fname, image_dir = chosen.fname, chosen.image_dir
    if fname == schema.INPUT and image_dir:
        raise ValueError(
            f"evals.{name}.image_dir={image_dir!r}: the images of '{schema.INPUT}' are where "
            f"input.data.image_dir says: leave it out"
        )
    if fname == schema.INPUT:
        return training_data.read_sources(settings)[0]
    return datasets.read_records(settings, fname, key=f"evals.{name}.fname", image_dir=image_dir)


def _mean_loss(
    built: assembly.Assembly,
    evaluation: Evaluation,
    params: Params,
    read_images: pipeline.ReadImages | None,
) -> float:
    batches = pipeline.validation_batches(
        evaluation.records,
        built.tokenizer,
        evaluation.examples,
        noise=evaluation.noise,
        read_images=read_images,
    )
    sums = []
    label = f"evaluating {evaluation.name}, loss"
    with say.progress(label, unit="examples", first="compiling") as report:
        for batch in batches:
            sums.append(evaluation.eval_loss(params, sharding.place_batch(batch, built.mesh)))
            done = min(len(sums) * evaluation.examples.batch_size, len(evaluation.records))
            report(done, len(evaluation.records))
        totals = jax.device_get(sums)
    return float(sum(total for total, _ in totals) / max(sum(count for _, count in totals), 1))


# From settings to what may be answered: `evals.NAME.constrain`, and ids that never come.

OF_TASK = "task"


def constrain_answers(
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
        free = constraints.forbid(forbidden, vocab_size=vocab_size) if forbidden else None
        return lambda prompts, room: free  # noqa: ARG005 (a Constrain)
    if noise:
        raise ValueError("constrain ends answers, and with input.noise_piece they have no end")
    read_prompt, make_grammar = _choose_grammar(settings, chosen, tokenizer)

    def constrain(prompts: Sequence[str], room: int) -> constraints.Constraint:
        keys = [read_prompt(prompt) for prompt in prompts]
        distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        made = constraints.compile_grammars(
            [make_grammar(key, room) for key in distinct],
            grammar_of_row=[distinct[key] for key in keys] if len(distinct) > 1 else [0],
            eos=tokenizer.eos,
            vocab_size=vocab_size,
        )
        if (longest := constraints.shortest_answers(made).max()) > room:
            raise ValueError(
                f"constrain={chosen!r:.80}: the shortest answer takes {longest} tokens, and there "
                f"is room for {room}: set max_new_tokens"
            )
        return made

    return constrain


def _choose_grammar(
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
