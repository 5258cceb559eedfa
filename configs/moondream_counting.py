"""Count things, in JSON: Moondream2 at 378 px, its language model trained with Adam.

    python -m paligemma_jax.convert hf/moondream2 moondream2.npz
    python -m paligemma_jax.import_data data/coins_coco data/counting --task counting
    python -m paligemma_jax.train --config configs/moondream_counting.py --workdir runs/counting

The weights are the release 2024-04-02, a folder with its authors' model.safetensors and
tokenizer.json; release=2024-05-20 and 2024-08-26 see large images in squares too, with five times
the work of the vision tower. The recipe is that of a published guide to counting coins, which went
from none to 85.5% right: vision tower frozen, batch 24 (6 on a T4), Adam with betas .9 and .95, the
rate going from a tenth of 3e-5 to all of it in the first tenth of the run, then along a cosine as
long as the whole run, so it ends at 0.122 of it. With another batch size the rate changes by 1.4
for each doubling, as there. The loss is the mean over all tokens of a batch's answers, and Adam
keeps its state in 8 bits: both as there.

Scores: count_exact (all counts right), exact_match, json_f1 and json_valid.

Arguments (configs/moondream_counting.py:batch_size=6): data (the folder), init, tokenizer, release,
batch_size, epochs, lora (low-rank factors at 1e-4; with bits=4 on a base of 4 bits), overfit (8
examples until it repeats them).
"""

import math

from paligemma_jax.settings import overfit, parse_arg, presets

BATCH_SIZE, LR = 24, 3e-5  # as published


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/counting",
        init="moondream2.npz",
        tokenizer="hf/moondream2/tokenizer.json",
        release="2024-04-02",
        batch_size=BATCH_SIZE,
        epochs=2,
        lora=False,
        bits=16,
        overfit=False,
    )

    method = "full" if not arg.lora else "qlora" if arg.bits == 4 else "lora"
    c = presets.finetune_moondream(
        init=arg.init, tokenizer=arg.tokenizer, text_len=160, method=method, release=arg.release
    )
    c.task = "json"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_epochs = arg.epochs
    schedule = dict(
        decay_type="cosine", end=0.1, decay_percent=1.0, warmup_percent=0.1, warmup_start=0.1
    )
    c.loss_mean = "tokens"
    c.optax_name, c.optax = "adam_8bit", dict(b1=0.9, b2=0.95, eps=1e-6)
    if arg.lora:
        c.schedule = schedule
    else:
        c.lr = LR * 1.4 ** math.log2(arg.batch_size / BATCH_SIZE)
        c.schedule = [("text/.*", schedule), ("img/.*", None)]
    c.evals.val = dict(
        fname=f"{arg.data}/valid.jsonl",
        scores=("count_exact", "exact_match", "json_f1"),
        log_percent=0.25,
        max_new_tokens=96,
    )
    return overfit.make(c) if arg.overfit else c
