"""The names of the files in a run's folder.

config.json                      the settings, every key resolved
prompt.json                      what it is asked, and the classes that it knows
tokenizer.model, mask_codec.npz  copies: the folder works without the files it was started from
metrics.jsonl                    a row of numbers per logged step
tensorboard/                     the same rows, as event files
checkpoints/000200/              to resume from
predictions-val-000200.jsonl     the answers of an evaluation at a step
metrics.json, report.html        the scores and the report of the last evaluation; of several
                                 evaluations metrics-val.json, report-val.html
final.npz                        the weights, written last: its presence ends the run
evaluation-val/                  what `evaluate` writes later: predictions.jsonl, metrics.json
                                 and report.html
"""

CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
PROMPT = "prompt.json"
MASK_CODEC = "mask_codec.npz"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
FINAL = "final.npz"
PREDICTIONS = "predictions.jsonl"
SWEEP = "sweep.html"  # of a sweep, in the folder above its runs


def predictions(evaluation: str, step: int) -> str:
    """Returns the file of an evaluation's answers after a step."""
    return f"predictions-{evaluation}-{step:06d}.jsonl"


def scores(evaluation: str = "") -> str:
    """Returns the file of scores; named after the evaluation where there are several."""
    return f"metrics-{evaluation}.json" if evaluation else "metrics.json"


def report(evaluation: str = "") -> str:
    """Returns the file of the report; named after the evaluation where there are several."""
    return f"report-{evaluation}.html" if evaluation else "report.html"


def evaluation(name: str) -> str:
    """Returns the folder of what `evaluate` writes."""
    return f"evaluation-{name}"
