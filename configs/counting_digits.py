"""How many of each handwritten digit, in JSON: two million parameters, on a CPU.

    python experiments/digits/make_data.py --out data/digits_counted --placement cells --counted
    python -m paligemma_jax.train --config configs/counting_digits.py --workdir runs/digits_counted

From random weights; a digit is a patch. experiments/counting has the scores, with and without a
grammar. Arguments (configs/counting_digits.py:steps=200): data, steps, overfit, tiny (the small
base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/digits_counted", steps=3000, overfit=False, tiny=False)

    c = presets.from_scratch(
        res=112,
        text_len=64,
        img=dict(width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=28, posemb_init="sines"),
        llm=dict(width=128, depth=3, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=32),
    )
    c.task = "json"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.batch_size = 32
    c.total_steps = arg.steps
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.log_training_steps = 100
    c.evals.valid = dict(
        fname=f"{arg.data}/_annotations.valid.jsonl",
        scores=("count_exact", "json_f1"),
        log_percent=0.1,
        batch_size=100,
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
