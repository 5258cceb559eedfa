"""The transfers of PaliGemma's authors as settings: what each file of `configs/transfers` says.

Their numbers are of big_vision's `configs/proj/paligemma/transfers` (arXiv:2407.07726, App. J).
The table in docs/transfers.md is printed from here: `python -m paligemma_jax.settings.transfers`.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from paligemma_jax.settings import load, overfit, presets

RESOLUTIONS = (224, 448, 896)
MOST_NAMED = 3  # sources
CAPTION_SCORES = ("cider", "bleu4", "rouge_l")
LANGUAGES = (
    *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr"),
    *("hu", "id", "it", "ja", "ko", "mi", "nl", "no", "pl", "pt", "ro", "ru", "sv", "sw", "te"),
    *("th", "tr", "uk", "vi", "zh"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One transfer.

    Attributes:
      rows: what a row of its JSONL holds besides `image`, in words.
      made_by: the command that makes such rows, where there is one.
      task, prompt, text_len, scores: as the config keys; prompt None: `prefix` as it is.
      tuned_on: the evaluation of big_vision's whose numbers ours have.
      trained_on, evals: the files of the folder, without their ending.
      further: those that its other scores are of, for the argument `also`.
      log_percent, eval_batch_size, beam_size: of evaluations.
      max_images, stride: image slots; every how manieth frame of a video stands in one.
      antialias, draws_answers: the config keys `input.antialias` and `input.draw_answers`.
      sources: {name: weight} of the files train_NAME.jsonl; {}: `trained_on` alone.
      res: where no argument says another one.
      best: {res: what differs there}: the best setting of its sweep.
      published: {res: score} as its README gives it, and what that is of.
      unlike: what differs from big_vision's, in words.
    """

    rows: str
    made_by: str | None = None
    task: str
    prompt: str | None = "answer en {prefix}"
    text_len: int = 32
    scores: tuple[str, ...] | None = ("exact_match",)
    tuned_on: str
    trained_on: str = "train"
    evals: tuple[str, ...] = ("valid",)
    further: tuple[str, ...] = ()
    log_percent: float = 0.125
    eval_batch_size: int | None = 1024
    beam_size: int = 0
    max_images: int = 1
    stride: int | None = None
    antialias: bool = True
    draws_answers: bool = False
    sources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    res: int = 224
    total_epochs: float | None = 10
    total_examples: int | None = None
    total_steps: int | None = None
    batch_size: int = 256
    optax_name: str = "scale_by_adam"
    optax: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"b2": 0.999})
    lr: float = 1e-5
    wd: float | None = 0.0
    warmup_percent: float = 0.05
    grad_clip_norm: float | None = 1.0
    label_smoothing: float = 0.0
    dropout: float = 0.0
    freeze_vit: bool = False
    best: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    published: Mapping[int, str] = dataclasses.field(default_factory=dict)
    published_as: str = ""
    unlike: str = ""

    def at(self, res: int) -> "Recipe":
        """Returns the recipe with the best setting of its sweep at a resolution, if it has one."""
        return dataclasses.replace(self, **self.best.get(res, {}))

    def needs(self, folder: str, *, title: str) -> str:
        """Returns what the data must be, in words; the title is of the config."""
        sources = [f"train_{name}" for name in self.sources] or [self.trained_on]
        names = dict.fromkeys((*sources[:MOST_NAMED], *self.evals))
        more = ", ..." if len(sources) > MOST_NAMED else ""
        files = ", ".join(f"{name}.jsonl" for name in names) + more
        made = f". Rows of one: python -m paligemma_jax.{self.made_by}" if self.made_by else ""
        image = "" if "`image`" in self.rows else "`image`, "
        return f"{title} Expected {files} in {folder}: rows with {image}{self.rows}{made}"


def make(recipe: Recipe, arg: str, *, data: str, about: str) -> ml_collections.ConfigDict:
    """Returns the settings of a transfer.

    Args:
      recipe: the file's.
      arg: behind the colon: data (the folder), res, version (1 or 2), batch_size (0: the recipe's),
        best (False: the numbers of big_vision's file, without those that its sweep found best),
        also (more files of the folder to evaluate at the end, as test+mmvp), overfit, tiny.
      data: the folder, where no argument says another one.
      about: the file's docstring.
    """
    given = load.parse_arg(
        arg,
        data=data,
        res=recipe.res,
        version=1,
        batch_size=0,
        best=True,
        also="",
        overfit=False,
        tiny=False,
    )
    recipe = recipe.at(given.res) if given.best else recipe
    config = presets.finetune(
        model=f"paligemma{given.version}-3b", res=given.res, text_len=recipe.text_len
    )
    config.task = recipe.task
    _set_data(config, recipe, given.data, title=about.partition("\n")[0])
    config.input.batch_size = given.batch_size or recipe.batch_size
    _set_training(config, recipe)
    also = [name for name in given.also.split("+") if name]
    for number, file in enumerate((*recipe.evals, *also)):
        is_tuned_on = number < len(recipe.evals)
        config.evals["val" if file == "valid" else file] = {
            "fname": f"{given.data}/{file}.jsonl",
            "log_percent": recipe.log_percent if is_tuned_on else 1.0,
            "batch_size": recipe.eval_batch_size,
            "max_new_tokens": recipe.text_len,
            **({"scores": recipe.scores} if recipe.scores else {}),
            **({"sampler": "beam", "beam_size": recipe.beam_size} if recipe.beam_size else {}),
        }
    config = presets.tiny(config) if given.tiny else config
    if given.overfit and not config.lr:  # what is only evaluated has none
        config.optax_name, config.lr = "scale_by_adam", Recipe.lr
    return overfit.make(config) if given.overfit else config


def _set_data(
    config: ml_collections.ConfigDict, recipe: Recipe, folder: str, *, title: str
) -> None:
    config.input.data.prefix_template = recipe.prompt
    config.input.data.about = recipe.needs(folder, title=title)
    config.input.max_images = recipe.max_images
    config.input.antialias, config.input.draw_answers = recipe.antialias, recipe.draws_answers
    if not recipe.sources:
        config.input.data.fname = f"{folder}/{recipe.trained_on}.jsonl"
    for name, weight in recipe.sources.items():
        fname = f"{folder}/train_{name}.jsonl"
        config.input.mixture[name] = {"fname": fname, "weight": float(weight)}


def _set_training(config: ml_collections.ConfigDict, recipe: Recipe) -> None:
    config.total_epochs, config.total_examples = recipe.total_epochs, recipe.total_examples
    config.total_steps = recipe.total_steps
    config.optax_name, config.optax = recipe.optax_name, dict(recipe.optax)
    config.lr, config.wd, config.grad_clip_norm = recipe.lr, recipe.wd, recipe.grad_clip_norm
    config.label_smoothing, config.model.llm.dropout = recipe.label_smoothing, recipe.dropout
    schedule = {"decay_type": "cosine", "warmup_percent": recipe.warmup_percent}
    frozen = [("img/.*", None), ("llm/.*", schedule)]
    config.schedule = frozen if recipe.freeze_vit else schedule


def markdown() -> str:
    """Returns the table of all transfers, for docs/transfers.md."""
    lines = [
        "| config | what | rows hold besides `image` | scores | published at 224 / 448 / 896 px |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in load.TRANSFERS:
        with load.reading(f"transfers/{name}") as module:
            one, title = module.RECIPE, module.__doc__.partition(".\n")[0]
        scores = ", ".join(f"`{score}`" for score in one.scores or ("miou",))
        published = "; ".join(one.published.get(res, "-") for res in RESOLUTIONS)
        link = f"[{name}](../configs/transfers/{name}.py)"
        lines.append(
            f"| {link} | {title} | {one.rows} | {scores} | {published}: {one.published_as} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown() + "\n")
