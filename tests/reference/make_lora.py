"""Makes lora_pg1/ and lora_pg2/: ten steps of PEFT's LoRA on the models of hf_pg1/ and hf_pg2/.

    python tests/reference/make_lora.py    # torch, transformers 5.23, peft 0.21

Batches are those of train_trainer_pg1.npz, the loss is the mean over examples of each one's mean
over its supervised tokens. initial/ and trained/ are what PEFT saves before the first step and
after the last; expected.npz holds `losses` before each step, and `logits` of the first batch after
the last one, for the first 256 pieces, zero at padding.
"""

import json
import pathlib
import sys

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IMAGE_TOKEN, IMAGE_TOKENS, PIECES = 1400, 16, 256
CASES = {
    "pg1": (dict(r=4, lora_alpha=8), torch.optim.AdamW, dict(lr=3e-3, betas=(0.9, 0.999))),
    "pg2": (dict(r=2, lora_alpha=4, use_rslora=True), torch.optim.SGD, dict(lr=3e-4)),
}


def inputs(batch):
    """Returns what transformers' model takes, image tokens before the text."""
    rows = len(batch["text"])

    def before(value, part):
        return torch.from_numpy(
            np.concatenate([np.full((rows, IMAGE_TOKENS), value), part], 1).astype(np.int64)
        )

    pixels = batch["image_u8"].astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - 1
    return {
        "input_ids": before(IMAGE_TOKEN, batch["text"]),
        "attention_mask": before(1, batch["mask_input"]),
        "token_type_ids": before(0, batch["mask_ar"]),
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)),
    }


def loss_and_logits(model, batch):
    logits = model(**inputs(batch)).logits[:, IMAGE_TOKENS:, :IMAGE_TOKEN]
    labels = torch.from_numpy(batch["text"][:, 1:].astype(np.int64))
    mask = torch.from_numpy(batch["mask_loss"][:, 1:].astype(np.float32))
    logp = torch.log_softmax(logits[:, :-1], -1).gather(-1, labels[..., None])[..., 0]
    return ((-logp * mask).sum(1) / mask.sum(1)).mean(), logits


def make(case, out):
    settings, optimizer, arguments = CASES[case]
    torch.manual_seed(0)
    base = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        HERE / f"hf_{case}", attn_implementation="eager", dtype=torch.float32
    )
    config = peft.LoraConfig(
        **settings, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config).eval()
    folder = out / f"lora_{case}"
    save(model, folder / "initial", base=f"hf_{case}")
    update = optimizer([p for p in model.parameters() if p.requires_grad], **arguments)
    if "betas" in arguments:
        update.param_groups[0]["weight_decay"] = 0.0
    with np.load(HERE / "train_trainer_pg1.npz") as file:
        given = {k.removeprefix("in/"): v for k, v in file.items() if k.startswith("in/")}
    losses = []
    for step in range(10):
        loss, _ = loss_and_logits(model, {name: x[step] for name, x in given.items()})
        losses.append(loss.item())
        update.zero_grad()
        loss.backward()
        update.step()
    first = {name: x[0] for name, x in given.items()}
    with torch.no_grad():
        logits = loss_and_logits(model, first)[1][..., :PIECES].numpy()
    save(model, folder / "trained", base=f"hf_{case}")
    np.savez_compressed(
        folder / "expected.npz",
        losses=np.array(losses),
        logits=logits * first["mask_input"][..., None].astype(np.float32),
    )


def save(model, folder, *, base):
    # The path of the base would be this machine's.
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    (folder / "adapter_model.safetensors").chmod(0o644)
    text = json.loads((folder / "adapter_config.json").read_text())
    text["target_modules"] = sorted(text["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name in CASES:
        make(name, target)
