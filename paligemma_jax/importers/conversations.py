"""Rows that hold a conversation: LLaVA's, OpenAI's (Roboflow exports it too) and ms-swift's.

    {"image": "1.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                                         {"from": "gpt", "value": "A box."}]}
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"},
                   {"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}]},
                  {"role": "assistant", "content": "A box."}]}

Every answer makes a row with what was said by the user before it. What stands further up is not
part of that row, which is counted. Formats: https://github.com/haotian-liu/LLaVA (docs,
Finetune_Custom_Data), https://platform.openai.com/docs/guides/vision-fine-tuning.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

from paligemma_jax.importers import columns, example
from paligemma_jax.tasks import definition

TURNS = ("conversations", "messages")
USERS, ASSISTANTS = ("human", "user"), ("gpt", "assistant", "model", "bot")
TAG = "<image>"
DATA = "data:image/"
TAGGED = ("prefix", "question", "query", "prompt")
KEPT = {"image", "images", "split", *columns.SCORE_KEYS}


def flatten(
    row: Mapping[str, Any], request: example.Request, source: str, tally: example.Tally
) -> Iterator[Mapping[str, Any]]:
    """Yields a row for each answer of a conversation; any other row is yielded as it is.

    The columns are prefix and suffix for tasks of objects, whose prompts are whole; else question,
    answer and caption.
    """
    turns = next((row[key] for key in TURNS if isinstance(row.get(key), list)), None)
    if turns is None:
        yield _without_tags(row, tally)
        return
    kept = {key: value for key, value in row.items() if key in KEPT}
    asked: list[str] = []
    pictures: list[Any] = []
    count = 0
    for turn in turns:
        who, texts, seen = _read_turn(turn)
        pictures += seen
        if who in USERS:
            asked += texts
        elif who in ASSISTANTS:
            count += 1
            text = " ".join(" ".join(asked).replace(TAG, " ").split())
            image = kept.get("image", kept.get("images", pictures))
            yield kept | {"image": image} | _texts(text, " ".join(texts), request)
            asked = []
        else:
            tally.changed["messages left out that are neither of the user nor the answer"] += 1
    if count > 1:
        tally.changed["answers of longer conversations taken with their own question only"] += count
    if count == 0:
        tally.read["rows"] += 1
        tally.drop("row", "conversation without an answer", source)


def decode_image(value: str) -> tuple[str, bytes] | None:
    """Returns (the ending, the bytes) of an image that is written out in its address, or None."""
    head, comma, text = value.partition(",")
    if not value.startswith(DATA) or not comma or not head.endswith(";base64"):
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return "." + head.removeprefix(DATA).removesuffix(";base64").split("+")[0].lower(), data


def _texts(question: str, answer: str, request: example.Request) -> dict[str, str]:
    if request.rule.source == definition.OBJECTS:
        return {"prefix": question, "suffix": answer}
    return {"question": question, "answer": answer, "caption": answer}


def _read_turn(turn: Any) -> tuple[str, list[str], list[Any]]:
    """Returns who speaks, the texts, and the images."""
    if not isinstance(turn, dict):
        return "", [], []
    who = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    texts, images = [], []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            image = part.get("image_url", part.get("image"))
            image = image.get("url") if isinstance(image, dict) else image
            images += [image] if isinstance(image, str) else []
            texts += [part["text"]] if isinstance(part.get("text"), str) else []
    return who.lower() if isinstance(who, str) else "", texts, images


def _without_tags(row: Mapping[str, Any], tally: example.Tally) -> Mapping[str, Any]:
    """Returns a row whose prompt does not say where the image goes: here it is always first."""
    tagged = {
        key: " ".join(row[key].replace(TAG, " ").split())
        for key in TAGGED
        if isinstance(row.get(key), str) and TAG in row[key]
    }
    if tagged:
        tally.changed[f"prompts without their {TAG}"] += 1
    return {**row, **tagged} if tagged else row
