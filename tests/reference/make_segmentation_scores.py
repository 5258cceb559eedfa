"""Make segmentation_scores.json: big_vision's mIoU, box accuracy and invalid count of drawn cases.

    BIG_VISION_DIR=... python tests/reference/make_segmentation_scores.py

Needs a checkout of big_vision, see third_party/README.md. Runs its segmentation evaluator on
tokens that are good, shifted, cut off, too many, out of range and of empty boxes, with the codec of
seg_weights.npz; a tokenizer of 2000 ids stands in for PaliGemma's.
"""

import json
import os
import pathlib
import sys
import types

import numpy as np

sys.path.insert(0, os.environ["BIG_VISION_DIR"])
from big_vision.evaluators.proj.paligemma.transfers import segmentation

HERE = pathlib.Path(__file__).parent
EOS, LOC, SEG = 1, 10, 10 + 1024
SIZES = [(97, 143), (64, 64), (300, 200), (31, 500), (240, 240), (480, 17), (128, 128), (50, 90)]


def draw(rng, height, width):
    """Returns (bool[H, W] with an ellipse, its box yxyx in 0..1)."""
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.35, 0.65, 2) * (height, width)
    ry, rx = rng.uniform(0.15, 0.35, 2) * (height, width)
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width]
    return mask, np.float32(box)


def answers(rng, bins, codes):
    """Returns token lists: what a model may write of an object with these bins and codes."""
    good = [LOC + value for value in bins] + [SEG + value for value in codes]
    shifted = [LOC + value for value in np.clip(bins + 60, 0, 1023)] + good[4:]
    return [
        [*good, EOS],
        [*shifted, EOS],
        [*good[:19], EOS],  # 15 seg tokens
        [*good[:4], EOS],  # none
        good + good[4:] + good[4:12] + [EOS],  # 40
        [good[2], good[1], good[0], good[3], *good[4:], EOS],  # inverted
        [good[0], good[1], good[0], good[3], *good[4:], EOS],  # without area
        [LOC, LOC, LOC + 1, LOC + 1, *good[4:], EOS],  # less than a pixel
        [*good[:3], *good[4:], EOS],  # three loc tokens
        [*good[:4], good[0], *good[4:], EOS],  # five
        [5, *good, EOS],  # begins with a word
        [*good[:10], 5, *good[10:], EOS],  # a word among the seg tokens
        [*good, 5, EOS],  # with a label
        [EOS],
    ]


def text_of(tokens):
    """Returns the tokens as text, up to their end."""

    def piece(token):
        if token >= SEG:
            return f"<seg{token - SEG:03d}>"
        return f"<loc{token - LOC:04d}>" if token >= LOC else "word"

    return "".join(piece(int(token)) for token in tokens[: tokens.index(EOS)])


def evaluate(cases):
    """Returns big_vision's scores of [(mask, box, tokens)]."""
    evaluator = object.__new__(segmentation.Evaluator)
    evaluator.loc0, evaluator.seg0 = np.array([LOC]), np.array([SEG])
    evaluator.det_ious, evaluator.steps = (0.5, 0.75), 1
    evaluator.reconstruct_masks = segmentation.get_reconstruct_masks(str(HERE / "seg_weights.npz"))
    tokens = np.zeros((len(cases), 64), np.int32)
    for row, (_, _, given) in zip(tokens, cases, strict=True):
        row[: len(given)] = given
    truths, boxes = np.empty(len(cases), object), np.stack([box for _, box, _ in cases])
    truths[:] = [mask[..., None].astype(np.uint8) for mask, _, _ in cases]
    batch = {
        "_mask": np.ones(len(cases), bool),
        "objects/mask": truths,
        "objects/bbox": boxes,
    }
    evaluator.get_data_iter = lambda: iter([batch])
    evaluator.decode = lambda *_: tokens
    segmentation.u = types.SimpleNamespace(get_local_slice_from_fsarray=np.asarray)
    return {key: float(value) for key, value in evaluator.run(None)}


def main():
    rng = np.random.default_rng(0)
    cases = []
    for height, width in SIZES:
        mask, box = draw(rng, height, width)
        bins = np.rint(box * 1023).astype(int)
        for tokens in answers(rng, bins, rng.integers(0, 128, 16)):
            cases.append((mask, box, [int(token) for token in tokens]))
    rows = [
        {
            "size": list(mask.shape),
            "truth": np.packbits(mask).tobytes().hex(),
            "box_yxyx": box.tolist(),
            "prediction": text_of(tokens),
            "scores": evaluate([(mask, box, tokens)]),
        }
        for mask, box, tokens in cases
    ]
    # Neighbours share a mask: it is written once.
    for row, before in list(zip(rows[1:], rows, strict=False))[::-1]:
        if row["truth"] == before["truth"]:
            del row["truth"]
    result = {"all": evaluate(cases), "rows": rows}
    (HERE / "segmentation_scores.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
