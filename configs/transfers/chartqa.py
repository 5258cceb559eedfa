"""ChartQA: questions about charts.

    python -m paligemma_jax.check --config configs/transfers/chartqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/chartqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/chartqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the answer",
    made_by="import_data SRC DST --task vqa --prompt '{question}'",
    task="vqa",
    prompt=None,
    text_len=48,
    scores=("relaxed_accuracy",),
    tuned_on="chartqa/human/minival",
    further=("augmented_valid", "human_test", "augmented_test"),
    log_percent=0.1,
    sources={"augmented": 20901, "human": 7398},
    res=896,
    total_epochs=30,
    wd=1e-6,
    label_smoothing=0.2,
    dropout=0.1,
    best={224: {}, 448: {}},
    published={224: "57.08", 448: "71.36"},
    published_as="ChartQA (human+aug)x(train+val): Mean Relaxed Accuracy (test_human, test_aug)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/chartqa", about=__doc__)
