"""Score answers that no model wrote: what a true box is worth, and what the codec loses.

    python experiments/segmentation/baselines.py --data data/shapes/_annotations.test.jsonl

writes baselines.json beside this file, or into --results: mIoU of the true tokens, of the true box
filled up, and of the true box with the mask of some other shape of the same kind from the same
file.
"""

import argparse
import json
import pathlib

import numpy as np

from paligemma_jax.assembly import weights
from paligemma_jax.data import objects, records
from paligemma_jax.tasks import geometry, mask_text, segmentation

HERE = pathlib.Path(__file__).parent
CODEC = HERE.parent / "mask_codec" / "codec.npz"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="a JSONL file of make_data.py")
    parser.add_argument(
        "--results", type=pathlib.Path, default=HERE, help="folder of baselines.json"
    )
    args = parser.parse_args()

    codec = weights.load_codec(str(CODEC))
    found = records.read_jsonl(args.data, check=mask_text.check)
    truths = [mask_text.parse(record.suffix) for record in found]
    full = codec.encode(np.ones((1, geometry.MASK_SIDE, geometry.MASK_SIDE), np.float32))
    answers = {
        "true_tokens": [truth.codes for truth in truths],
        "filled_box": [full] * len(truths),
        "other_of_its_kind": choose_others(truths, np.random.default_rng(0)),
    }
    result = {name: score(found, truths, codes, codec) for name, codes in answers.items()}
    (args.results / "baselines.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def choose_others(truths, rng):
    """Returns the codes of another scene's shape of the same kind, for every scene."""
    kinds = np.array([truth.labels[0] for truth in truths])
    chosen = []
    for number, kind in enumerate(kinds):
        same = np.flatnonzero((kinds == kind) & (np.arange(len(kinds)) != number))
        chosen.append(truths[rng.choice(same)].codes)
    return chosen


def score(found, truths, codes, codec):
    """Returns the mIoU of true boxes and labels with these codes."""
    rows = []
    for record, truth, code in zip(found, truths, codes, strict=True):
        answer = mask_text.Segments(truth.boxes_yxyx, code, truth.labels)
        judged = segmentation.score_example(
            mask_text.format(answer),
            suffix=record.suffix,
            draw_truth=objects.draw_later(record.objects),
            codec=codec.decode,
        )
        rows.append(judged)
    return round(segmentation.aggregate(rows)["miou"], 4)


if __name__ == "__main__":
    main()
