"""Whatever `import_data` wrote, with PaliGemma 2 3B at 224 px: attention only, plain SGD.

    python -m paligemma_jax.import_data data/coco data/mine --task detection \
        --split train=0.8,valid=0.2
    python -m paligemma_jax.check --config configs/converted.py:data=data/mine --out runs/check
    python -m paligemma_jax.train --config configs/converted.py:data=data/mine --workdir runs/mine

Ten passes over train.jsonl, evaluated eight times on valid.jsonl; optimizer and rate are those of
the fracture notebook. What `import_data` prints of scores and mask codec is set like any key:
--config.mask_codec=FILE.

Arguments (configs/converted.py:data=data/mine,res=448): data, task (detection, segmentation, vqa,
caption, json), res, text_len (`check` says which one fits), batch_size, epochs, overfit (8 examples
until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/mine",
        task="detection",
        res=224,
        text_len=256,
        batch_size=8,
        epochs=10,
        overfit=False,
        tiny=False,
    )

    c = presets.finetune(
        model="paligemma2-3b", res=arg.res, text_len=arg.text_len, method="attention"
    )
    c.task = arg.task
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_epochs = arg.epochs
    c.lr = 0.01
    c.evals.val = dict(fname=f"{arg.data}/valid.jsonl", log_percent=1 / 8)
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
