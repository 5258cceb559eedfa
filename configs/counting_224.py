"""Count things, in JSON: PaliGemma 2 3B at 224 px, its language model trained with Adam.

    python -m paligemma_jax.import_data data/coins_coco data/counting --task counting
    python -m paligemma_jax.train --config configs/counting_224.py --workdir runs/counting

The source is COCO (or any other with boxes); an answer is {"dime": 2, "penny": 1} on indented
lines, without classes that are not there. The recipe is that of a published guide to counting with
a small vision-language model, which went from none to 85.5% right: vision tower frozen, batch 24, 2
epochs, the rate going from a tenth of 3e-5 to all of it in the first tenth of the run, then along a
cosine down to a tenth. With another batch size the rate changes by 1.4 for each doubling, as there.

Scores: count_exact (all counts right), exact_match, json_f1 and json_valid.

Arguments (configs/counting_224.py:batch_size=6): data (the folder), res, batch_size, lora (llm or
hf_compat: low-rank factors at 1e-4, for cards of 16 to 24 GB), overfit (8 examples until it repeats
them), tiny (the small base).
"""

import math

from paligemma_jax.settings import overfit, parse_arg, presets

BATCH_SIZE, LR = 24, 3e-5  # as published


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/counting",
        res=224,
        batch_size=BATCH_SIZE,
        lora="",
        overfit=False,
        tiny=False,
    )

    c = presets.finetune(
        model="paligemma2-3b", res=arg.res, text_len=128, method="lora" if arg.lora else "full"
    )
    c.task = "json"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_epochs = 2
    schedule = dict(decay_type="cosine", end=0.1, warmup_percent=0.1, warmup_start=0.1)
    if arg.lora:
        c.lora.targets, c.schedule = arg.lora, schedule
    else:
        c.lr = LR * 1.4 ** math.log2(arg.batch_size / BATCH_SIZE)
        c.schedule = [("llm/.*", schedule), ("img/.*", None)]
    c.grad_clip_norm = 1.0
    c.evals.val = dict(
        fname=f"{arg.data}/valid.jsonl",
        scores=("count_exact", "exact_match", "json_f1"),
        log_percent=0.25,
        max_new_tokens=96,
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
