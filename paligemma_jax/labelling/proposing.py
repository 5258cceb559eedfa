"""The process that proposes answers: `python -m paligemma_jax.labelling.proposing RUN`.

It reads lines of JSON, each a list of {"key", "path", "prompt"}, and writes a line for each of
them, what the model answered: {"key", "row"}, or {"key", "error"}.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from paligemma_jax.console import say
from paligemma_jax.data import records
from paligemma_jax.prediction import predictor, queries

BATCH_SIZE = 8
KEPT = ("prediction", "logp", "tokens", "stopped", "detections")


def serve(run: str, questions: TextIO, answers: TextIO) -> None:
    """Answers until there are no more questions."""
    opened = predictor.open_run(run, decoding={"batch_size": BATCH_SIZE})
    for line in questions:
        for answer in answer_all(opened, json.loads(line)):
            answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
            answers.flush()


def answer_all(
    opened: predictor.Predictor, asked: Iterable[dict[str, str]]
) -> Iterator[dict[str, Any]]:
    """Yields what a model answers to images, those of one prompt together."""
    by_prompt: dict[str, list[dict[str, str]]] = {}
    for one in asked:
        by_prompt.setdefault(one["prompt"], []).append(one)
    for prompt, members in by_prompt.items():
        chosen = [
            queries.Query(records.Record((one["path"],), prompt, source=one["key"]))
            for one in members
        ]
        for one, row in zip(members, opened.iterate(chosen), strict=True):
            if "error" in row:
                yield {"key": one["key"], "error": row["error"]}
            else:
                kept = {name: row[name] for name in KEPT if name in row}
                yield {"key": one["key"], "row": kept}


if __name__ == "__main__":
    say.show_on_stderr()
    serve(sys.argv[1], sys.stdin, sys.stdout)
