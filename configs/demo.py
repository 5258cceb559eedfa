"""The demo: find fractures in drawn X-rays with a PaliGemma of one million parameters, on a CPU.

    make demo

From random weights through the same code as the 3B runs. experiments/demo tells how the recipe was
found and what it reaches.

Arguments (configs/demo.py:overfit): data, steps, overfit, tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/demo", steps=2400, overfit=False, tiny=False)

    c = presets.from_scratch(
        res=112,
        text_len=20,
        img=dict(width=96, depth=3, mlp_dim=384, num_heads=3, posemb_init="sines"),
        llm=dict(width=96, depth=3, mlp_dim=512, num_heads=3, num_kv_heads=1, head_dim=32),
    )
    c.task = "detection"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.batch_size = 16
    c.total_steps = arg.steps
    c.lr = 2e-3
    c.log_training_steps = 100
    c.evals.valid = dict(
        fname=f"{arg.data}/_annotations.valid.jsonl", log_percent=0.25, batch_size=100
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
