"""Constrained decoding: are all answers well formed, and what does a token cost?

    python experiments/benchmarks/constrained.py --what valid
    python experiments/benchmarks/constrained.py --what cost --rounds 10

`valid`: answers of a tiny PaliGemma with random weights, with and without each grammar, greedy,
drawn and by beams; how many of them the task's own reading finds nothing to say about. `cost`:
seconds per decoded token of a model of work.py (--size), free and under each grammar in turn, in
one process; the quotient is that of neighbouring times. The tokenizer is trained on a few words,
and pieces that stand for nothing fill the vocabulary up.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
import report
import serve
import work

from paligemma_jax.assembly import model_functions
from paligemma_jax.console import process, say
from paligemma_jax.data import tokens
from paligemma_jax.decoding import constraint, generate, grammars
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.tasks import box_text, mask_text

LABELS = ["cat", "cat food", "dog", "street light"]
ANSWERS = ["yes", "no", "not at all", "nobody", "3", "13"]
COUNTS = {name: {"type": "integer", "minimum": 0} for name in ("cent", "dime", "quarter")}
SCHEMA = {
    "type": "object",
    "properties": {**COUNTS, "note": {"type": "string"}, "sure": {"type": "boolean"}},
    "required": ["note"],
}
# Texts whose characters are counted.
TEXTS = {
    "type": "object",
    "properties": {"note": {"type": "string", "maxLength": 12}, "sure": {"type": "boolean"}},
    "required": ["note", "sure"],
}
ROOM = {"detection": 32, "segmentation": 64, "answers": 8, "json": 48, "texts": 48}
SEARCHES = {
    "greedy": functools.partial(generate.generate, sampler="greedy"),
    "temperature": functools.partial(generate.generate, sampler="temperature"),
    "nucleus": functools.partial(generate.generate, sampler="nucleus", top_p=0.9),
    "beam": functools.partial(generate.beam_search, beam_size=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", required=True, choices=("valid", "cost"))
    parser.add_argument("--answers", type=int, default=1000, help="per grammar and sampler")
    parser.add_argument("--size", default="mid", choices=("tiny", "mid"), help="of `cost`")
    parser.add_argument(
        "--grammars", nargs="+", choices=ROOM, default=list(ROOM), help="of `valid`"
    )
    parser.add_argument(
        "--samplers", nargs="+", choices=SEARCHES, default=list(SEARCHES), help="likewise"
    )
    parser.add_argument("--vocab_size", type=int, default=work.MID.vocab_size)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    print(f"{report.cpu()}, jax {jax.__version__}, float32")
    if args.what == "valid":
        rows = check_answers(tokenizer, args)
        header = ("grammar", "sampler", "answers", "well formed", "free, well formed")
    else:
        process.keep_freed_memory()
        rows = time_tokens(tokenizer, args)
        header = ("grammar", "table", "each token", "to free", "95% interval")
    print(say.table(rows, header=header))


def make_tokenizer() -> tokens.Tokenizer:
    texts = [*LABELS, *ANSWERS, "detect cat ; dog", json.dumps(dict.fromkeys(SCHEMA["properties"]))]
    with tempfile.TemporaryDirectory() as folder:
        return tokens.train_tokenizer(texts, pathlib.Path(folder) / "tokenizer.model")


def make_grammars(tokenizer: tokens.Tokenizer, *, room: int | None = None) -> dict:
    """Returns name -> automaton."""
    size = {name: room or own for name, own in ROOM.items()}
    return {
        **{
            name: grammars.objects(
                tokenizer, LABELS, num_segs=num_segs, check=text.check, room=size[name]
            )
            for name, num_segs, text in (
                ("detection", 0, box_text),
                ("segmentation", mask_text.NUM_TOKENS, mask_text),
            )
        },
        "answers": grammars.choose(tokenizer, ANSWERS, room=size["answers"]),
        "json": grammars.write_json(tokenizer, SCHEMA),
        "texts": grammars.write_json(tokenizer, TEXTS),
    }


def is_well_formed(name: str, text: str) -> bool:
    """Reads a text without the automaton: with the tasks' own readers, and json."""
    if name in ("detection", "segmentation"):
        task = {"detection": box_text, "segmentation": mask_text}[name]
        return task.check(text) is None and set(task.parse(text).labels) <= set(LABELS)
    if name == "answers":
        return text in ANSWERS
    try:
        value = json.loads(text)
    except ValueError:
        return False
    if name == "texts":
        return list(value) == ["note", "sure"] and len(value["note"]) <= 12
    return (
        isinstance(value, dict)
        and isinstance(value.get("note"), str)
        and all(type(value.get(key, 0)) is int and value.get(key, 0) >= 0 for key in COUNTS)
        and isinstance(value.get("sure", True), bool)
        and set(value) <= set(SCHEMA["properties"])
    )


def check_answers(tokenizer: tokens.Tokenizer, args: argparse.Namespace) -> list[tuple]:
    """Returns a row for each grammar and sampler."""
    model = variants.make("tiny/14", "tiny", res=28, vocab_size=tokenizer.vocab_size)
    params = paligemma.init(jax.random.key(args.seed), model)
    # Larger: the logits of fresh weights are so small that greedy answers would all be alike.
    params = {name: 4 * w if w.ndim > 1 else w for name, w in params.items()}
    rows = []
    automata = make_grammars(tokenizer)
    for name in args.grammars:
        made = constraint.compile_grammars(
            [automata[name]], eos=tokenizer.eos, vocab_size=tokenizer.vocab_size
        )
        for search in args.samplers:
            decode = make_decoder(model, ROOM[name], tokenizer.eos, SEARCHES[search])
            counts = []
            for allowed in (made, None):
                texts = answer(decode, params, model, tokenizer, allowed, args)
                counts.append(sum(is_well_formed(name, text) for text in texts))
            rows.append((name, search, *map(str, (args.answers, *counts))))
            print(*rows[-1], flush=True)
    return rows


def answer(decode, params, model, tokenizer, allowed, args) -> list[str]:
    """Returns the texts of random pictures and prompts."""
    rng, texts = np.random.default_rng(args.seed), []
    while len(texts) < args.answers:
        index = len(texts) + np.arange(50)
        batch = make_batch(model, rng, index)
        out = jax.device_get(decode(params, batch, jax.random.key(args.seed), allowed))
        for ids, length in zip(out.tokens, out.length, strict=True):
            ended = ids[length - 1] == tokenizer.eos
            texts.append(tokenizer.decode(ids[:length]) if ended else "cut off")
    return texts[: args.answers]


def make_batch(model: variants.PaliGemma, rng: np.random.Generator, index: np.ndarray) -> dict:
    shape = (len(index), 16)
    return {
        "image": rng.integers(0, 256, (len(index), 1, model.res, model.res, 3), dtype=np.uint8),
        "mask_image": np.ones((len(index), 1), bool),
        "text": rng.integers(3, model.vocab_size, shape, dtype=np.int32),
        "mask_ar": np.zeros(shape, bool),
        "mask_input": np.ones(shape, bool),
        "index": index.astype(np.int32),
        "_mask": np.ones(len(index), bool),
    }


def make_decoder(model: variants.PaliGemma, room: int, eos: int, search):
    functions = as_family.Model(model).functions(paligemma.Compute(), cache_dtype="float32")
    prefill = functools.partial(functions.prefill, max_new_tokens=room)

    @jax.jit
    def decode(params, batch, rng, allowed):
        draws = search.keywords.get("sampler") in ("temperature", "nucleus")
        return search(
            prefill,
            functions.decode_step,
            paligemma.select_rows,
            params,
            batch,
            max_new_tokens=room,
            eos=eos,
            constraint=allowed,
            **({"rng": rng} if draws else {}),
        )

    return decode


def time_tokens(tokenizer: tokens.Tokenizer, args: argparse.Namespace) -> list[tuple]:
    """Returns a row for each grammar. The prompt is read once, what is timed is the loop.

    No answer ends (eos is -1 for the loop), so that all have as many tokens.
    """
    model = dataclasses.replace(work.SIZES[args.size].model, vocab_size=args.vocab_size)
    functions = as_family.Model(model).functions(paligemma.Compute(), cache_dtype="float32")
    params = model_functions.for_decoding(
        functions, paligemma.init(jax.random.key(args.seed), model), blocks=paligemma.LAYERS
    )
    batch = make_batch(model, np.random.default_rng(args.seed), np.arange(args.batch_size))
    room = args.new_tokens
    read = jax.jit(functools.partial(functions.prefill, max_new_tokens=room))(params, batch)

    @jax.jit
    def decode(params, read, allowed):
        return generate.generate(
            lambda *_: read,
            functions.decode_step,
            paligemma.select_rows,
            params,
            {name: batch[name] for name in ("index", "_mask")},
            max_new_tokens=room,
            eos=-1,
            constraint=allowed,
        )

    made = {"free": None} | {
        name: constraint.compile_grammars([grammar], eos=tokenizer.eos, vocab_size=args.vocab_size)
        for name, grammar in make_grammars(tokenizer, room=64).items()
    }
    found = {name: [] for name in made}
    for number in range(args.rounds + 1):  # The first round compiles.
        for name, allowed in made.items():
            run = functools.partial(decode, params, read, allowed)
            found[name].append(serve.seconds(lambda run=run: jax.block_until_ready(run())) / room)
        print(f"round {number} of {args.rounds}", file=sys.stderr, flush=True)
    return [summarize(name, times, found["free"], made[name]) for name, times in found.items()]


def summarize(name: str, times: list[float], free: list[float], made) -> tuple:
    """Returns a row of the table; the first time of each is that of compiling."""
    low, middle, high = report.interval(np.array(times[1:]) / np.array(free[1:]))
    size = "" if made is None else "x".join(map(str, made.moves.shape))
    each = f"{1000 * np.median(times[1:]):.2f} ms"
    return name, size, each, f"{middle:.3f}", f"{low:.3f}..{high:.3f}"


if __name__ == "__main__":
    main()
