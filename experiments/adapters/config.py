"""A PaliGemma of 0.4 million parameters for the scenes of make_data.py, trained on `base` ones.

python -m paligemma_jax.train --config experiments/adapters/config.py --workdir runs/base
"""

from paligemma_jax.settings import parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/adapters", scenes="base", steps=1500)

    c = presets.from_scratch(
        res=56,
        text_len=14,
        img=dict(width=64, depth=2, mlp_dim=256, num_heads=2, posemb_init="sines"),
        llm=dict(width=64, depth=2, mlp_dim=256, num_heads=2, num_kv_heads=1, head_dim=32),
    )
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/{arg.scenes}/train.jsonl"
    c.input.batch_size = 32
    c.total_steps = arg.steps
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.lr = 2e-3
    c.log_training_steps = 100
    c.ckpt_steps = 0
    c.evals.test = dict(fname=f"{arg.data}/{arg.scenes}/test.jsonl", batch_size=100)
    return c
