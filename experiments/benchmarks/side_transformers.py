"""transformers' side of `compare`. Needs torch and transformers, and nothing of ours."""

import os
import pathlib
import sys

import numpy as np
import serve
import torch
import transformers


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    case, folder, new_tokens = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder / "hf", attn_implementation="sdpa", local_files_only=True, dtype=torch.float32
    )
    arrays = dict(np.load(folder / "batch.npz"))
    if case == "decode":
        serve.serve(make_decode(model, arrays, new_tokens))
    else:
        serve.serve(make_step(model, arrays, attention_only=case != "full step"))


def inputs(model, arrays, learnt):
    rows, skip = len(arrays["text"]), model.config.text_config.num_image_tokens
    text = torch.from_numpy(arrays["text"][:, : learnt.shape[1]].astype(np.int64))
    image = torch.full((rows, skip), model.config.image_token_id)
    types = torch.cat([torch.zeros_like(image), torch.from_numpy(learnt.astype(np.int64))], 1)
    pixels = arrays["image"].transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    ids = torch.cat([image, text], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": types,
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)),
    }


def make_step(model, arrays, *, attention_only: bool):
    for name, parameter in model.named_parameters():
        is_attention = "language_model" in name and "self_attn" in name
        parameter.requires_grad = is_attention or not attention_only
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    model.train()
    batch = inputs(model, arrays, arrays["learnt"])
    batch["labels"] = torch.where(batch["token_type_ids"] == 1, batch["input_ids"], -100)

    def update():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda: {"step": serve.seconds(update)}


def make_decode(model, arrays, new_tokens):
    model.eval()
    batch = inputs(model, arrays, np.zeros_like(arrays["learnt"][:, :-1]))

    @torch.no_grad()
    def decode(count):
        model.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False)

    return lambda: serve.decode_times(decode, new_tokens)


if __name__ == "__main__":
    main()
