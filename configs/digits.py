"""Real handwritten digits in scenes, "detect 3 ; 7": 1.8 million parameters, on a CPU.

    python experiments/digits/make_data.py --out data/digits --placement grid
    python -m paligemma_jax.train --config configs/digits.py --workdir runs/digits

From random weights. experiments/digits has the scores, for digits on the patch grid and anywhere.

    python -m paligemma_jax.sweep --config configs/digits.py:steps=500 --workdir runs/digits-rates

Arguments (configs/digits.py:data=data/digits_free): data, steps, overfit, tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/digits", steps=4000, overfit=False, tiny=False)

    c = presets.from_scratch(
        res=112,
        text_len=40,
        img=dict(width=128, depth=4, mlp_dim=512, num_heads=4, posemb_init="sines"),
        llm=dict(width=128, depth=3, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=32),
    )
    c.task = "detection"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.batch_size = 32
    c.total_steps = arg.steps
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.log_training_steps = 100
    c.evals.valid = dict(
        fname=f"{arg.data}/_annotations.valid.jsonl", log_percent=0.1, batch_size=100
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c


def sweep(add):
    for lr in (3e-4, 1e-3, 3e-3):
        add(lr=lr)
