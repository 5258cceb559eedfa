"""Make transfers.json: the numbers of big_vision's 32 PaliGemma transfer configs.

    BIG_VISION_DIR=... python tests/reference/make_transfers.py

Needs a checkout of big_vision, see third_party/README.md; its configs import nothing but
ml_collections. Where they ask for a reader of videos, nothing stands in for it: only its arguments
are looked at.
"""

import importlib.abc
import importlib.util
import json
import os
import pathlib
import re
import sys
import types

CONFIGS = "big_vision/configs/proj/paligemma"
# A part of its transfers folder that is no transfer of a data set.
OTHERS = ("__init__", "common", "forkme", "vertexai_l4")
TRAINING = (
    *("optax_name", "lr", "wd", "grad_clip_norm", "label_smoothing", "schedule"),
    *("total_epochs", "total_steps", "total_examples"),
)
READER = "raise NotImplementedError('Please implement a video reader of choice!')"
RESIZE = re.compile(r"resize\(\d+(, antialias=True)?")
DRAW = re.compile(r'(?:choice_no_replacement|choice|video_choice)\(inkey="[^"]+", outkey="suffix"')


class WithoutVideos(importlib.abc.SourceLoader):
    """Loads a config file whose reader of videos is left out."""

    def __init__(self, path):
        self.path = str(path)

    def get_filename(self, fullname):  # noqa: ARG002 (every loader has it)
        return self.path

    def get_data(self, path):
        return pathlib.Path(path).read_text().replace(READER, "pass").encode()


def load(path):
    spec = importlib.util.spec_from_loader(path.stem, WithoutVideos(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_sources(data):
    """Returns ({source: weight}, one preprocessing, its data) of an input section."""
    if "pp" in data:
        return {}, data["pp"], data["data"]
    weights = data["data"]
    first = next(iter(weights))
    return dict(weights), data[first]["pp"], data[first]["data"]


def read_texts(pp):
    """Returns what a preprocessing says of images and texts."""
    prompt = re.search(r'strfmt\("((?:[^"\\]|\\.)*)", outkey="prefix"\)', pp)
    return {
        "text_len": int(re.search(r'tolen\((\d+), pad_value=0, key="text"\)', pp)[1]),
        "prompt": prompt and prompt[1].replace("\\n", "\n"),
        "antialias": [bool(found[1]) for found in RESIZE.finditer(pp)][:1],
        "draws_answers": bool(DRAW.search(pp)),
    }


def read(path):
    """Returns the numbers of one config."""
    module = load(path)
    config = module.get_config().to_dict()
    sources, pp, data = read_sources(config["input"])
    best = []
    if hasattr(module, "sweep_best"):
        module.sweep_best(lambda **values: best.append(values))
    evals = {}
    for name, chosen in config["evals"].items():
        if "pred_kw" not in chosen:
            continue  # perplexity, which is always there
        evals[name] = {
            "evaluator": chosen["type"].rpartition(".")[2],
            "batch_size": chosen.get("batch_size"),
            "log_percent": chosen["log_percent"],
            **chosen["pred_kw"],
            "antialias": read_texts(chosen["pp_fn"])["antialias"],
        }
    return {
        **{key: config[key] for key in TRAINING if config.get(key) is not None},
        "optax": config.get("optax", {}),
        "res": config["res"],
        "batch_size": config["input"]["batch_size"],
        "dropout": config["model"]["llm"]["dropout"],
        "vocab_size": config["model"]["llm"]["vocab_size"],
        "model_init": config["model_init"],
        "sources": sources,
        "num_frames": data.get("num_frames"),
        "stride": data.get("stride"),
        **read_texts(pp),
        "evals": evals,
        "best": [
            {key: value for key, value in one.items() if key not in ("config_arg", "mode")}
            for one in best
        ],
    }


def read_published(text):
    """Returns {link text (train split): [scores at 224, 448, 896 px]} of the README's tables."""
    row = re.compile(r"^\[([^\]]+)\][^|]*?(\([^|]*\))?\]? *\|([^|]*)\|(.*)$", re.MULTILINE)
    found = {}
    for name, what, metric, scores in row.findall(text):
        values = [score.strip() for score in scores.split("|")]
        found[f"{name} {what}: {metric.strip()}"] = [value for value in values if value]
    return found


def make(checkout):
    """Returns everything that transfers.json holds."""
    sys.path.insert(0, str(checkout))
    folder = checkout / CONFIGS / "transfers"
    stub_package()
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem not in OTHERS)
    return {
        "configs": {name: read(folder / f"{name}.py") for name in names},
        "published": read_published((folder.parent / "README.md").read_text()),
    }


def stub_package():
    """Keeps `import big_vision.configs` from what its package may import."""
    root = pathlib.Path(sys.path[0])
    for name in ("big_vision", "big_vision.configs", "big_vision.configs.proj"):
        module = types.ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules.setdefault(name, module)


def main():
    made = make(pathlib.Path(os.environ["BIG_VISION_DIR"]))
    target = pathlib.Path(__file__).with_name("transfers.json")
    target.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
