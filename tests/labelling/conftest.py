"""A data set of a few images, served as the door serves it, and a browser that looks at it."""

import contextlib
import importlib.util
import pathlib
import threading

import pytest
from PIL import Image

from paligemma_jax.labelling import data_opening, label_server, labelling

# Tests are no package: what they share is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "browser", pathlib.Path(__file__).parents[1] / "browser.py"
)
assert _spec is not None and _spec.loader is not None
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)


@pytest.fixture
def make_images(tmp_path):
    """Returns a function that writes images into a new folder: (count) -> folder."""

    def make(count: int, name: str = "photos") -> pathlib.Path:
        folder = tmp_path / name
        folder.mkdir()
        for number in range(count):
            color = (40 * number % 256, 90, 160)
            Image.new("RGB", (200, 100), color).save(folder / f"{number}.png")
        return folder

    return make


@pytest.fixture
def serve():
    """Returns a function that serves a data set: (folder, options) -> (address, store)."""
    with contextlib.ExitStack() as stack:

        def serve(data: pathlib.Path, token: str | None = None, **options):
            chosen = labelling.LabelOptions(data=data, port=0, **options)
            store = stack.enter_context(data_opening.open_store(data))
            calls = labelling.open_calls(store, chosen)
            server = label_server.Server(calls, host="127.0.0.1", port=0, token=token)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()

            def stop():
                server.shutdown()
                server.server_close()
                thread.join()

            stack.callback(stop)
            return server.address, store

        yield serve


@pytest.fixture(scope="module")
def opened():
    with browser.opened() as made:
        made.resize(1400, 900)
        yield made


@pytest.fixture
def window(opened):
    opened.resize(1400, 900)
    yield opened
    opened.go("about:blank")
