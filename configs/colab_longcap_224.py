"""big_vision's official PaliGemma 2 Colab, number for number: 90 long captions, attention-only SGD.

    python -m paligemma_jax.import_data gs://longcap100 data/longcap100 --task caption \
        --prompt "caption en"
    python -m paligemma_jax.train --config configs/colab_longcap_224.py --workdir runs/longcap

The first command fetches the public objects under gs://longcap100: data_train90.jsonl becomes
train.jsonl, data_val10.jsonl valid.jsonl. As a notebook: notebooks/finetune_paligemma.ipynb.
Differences from the notebook: images are uint8 (at most one grey
level from its floats) and the vision tower computes in float32 where it used float16.

The notebook prints these losses (T4): 3.2343 at step 1, 1.8795 at 2, 1.4779 at 10, 1.1351 at 16,
0.6679 at 32, 0.1446 at 48, 0.0907 at 64.

Arguments (configs/colab_longcap_224.py:tiny): data (the folder), overfit, tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/longcap100", overfit=False, tiny=False)

    # The notebook's 128 tokens include the last one, which is only a label.
    c = presets.finetune(model="paligemma2-3b", res=224, text_len=127)
    c.task = "caption"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.data.prefix_template = "caption en"
    c.input.lowercase = True
    c.input.allow_truncation = True  # as the notebook: some captions are longer
    c.input.batch_size = 8
    c.total_steps = 64
    c.trainable = "llm/layers/attn/.*"
    c.frozen_dtype = "float16"
    c.compute_dtype = c.cache_dtype = "float32"
    c.optax_name, c.lr = "sgd", 0.03
    c.schedule_offset = 1
    c.log_training_steps = 1
    c.evals.val = dict(fname=f"{arg.data}/valid.jsonl", log_steps=16, max_new_tokens=128)
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
