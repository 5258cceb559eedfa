"""One arm of the comparison: a model of a million parameters on faint digits, from random weights.

Arguments (config.py:noise=False,steps=500): data, noise, steps.
"""

from paligemma_jax.settings import parse_arg, presets

# Prompt, bos and newline are 4 tokens, a box with its separator 7. Scenes have at most 5 digits:
# every answer ends in a box of noise or more.
TEXT_LEN = 4 + 6 * 7


def get_config(arg=""):
    arg = parse_arg(arg, data="data/digits_faint", noise=True, steps=3000)

    c = presets.from_scratch(
        res=112,
        text_len=TEXT_LEN,
        img=dict(width=96, depth=3, mlp_dim=384, num_heads=3, patch_size=28, posemb_init="sines"),
        llm=dict(width=96, depth=3, mlp_dim=512, num_heads=3, num_kv_heads=1, head_dim=32),
    )
    c.task = "detection"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.augment.shuffle_objects = True
    c.input.noise_piece = "<seg127>" if arg.noise else None
    c.input.batch_size = 16
    c.total_steps = arg.steps
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.lr = 2e-3
    c.log_training_steps = 100
    c.ckpt_steps = 0
    c.evals.valid = dict(
        fname=f"{arg.data}/_annotations.valid.jsonl", log_percent=0.1, batch_size=100
    )
    return c
