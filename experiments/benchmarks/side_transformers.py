"""transformers' side of `compare`. Needs torch and transformers (LoRA: peft), nothing of ours."""

import importlib.metadata
import os

import numpy as np
import serve
import torch
import transformers

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LORA_TARGETS = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"


def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    work, arrays = serve.read_work()
    if work.what == "checkpoint":
        run = make_checkpoint(work)
    elif work.what == "decode":
        run = make_decode(work, arrays)
    else:
        run = make_step(work, arrays)
    libraries = ("torch", "transformers", *(("peft",) if work.trains == "lora" else ()))
    versions = {name: importlib.metadata.version(name) for name in libraries}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    serve.serve(run, {"device": device, "versions": versions}, peak_bytes)


def peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else serve.resident_peak()


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def read(work):
    # It has no fused attention with PaliGemma 2's soft-cap.
    text = "eager" if work.model["llm"]["attn_logits_softcap"] else "sdpa"
    return transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        work.folder / "hf",
        attn_implementation={"text_config": text, "vision_config": "sdpa"},
        local_files_only=True,
        dtype=getattr(torch, work.dtype),
    ).to(DEVICE)


def inputs(model, arrays, learnt):
    rows, skip = len(arrays["text"]), model.config.text_config.num_image_tokens
    text = torch.from_numpy(arrays["text"][:, : learnt.shape[1]].astype(np.int64))
    image = torch.full((rows, skip), model.config.image_token_id)
    types = torch.cat([torch.zeros_like(image), torch.from_numpy(learnt.astype(np.int64))], 1)
    pixels = arrays["image"].transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    ids = torch.cat([image, text], 1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": types,
        "pixel_values": torch.from_numpy(np.ascontiguousarray(pixels)).to(model.dtype),
    }
    return {name: x.to(DEVICE) for name, x in batch.items()}


def make_checkpoint(work):
    loaded = []

    def load():
        loaded.append(read(work))
        wait()

    return lambda: serve.time_checkpoint(
        load, lambda: loaded.pop().save_pretrained(work.folder / "saved_by_transformers")
    )


def make_step(work, arrays):
    model = read(work)
    batch = inputs(model, arrays, arrays["learnt"])
    batch["labels"] = torch.where(batch["token_type_ids"] == 1, batch["input_ids"], -100)
    if work.trains == "lora":
        import peft

        config = peft.LoraConfig(
            r=work.lora_rank, lora_alpha=work.lora_rank, target_modules=LORA_TARGETS
        )
        model = peft.get_peft_model(model, config)
    else:
        for name, parameter in model.named_parameters():
            is_attention = "language_model" in name and "self_attn" in name
            parameter.requires_grad = is_attention or work.trains == "all"
    if work.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [p for p in model.parameters() if p.requires_grad]
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[work.optimizer]
    optimizer = make(trained, lr=work.lr)
    model.train()

    def update():
        nonlocal loss
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()

    loss = None

    def run():
        times = {"step": serve.seconds(update)}
        return {"seconds": times, "loss": float(loss.detach())}

    return run


def make_decode(work, arrays):
    model = read(work)
    model.eval()
    batch = inputs(model, arrays, np.zeros_like(arrays["learnt"][:, :-1]))

    @torch.no_grad()
    def decode(count):
        found = model.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        wait()
        return found[:, -count:].cpu()

    return lambda: serve.time_decoding(decode, work.new_tokens)


if __name__ == "__main__":
    main()
