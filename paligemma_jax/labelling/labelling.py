"""What the label door does: opens a data set, and serves the page until it is stopped."""

import dataclasses
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.assembly import assembly, model_functions, training_data, weights
from paligemma_jax.console import say
from paligemma_jax.data import jsonl, tokens
from paligemma_jax.importers import formats, likely_task
from paligemma_jax.labelling import (
    data_opening,
    label_models,
    label_rounds,
    label_server,
    page_calls,
    page_settings,
    row_store,
    row_texts,
)
from paligemma_jax.params import released_models
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

HOST, PORT, TEXT_LEN = "127.0.0.1", 8017, 128
SHIPPED_TOKENIZER = "tiny_base/tokenizer.model"
TOKENIZER = "tokenizer.model"  # beside data


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """What to label, and how the page is reached.

    Attributes:
      data: a JSONL file, a folder with JSONL, a folder of images, or another tool's data set.
      out: where the latter is imported to.
      task, classes, prompt: see `page_settings.PageSettings`; None: as the data are.
      templates: JSON file with more of its values.
      run: of the model that proposes answers; None: nobody does, before a round of training.
      other_run: of a second one, to order images by how much the two disagree.
      model: what rounds of training start from; None: the run's.
      method, epochs, res, train_every: see `label_rounds.TrainOptions`.
      tokenizer: file that answers are read with; None: the run's, that beside the data, or the
        one of the small base in the package.
      text_len: tokens that a row has room for; None: the run's, else 128.
      mask_codec: writes masks as tokens; None: the run's, else the published one.
      host, port: to listen at.
      with_token: whether the page asks for the token of the environment.
    """

    data: pathlib.Path
    out: pathlib.Path | None = None
    task: str | None = None
    classes: str | None = None
    prompt: str | None = None
    templates: pathlib.Path | None = None
    run: str | None = None
    other_run: str | None = None
    model: str | None = None
    method: str | None = None
    epochs: float | None = None
    res: int | None = None
    train_every: int | None = None
    tokenizer: str | None = None
    text_len: int | None = None
    mask_codec: str | None = None
    host: str = HOST
    port: int = PORT
    with_token: bool = False


def label(options: LabelOptions) -> None:
    """Serves the page until the process is asked to stop; all changes are written then.

    Raises:
      ValueError: data that cannot be labelled, or a page that would be open to others.
    """
    start = time.monotonic()
    token = label_server.read_token(options.host, options.with_token)
    if options.task:
        task.rule(options.task)
    data = find_data(options)
    with data_opening.open_store(data) as store:
        calls = open_calls(store, options)
        try:
            with label_server.Server(
                calls, host=options.host, port=options.port, token=token
            ) as server:
                _say_what_is_there(store, calls, server, seconds=time.monotonic() - start)
                serve(server)
        finally:
            if calls.models:
                calls.models.close()
    say.info(f"stopped: {data} holds all changes")


def serve(server: label_server.Server) -> None:
    """Answers until the process is interrupted or asked to stop."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def find_data(options: LabelOptions) -> pathlib.Path:
    """Returns what to open: the data themselves, or what they are imported as.

    Raises:
      ValueError: nothing there, or another tool's data and no place to import them to.
    """
    data, out = options.data, options.out
    if out is not None:
        if any(out.glob("*.jsonl")):
            say.info(f"{out}: imported before")
            return out
        if options.task is None:
            raise ValueError("--out imports a data set of another tool: say --task too")
        _import(options, out)
        return out
    if not data.exists():
        raise ValueError(
            f"{data}: no such file or folder; expected JSONL, a folder of images, or a data set "
            "of another tool"
        )
    is_own = data.suffix == ".jsonl" or (data.is_dir() and any(data.glob("*.jsonl")))
    if is_own:
        folder = data if data.is_dir() else data.parent
        for file in data_opening.find_files(data):
            _require_own_keys(folder / file)
        return data
    others = formats.detect_all(str(data))
    if others or not data.is_dir():
        name = next(iter(others), "no JSONL and no folder")
        raise ValueError(f"{data} is {name}: {_with_import(data)}")
    return data


def _require_own_keys(path: pathlib.Path) -> None:
    """Raises a ValueError for JSONL with another tool's keys, which an import reads."""
    first = next(jsonl.read_lines(str(path)), None) if path.stat().st_size else None
    row = jsonl.parse_line(first[1])[0] if first else None
    if row is None or row.keys() & {"prefix", "suffix"}:
        return
    ours = (*jsonl.ROLES["prefix"], *jsonl.ROLES["suffix"])
    others = [name for name in ours if jsonl.find_column(name, row)]
    if others or "conversations" in row or "messages" in row:
        keys = ", ".join(sorted(row))
        raise ValueError(
            f"{path} has the keys {keys}, not image, prefix and suffix: {_with_import(path)}"
        )


def _with_import(data: pathlib.Path) -> str:
    task_name, _ = likely_task.find(str(data))
    out = data.with_name(f"{data.stem}_jsonl")
    command = shlex.join([str(data), "--task", task_name, "--out", str(out)])
    return (
        f"it is imported first, and what it becomes is labelled: paligemma-jax label {command} "
        "(or another task)"
    )


def _import(options: LabelOptions, out: pathlib.Path) -> None:
    """Imports a data set of another tool, in a process of its own, which says how it goes."""
    words = [str(options.data), str(out), "--task", str(options.task)]
    given = {
        "--classes": options.classes,
        "--prompt": options.prompt,
        "--mask_codec": options.mask_codec,
    }
    words += [word for name, value in given.items() if value for word in (name, value)]
    command = [sys.executable, "-m", "paligemma_jax.import_data", *words]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ValueError(f"{options.data} was not imported: see above")


def open_calls(store: row_store.Store, options: LabelOptions) -> page_calls.Calls:
    """Returns what the page can ask of a data set, with its settings and the model's reader."""
    run_settings: Any = None
    asked = training_data.NOTHING_ASKED
    if options.run:
        run_settings, _ = assembly.open_run(options.run, None, [])
        asked = training_data.read_asked(pathlib.Path(options.run))
    settings = choose_settings(store, options, run_settings, asked.classes)
    codec = options.mask_codec or (run_settings.mask_codec if run_settings else None)
    calls = page_calls.Calls(
        store,
        settings,
        reader=choose_reader(store.folder, options, run_settings),
        codec=codec or weights.PUBLISHED_CODEC,
    )

    def prompt(item: row_store.Item) -> str:
        own = (item.row or {}).get("prefix")
        return own if isinstance(own, str) and own else asked.prompt or calls.writer.usual_prefix()

    if runs := [run for run in (options.run, options.other_run) if run] or options.model:
        calls.models = label_models.Models(
            store,
            calls.images,
            runs=[] if isinstance(runs, str) else runs,
            prompt=prompt,
            training=label_rounds.TrainOptions(
                model=str(options.model or options.run),
                method=options.method,
                epochs=options.epochs,
                res=options.res,
                every=options.train_every,
            ),
        )
    return calls


def choose_settings(
    store: row_store.Store,
    options: LabelOptions,
    run_settings: Any,
    run_classes: Sequence[str],
) -> page_settings.PageSettings:
    """Returns the page's settings: what is asked for, else as before, else as data and run are."""
    kept = store.folder / data_opening.BESIDE / page_settings.FILE
    if kept.exists():
        settings = page_settings.read(kept, page_settings.PageSettings())
    else:
        settings = page_settings.guess(store.items())
        if run_settings and not any(item.is_labelled for item in store.items()):
            names = task.import_names(run_settings.task)
            settings = settings.change({"task": names[0]} if names else {}, where="--run")
        if not settings.classes and run_classes:
            settings = settings.change({"classes": list(run_classes)}, where="--run")
    if options.templates:
        settings = page_settings.read(options.templates, settings)
    given: dict[str, Any] = {"task": options.task, "prompt": options.prompt}
    if options.classes is not None:
        given["classes"] = [name for name in map(str.strip, options.classes.split(",")) if name]
    given = {name: value for name, value in given.items() if value is not None}
    return settings.change(given, where="command line")


def choose_reader(
    folder: pathlib.Path, options: LabelOptions, run_settings: Any
) -> row_texts.Reader:
    """Returns what answers are read with, so that their length is known."""
    text_len = options.text_len or TEXT_LEN
    if options.tokenizer:
        return row_texts.Reader(_load(options.tokenizer), options.tokenizer, text_len)
    if run_settings:
        made = model_functions.load_tokenizer(
            run_settings.model.family, weights.fetch(run_settings.tokenizer)
        )
        room = options.text_len or run_settings.input.text_len
        lowercase = run_settings.input.lowercase
        return row_texts.Reader(made, str(options.run), room, lowercase=lowercase)
    if (folder / TOKENIZER).exists():
        return row_texts.Reader(_load(str(folder / TOKENIZER)), TOKENIZER, text_len)
    name = f"{next(iter(released_models.SHIPPED))}'s tokenizer"
    return row_texts.Reader(_load(SHIPPED_TOKENIZER), name, text_len)


def _load(source: str) -> tokens.Tokenizer:
    return tokens.load_tokenizer(weights.fetch(source))


def _say_what_is_there(
    store: row_store.Store,
    calls: page_calls.Calls,
    server: label_server.Server,
    *,
    seconds: float,
) -> None:
    items = store.items()
    counts: Mapping[str, int] = {
        "done": sum(item.is_done for item in items),
        "begun": sum(item.is_labelled and not item.is_done for item in items),
    }
    settings = calls.offered
    classes = f": {', '.join(settings.classes)}" if settings.classes else ""
    say.info(
        f"{phrases.count(len(items), 'rows')}, {counts['done']} done, {counts['begun']} begun; "
        f"{settings.task}{classes}; opened in {seconds:.1f} s"
    )
    asks = f" (it asks for the token in {label_server.TOKEN})" if server.token else ""
    say.info(f"label at {server.address}{asks}; Ctrl+C ends it")
