"""In place of the hubs: a web server on this machine, and clients no test reaches by accident."""

import contextlib
import dataclasses
import http.server
import threading
import time
import traceback

import huggingface_hub
import kagglehub
import pytest

from paligemma_jax.hub import addresses, download

SECRET = "KGAT_0123456789"
KEYS = (
    "KAGGLE_USERNAME",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "KAGGLE_CONFIG_DIR",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "BV_GEMMA_DIR",
    "PALIGEMMA_JAX_CACHE",
)


@dataclasses.dataclass
class Page:
    """What is served under one path.

    cuts: after how many bytes the next requests are hung up on, one entry each; then none is.
    every_s: the data is sent again and again, so often, and no size said; None: it has an end.
    """

    data: bytes = b""
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=lambda: {"ETag": '"v1"'})
    cuts: list[int] = dataclasses.field(default_factory=list)
    honours_range: bool = True
    every_s: float | None = None
    says_size: bool = True


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` (path -> Page) at `url`; `requests` are the (path, Range) it was asked for."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.pages, self.requests = {}, []
        self.url = f"http://localhost:{self.server_port}"

    def serve(self, path: str, data: bytes = b"", **settings) -> str:
        """Adds a page and returns its address."""
        self.pages[path] = Page(data, **settings)
        return self.url + path


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = self.server.pages.get(self.path.partition("?")[0], Page(status=404))
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        is_same = self.headers.get("If-Range") in (page.headers.get("ETag"), None)
        start = 0
        if asked and is_same and page.honours_range:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else page.status)
        for name, value in page.headers.items():
            self.send_header(name, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(page.data) - 1}/*")
        body = page.data[start:]
        if page.every_s is not None:
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # when the other side has had enough
                while True:
                    self.wfile.write(body)
                    time.sleep(page.every_s)
            return
        if page.says_size:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: page.cuts.pop(0)] if page.cuts else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "WAIT_S", 0)
    monkeypatch.setattr(download, "CHUNK_BYTES", 100)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No keys, no settings, an empty home, and hubs that fail a test which reaches for them."""

    def unexpected(*args, **settings):
        pytest.fail(f"a hub is asked for {args} {settings}")

    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("kagglehub.config.DEFAULT_KAGGLE_CREDENTIALS_FOLDER", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(download, "has_route", lambda _: True)
    for client, name in (
        (kagglehub, "model_download"),
        (huggingface_hub, "hf_hub_download"),
        (huggingface_hub, "list_repo_files"),
    ):
        monkeypatch.setattr(client, name, unexpected)


@pytest.fixture
def message_of():
    """Returns the message of the DownloadError that resolving gives; no key may be in sight."""

    def resolve(source, **settings):
        with pytest.raises(download.DownloadError) as caught:
            addresses.resolve(source, **settings)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        return str(caught.value)

    return resolve
