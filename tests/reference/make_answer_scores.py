"""Make answer_scores.json: big_vision's scores of hand-made answers, and losses of random logits.

    BIG_VISION_DIR=... python tests/reference/make_answer_scores.py

Needs a checkout of big_vision, see third_party/README.md, and pycocoevalcap. Runs the evaluators of
its PaliGemma transfers on answers that stand in for decoded tokens. Captions are compared on words
that are split already: pycocoevalcap's own tokenizer needs Java.
"""

import importlib
import json
import os
import pathlib
import sys
import types

import numpy as np

sys.path.insert(0, os.environ["BIG_VISION_DIR"])
HERE = pathlib.Path(__file__).parent
TRANSFERS = "big_vision.evaluators.proj.paligemma.transfers"

TEN = ["2"] * 4 + ["two"] * 3 + ["3"] * 2 + ["a few"]
VQAV2 = [
    ("2", TEN, "number"),
    ("Two.", TEN, "number"),
    ("3", TEN, "number"),
    ("the red, white bus", ["red white bus"] * 5 + ["red-white bus"] * 5, "other"),
    ("dont know", ["don't know"] * 2 + ["yes"] * 8, "other"),
    ("1,000", ["1000"] * 3 + ["1,000"] * 6 + ["thousand"], "number"),
    ("yes", ["yes"] * 10, "yes/no"),
    ("Yes", ["yes"] * 10, "yes/no"),
    ("a yes", ["yes"] * 9 + ["no"], "yes/no"),
    ("3.5 m", ["3.5 m"] * 2 + ["3.5m"] * 8, "other"),
    ("end.", ["end"] * 3 + ["the end."] * 3 + ["stop"] * 4, "other"),
    ("somebodyll go?", ["somebody'll go"] * 5 + ["she'd've gone"] * 5, "other"),
    ("wouldn'tve / couldnt've", ["wouldn't've couldn't've"] * 9 + ["x"], "other"),
    ("", ["nothing"] * 9 + [""], "other"),
    ("none", ["0"] * 5 + ["none"] * 5, "number"),
]
VQA = [
    ("dog", ["dog", "dog", "cat", "dog", "puppy"]),
    ("cat", ["dog", "dog", "cat", "dog", "puppy"]),
    ("cats", ["dog", "cat"]),
    ("Dog", ["dog", "dog"]),
    ("invoice 1234", ["invoice 1235", "1235"]),
    ("inv", ["invoice", "in"]),
    ("", ["", "x"]),
    ("abc", ["abd"]),
    ("ab", ["cd", "abcd"]),
]
ONE = [("dog", "dog"), ("Dog", "dog"), ("dogs", "dog"), ("", "dog"), ("12/05/2020", "12/06/2020")]
CHART = [
    *[("10", "10"), ("10.4", "10"), ("10.6", "10"), ("12%", "0.12"), ("0.121", "12%"), ("0", "0")],
    *[("0.0", "0"), ("0.01", "0"), ("-9.6", "-10"), ("yes", "Yes"), ("5 apples", "5"), ("", "5")],
    *[("1e2", "100"), ("%", "5"), ("nan", "nan"), ("2019", "2020"), ("blue", "blue, red")],
]
POPE = [("yes", "yes"), ("No", "no"), ("maybe", "no"), ("", "yes"), ("no", "yes"), ("YES", "yes")]
TALLY = [
    *[("2", "2", 1), ("two", "2", 1), ("Two", "2", 0), ("none", "0", 0), ("3", "2", 1)],
    *[("fifteen", "15", 0), ("12", "twelve", 1), ("many", "7", -1), ("", "1", 0)],
]
SCIENCE = [
    *[("The answer is A.", "the answer is a."), ("the answer is b.", "the answer is a.")],
    *[("the answer is a. Because", "the answer is a."), ("a", "the answer is a.")],
    *[("the answer is a", "the answer is a."), (" the answer is a.", "the answer is a.")],
    *[("the answer is 1.", "the answer is b."), ("", "the answer is c.")],
]
RSVQA = [
    *[("yes", ["yes"], "presence"), ("no", ["yes"], "presence"), ("Yes", ["yes"], "comp")],
    *[("4", ["4"], "count"), ("5", ["4"], "count"), ("urban", ["urban"], "rural_urban")],
    *[("rural", ["urban"], "rural_urban"), ("100m2", ["100m2"], "area"), ("no", ["no"], "comp")],
]
CAPTIONS = [
    (
        "a cat sits on a mat",
        ["a cat is sitting on the mat", "the cat sat on a mat", "a cat on a mat"],
    ),
    ("two dogs run in the park", ["two dogs running through the park", "dogs run in the park"]),
    ("a man rides a horse", ["a man is riding a brown horse", "a person on a horse on the beach"]),
    ("a red bus on the street", ["a red double decker bus driving down the street"]),
    ("the the the the the the", ["the dog is in the house", "a dog"]),
    ("a plate of food", ["a plate of food with rice and beans on it", "food on a plate"]),
    ("zebra", ["two zebras standing in grass", "zebras in a field"]),
    ("a cat sits on a mat", ["a cat sits on a mat"]),
]


def run(name, given, truth):
    """Returns the scores of one evaluator: given are texts, truth the keys of a batch."""
    module = importlib.import_module(f"{TRANSFERS}.{name}")
    evaluator = object.__new__(module.Evaluator)
    evaluator.steps, evaluator.outfile = 1, ""
    evaluator.out_question_key, evaluator.out_answer_key = "question_id", "answer"
    if name != "science_qa":  # which has a method of this name
        evaluator.postproc = str.lower
    arrays = {key: as_objects(values) for key, values in truth.items()}
    batch = {"_mask": np.ones(len(given)), "question_id": np.arange(len(given)), **arrays}
    evaluator.get_data_iter = lambda: iter([batch])
    evaluator.data_iter = iter([batch])
    evaluator.decode = lambda *_: np.arange(len(given))
    evaluator.tok = types.SimpleNamespace(to_str=lambda number, **_: given[number])
    module.u = types.SimpleNamespace(get_local_slice_from_fsarray=np.asarray)
    module.c.multiprocess_write_json = lambda *_: None
    return {key: float(value) for key, value in evaluator.run(None)}


def as_objects(values):
    made = np.empty(len(values), object)
    made[:] = [np.array(value) if isinstance(value, list) else value for value in values]
    return made


def case(metric, name, rows, **keys):
    """Returns rows (prediction, answer or answers, ..), and scores of each of them and of all."""
    names = list(keys)

    def truth(rows):
        return {key: [row[1 + number] for row in rows] for number, key in enumerate(names)}

    return {
        "metric": metric,
        "evaluator": name,
        "rows": [{"prediction": row[0], **dict(zip(names, row[1:], strict=True))} for row in rows],
        "each": [run(name, [row[0]], truth([row])) for row in rows],
        "all": run(name, [row[0] for row in rows], truth(rows)),
    }


def score_captions():
    from pycocoevalcap.bleu import bleu
    from pycocoevalcap.cider import cider
    from pycocoevalcap.rouge import rouge

    truths = {number: references for number, (_, references) in enumerate(CAPTIONS)}
    found = {number: [caption] for number, (caption, _) in enumerate(CAPTIONS)}
    return {
        "rows": [{"prediction": text, "answers": references} for text, references in CAPTIONS],
        "bleu4": float(bleu.Bleu().compute_score(truths, found, verbose=0)[0][3]),
        "rouge_l": float(rouge.Rouge().compute_score(truths, found)[0]),
        "cider": float(cider.Cider().compute_score(truths, found)[0]),
        "rouge_l_each": rouge.Rouge().compute_score(truths, found)[1].tolist(),
    }


def score_losses():
    """Returns the perplexity evaluator's "sum" and "avg" of each of three examples."""
    from big_vision.evaluators.proj.paligemma import perplexity

    rng = np.random.default_rng(0)
    logits = np.round(3 * rng.standard_normal((3, 4, 5)), 2)
    text, mask = rng.integers(0, 5, (3, 5)), np.array([[0, 1, 1, 1, 1], [0, 0, 0, 1, 0], [0] * 5])
    evaluate = perplexity.perplexity(lambda *_: (logits, {}), key="text")
    found = evaluate(None, {"text": text, "mask_loss": mask})
    given = {"logits": logits, "text": text, "mask_loss": mask}
    return {key: np.asarray(value).tolist() for key, value in {**given, **found}.items()}


def main():
    result = {
        "answers": [
            case("vqav2_accuracy", "vqav2", VQAV2, answers=0, answer_type=0),
            case("vqa_accuracy", "vqa", VQA[:-1], answers=0),
            case("vqa_accuracy", "vqa", ONE, answer=0),
            case("relaxed_accuracy", "chartqa", CHART, answer=0),
            case("pope_accuracy", "pope", POPE, answer=0),
            case("tallyqa_accuracy", "tallyqa", TALLY, answer=0, issimple=0),
            case("scienceqa_accuracy", "science_qa", SCIENCE, answer=0),
            case("rsvqa_accuracy", "rsvqa", RSVQA, answers=0, question_type=0),
        ],
        "captions": score_captions(),
        "losses": score_losses(),
    }
    (HERE / "answer_scores.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
