"""Answers to images with a prompt, for a notebook and the predict door."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import assembly, datasets, model_functions, training_data
from paligemma_jax.console import arguments, say
from paligemma_jax.decoding import generate
from paligemma_jax.evaluation import evaluator, prediction_rows
from paligemma_jax.files import run_folder
from paligemma_jax.prediction import queries
from paligemma_jax.reports import drawing
from paligemma_jax.results import answers
from paligemma_jax.settings import load, schema
from paligemma_jax.tasks import task as tasks
from paligemma_jax.wording import phrases

NEW_TOKENS = 128
# What a row of an evaluation says of the truth, which nobody knows here.
OF_TRUTH = (
    *("suffix", "truths", "matched", "mean_iou", "references"),
    *("values", "groups", "score", "correct"),
)

Image = Any  # str, os.PathLike, uint8[H, W, 3], or an image of Pillow
# One image; or several, of which each may be a tuple or a list of images that belong together.
Images = Image | Sequence[Image | Sequence[Image]]


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A model that is ready to answer; make it with `open_predictor`.

    Attributes:
      settings: of the run.
      built: the assembly that the weights belong to.
      params: weights on their devices, as decoding wants them.
      generate: (params, batch, constraint) -> Generation, compiled once per batch shape.
      constrain: (prompts, room for tokens) -> constraint.
      max_new_tokens: room for an answer.
      batch_size: queries answered at a time.
      asked: what the run was trained to be asked.
    """

    settings: schema.Settings
    built: assembly.Assembly
    params: Mapping[str, jax.Array]
    generate: Callable[..., generate.Generation]
    constrain: evaluator.Constrain
    max_new_tokens: int
    batch_size: int
    asked: training_data.Asked = training_data.NOTHING_ASKED

    @arguments.once_in_words
    def predict(
        self,
        images: Images,
        prompt: str | None = None,
        *,
        every: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> answers.Answers:
        """Returns one answer per image, or per group of images, in their order.

        Args:
          images: paths, uint8[H, W, 3] arrays or images of Pillow, or one of these alone; (before,
            after) in place of one asks about both at once. A path may be a folder, a glob, an
            address, a video or a JSONL file, as the predict command takes them.
          prompt: the prefix, for example "detect fracture"; bos and newline are added. None: what
            the run was trained to be asked.
          every: of a video every so many frames; None: one a second.
          progress: called with (rows done, rows in all); None: what takes long shows a bar.

        Returns:
          answers that show themselves in a notebook: dictionaries with prediction (text), logp
          (of the whole answer), stopped (False: cut off by max_new_tokens), and the task's own
          keys: for detection, detections with box_yxyx in 0..1 of the image, xyxy in its pixels,
          label and score.

        Raises:
          ValueError: an image that cannot be read, or no prompt where training had several.
        """
        alone = isinstance(images, str) or not isinstance(images, Sequence)
        chosen = queries.from_notebook(
            [images] if alone else images,
            self.settings,
            prompt=prompt,
            usual_prompt=self.asked.prompt,
            every=every,
        )
        colors = drawing.choose_colors(self.asked.classes)
        made = answers.Answers()
        shown = say.progress("answering", unit="examples", first="compiling")
        with shown if progress is None else contextlib.nullcontext(progress) as report:
            for query, row in zip(chosen, self.iterate(chosen, progress=report), strict=True):
                if "error" in row:
                    raise ValueError(row["error"])
                opened = functools.partial(queries.open_pictures, query)
                made.append(answers.Answer(row, opened, colors=colors))
        return made

    def __repr__(self) -> str:
        room, model = self.max_new_tokens, self.settings.model
        size = sum(x.nbytes for x in jax.tree.leaves(self.params))
        return answers.one_line(
            f"Predictor({self.settings.task}, {model.img.variant} and {model.llm.variant} at "
            f"{self.settings.res} px, {phrases.size(size)}, up to {room} new tokens)"
        )

    def iterate(
        self,
        chosen: Sequence[queries.Query],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields a row per query as they are ready, in order.

        They are those of `predict`, of a frame with frame (its number) and time_s; one whose
        images cannot be read has error (text) in place of the answer.
        """
        if jax.process_count() > 1:
            raise ValueError("a prediction is made by a single process: start it by itself")
        if not chosen:
            return
        records, broken, sizes = [query.record for query in chosen], {}, {}
        settings, tokenizer = self.settings, self.built.tokenizer
        allowed = self.constrain([record.prefix for record in records], self.max_new_tokens)
        spec = datasets.spec(
            settings,
            batch_size=self.batch_size,
            text_len=datasets.prompt_len(settings, records, tokenizer),
            max_images=max(1, *(query.num_images for query in chosen)),
        )
        batches = queries.make_batches(chosen, tokenizer, spec, broken, sizes)
        answered = prediction_rows.predict(
            functools.partial(self.generate, constraint=allowed),
            self.params,
            datasets.on_mesh(batches, self.built.mesh),
            records,
            tokenizer,
            self.built.task,
            skipped=broken.keys(),
            progress=progress,
        )
        done = 0
        for row in answered:
            yield from _unread(chosen, broken, range(done, row["index"]))
            answer = {key: value for key, value in row.items() if key not in OF_TRUTH}
            size = sizes.pop(row["index"], None)
            yield (prediction_rows.in_pixels(answer, size) if size else answer) | chosen[
                row["index"]
            ].place
            done = row["index"] + 1
        yield from _unread(chosen, broken, range(done, len(chosen)))


def open_predictor(
    built: assembly.Assembly,
    source: str | None,
    decoding: schema.EvalSettings,
    *,
    base: str | None = None,
    batch_size: int = 1,
    prompts: Sequence[str] = (),
    asked: training_data.Asked = training_data.NOTHING_ASKED,
) -> Predictor:
    """Loads weights and returns what answers with them.

    Args:
      built: from `assembly.assemble`.
      source: weights; None: random ones.
      decoding: how to answer; without max_new_tokens 128 new tokens, or as many as training
        answers had that were filled up with noise boxes.
      base: of weights that are trained arrays only, if it is not where it was.
      batch_size: queries answered at a time, rounded up to a multiple of the devices.
      prompts: that will be asked; what is wrong with them is an error before weights load.
      asked: what the run was trained to be asked, if it is known.
    """
    settings = built.settings
    room = decoding.max_new_tokens or _room(settings)
    noise = datasets.make_noise(settings, built.tokenizer)
    evaluator.check_decoding(decoding, noise)
    constrain = evaluator.make_constrain(settings, built, decoding, noise)
    if prompts:
        constrain(prompts, room)
    stored = assembly.find_weights(settings, source, base)
    decode = evaluator.make_generate(
        built.functions,
        decoding,
        eos=built.tokenizer.eos,
        max_new_tokens=room,
        seed=settings.seed,
    )
    return Predictor(
        settings=settings,
        built=built,
        params=model_functions.for_decoding(
            built.functions,
            assembly.load_weights(built, stored),
            blocks=built.model.kind.names.blocks,
        ),
        generate=decode,
        constrain=constrain,
        max_new_tokens=room,
        batch_size=evaluator.round_up(batch_size, built.mesh.size),
        asked=asked,
    )


def open_run(
    run: str,
    *,
    weights: str | None = None,
    checkpoint: str | None = None,
    base: str | None = None,
    decoding: Mapping[str, Any],
    task: str | None = None,
) -> Predictor:
    """Returns what answers with a run's weights; `paligemma_jax.load` describes the arguments."""
    is_run = (pathlib.Path(run) / run_folder.CONFIG).exists()
    if is_run and task:
        raise ValueError(f"task={task!r}: {run} is a run, whose task is its own: leave it out")
    asked_for = [] if is_run else [f"task={task or tasks.likely([], [])}"]
    settings, final = assembly.open_run(
        run if is_run else None, None, asked_for, weights_alone=None if is_run else run
    )
    chosen = load.eval_settings("load", {"fname": run, **decoding})
    return open_predictor(
        assembly.assemble(settings),
        assembly.choose_weights(weights, final, chosen=checkpoint),
        chosen,
        base=base,
        batch_size=chosen.batch_size or 1,
        asked=training_data.read_asked(pathlib.Path(run)),
    )


def _room(settings: schema.Settings) -> int:
    """Returns how many new tokens there is room for where the settings name none."""
    if settings.input.noise_piece is None:
        return NEW_TOKENS
    return max(1, settings.input.text_len - datasets.PROMPT_MULTIPLE)


def _unread(
    chosen: Sequence[queries.Query], broken: Mapping[int, str], places: Iterable[int]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each place, all of which are broken."""
    for index in places:
        record = chosen[index].record
        yield {
            "index": index,
            "source": record.source,
            "images": list(record.images),
            "prefix": record.prefix,
            "error": broken[index],
            **chosen[index].place,
        }
