"""An importer, optimizers and a storage of one's own, as docs/extending.md writes them.

The examples are the page's own, and no line of the package is changed.
"""

import io
import json

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from paligemma_jax import import_data
from paligemma_jax.data import images, locations, records
from paligemma_jax.hub import addresses, download, sites
from paligemma_jax.importers import formats
from paligemma_jax.tasks import box_text
from paligemma_jax.training import optimizer
from tests import extending_page

STEPS = 4


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


# An importer


@pytest.fixture
def source(monkeypatch, tmp_path):
    """A folder of two images, which the page's importer alone can read once it has lines."""
    monkeypatch.setitem(
        formats.FORMATS, "box_lines", extending_page.run_example("An importer").BOX_LINES
    )
    folder = tmp_path / "source"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(png(100 * number))
    return folder


def test_an_importer_of_ones_own_is_found_and_its_rows_are_read_by_training(
    source, tmp_path, capsys
):
    lines = "a.png 0 0 10 10 red fox\na.png 10 5 20 10 owl\nb.png 0 0 20 5 owl\nb.png 1 2\n"
    (source / "boxes.txt").write_text(lines + "gone.png 0 0 5 5 owl\n")
    import_data.main([str(source), str(tmp_path / "out"), "--task", "detection"])
    out, printed = capsys.readouterr()
    assert "is box_lines (boxes.txt)" in printed
    summary = json.loads(out)
    assert summary["read"] == {"images": 3, "objects": 3} and summary["rows"] == {"train": 2}
    written = records.read_jsonl(tmp_path / "out" / "train.jsonl", check=box_text.check)
    assert [box_text.parse(row.suffix).labels for row in written] == [("red fox", "owl"), ("owl",)]
    assert {row.prefix for row in written} == {"detect owl ; red fox"}
    dropped = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in dropped] == [
        "boxes.txt:4",
        "boxes.txt: gone.png",
    ]


def test_labels_that_an_importer_of_ones_own_lost_are_an_error_that_tells_where(source, tmp_path):
    (source / "boxes.txt").write_text("a.png 5 5 5 5 owl\nb.png 30 30 40 40 owl\n")
    with pytest.raises(ValueError, match=r"(?s)nothing is left.*the lines of boxes\.txt"):
        import_data.main([str(source), str(tmp_path / "out"), "--task", "detection"])


# Optimizers


def train(tx):
    """The parameters after each of some steps on a loss that is no mere square."""
    params = {
        "a/kernel": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3),
        "a/bias": jnp.array([0.5, -0.5, 2.0]),
    }
    inputs = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.2]])

    def loss(params):
        return jnp.mean(jnp.sin(inputs @ params["a/kernel"] + params["a/bias"]) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, seen = tx.init(params), []
    for _ in range(STEPS):
        params, state = step(params, state)
        seen.append(params)
    return seen


SCHEDULE = dict(decay_type="linear", warmup_steps=1)


@pytest.mark.parametrize(
    ("name", "arguments", "lr", "schedule", "plain"),
    [
        (
            "centred_momentum",
            dict(decay=0.8),
            0.1,
            SCHEDULE,
            lambda rate: optax.chain(optax.centralize(), optax.sgd(rate, momentum=0.8)),
        ),
        (
            "optax_adamw",
            dict(weight_decay=0.3),
            0.1,
            SCHEDULE,
            lambda rate: optax.adamw(rate, weight_decay=0.3),
        ),
        (
            "prodigy",
            dict(learning_rate=0.5, weight_decay=0.1),
            1.0,
            dict(decay_type="constant"),
            lambda _: optax.contrib.prodigy(0.5, weight_decay=0.1),
        ),
    ],
)
def test_an_optimizer_of_ones_own_trains_as_optax_does(
    monkeypatch, name, arguments, lr, schedule, plain
):
    function = getattr(extending_page.run_example("An optimizer"), name)
    monkeypatch.setitem(optimizer.TRANSFORMS, name, function)
    shapes = {
        "a/kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32),
        "a/bias": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    made = optimizer.make_optimizer(
        shapes,
        schedule=schedule,
        total_steps=STEPS,
        lr=lr,
        optax_name=name,
        optax_args=arguments,
    )
    (multiplier,) = made.schedules.values()
    ours, theirs = train(made.tx), train(plain(lambda count: lr * multiplier(count)))
    assert not np.array_equal(ours[0]["a/kernel"], ours[-1]["a/kernel"])
    for one, other in zip(ours, theirs, strict=True):
        for key in one:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-6, atol=1e-7)


# A storage


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """Files of a new scheme, known to both tables; {} of them remain."""
    monkeypatch.setitem(sites.SITES, "memory", extending_page.run_example("A storage").MEMORY)
    monkeypatch.setitem(locations.PACKAGES, "memory", "fsspec")
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/own", recursive=True)


def test_a_file_of_a_storage_of_ones_own_is_fetched_once(memory, tmp_path):
    memory.pipe_file("/own/a.model", b"pieces")
    path = addresses.resolve("memory://own/a.model")
    assert path == tmp_path / "cache/memory/own/a.model" and path.read_bytes() == b"pieces"
    memory.pipe_file("/own/a.model", b"others")
    assert addresses.resolve("memory://own/a.model").read_bytes() == b"pieces"
    assert addresses.find("memory://own/a.model") == path
    with pytest.raises(download.DownloadError, match=r"memory://own/b\.model: it is not there"):
        addresses.resolve("memory://own/b.model")
    with pytest.raises(ValueError, match="expected the address of a file"):
        addresses.resolve("memory://own/../../a.model")


def test_weights_in_parts_are_fetched_from_a_storage_of_ones_own(memory):
    file = io.BytesIO()
    np.savez(file, a=np.arange(50))
    whole = file.getvalue()
    memory.pipe_file("/own/w.npz.part0", whole[:100])
    memory.pipe_file("/own/w.npz.part1", whole[100:])
    first = addresses.resolve("memory://own/w.npz")
    parts = [first.with_name(f"w.npz.part{number}").read_bytes() for number in range(2)]
    assert first.name == "w.npz.part0" and b"".join(parts) == whole


def test_images_of_a_storage_of_ones_own_are_read(memory, tmp_path):
    memory.pipe_file("/own/a.png", png(7))
    row = {"image": "a.png", "prefix": "what?", "suffix": "red"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (record,) = records.read_jsonl(tmp_path / "a.jsonl", image_dir="memory://own")
    assert record.images == ("memory://own/a.png",)
    assert images.load(record.images[0], res=14)[0, 0, 0] == 7
    graph = images.tensorflow().function(lambda path: images.load_op(path, res=14))
    assert graph(record.images[0]).numpy()[0, 0, 0] == 7
