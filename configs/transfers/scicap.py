"""SciCap: captions of figures, first sentence, no subfigures.

    python -m paligemma_jax.check --config configs/transfers/scicap.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/scicap.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/scicap.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`suffix` the caption in lower case and split into words",
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption en",
    text_len=96,
    scores=("cider", "bleu4"),
    tuned_on="scicap/val",
    further=("test",),
    log_percent=0.3,
    antialias=False,
    total_epochs=80,
    lr=3e-5,
    label_smoothing=0.1,
    dropout=0.1,
    best={224: {}, 448: {}},
    published={224: "162.25 / 0.192", 448: "181.49 / 0.211"},
    published_as=("SciCap (first sentence, no subfigure) (train+val): CIDEr / BLEU-4 (test)"),
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/scicap", about=__doc__)
