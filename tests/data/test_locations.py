"""Images at addresses: read, tried again, refused, and named when they cannot be had."""

import contextlib
import http.server
import io
import json
import threading

import fsspec
import PIL.Image
import pytest

from paligemma_jax.data import images, jsonl, locations, pipeline, records, tokens

SECRET = "SIGNATURE_0123"


def png(value: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (20, 30), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        statuses, data = self.server.pages.get(path, ([], None))
        status = statuses.pop(0) if statuses else 200 if data is not None else 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Serves `pages`: path -> (statuses of the first requests, bytes)."""
    monkeypatch.setattr(locations, "WAIT_S", 0)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.pages, server.requests = {}, []
    server.url = f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokens.train_tokenizer(["cat"], tmp_path_factory.mktemp("spm") / "a.model")


def write_rows(folder, names):
    """Writes a data set with these images, and returns its file."""
    rows = [{"image": name, "prefix": "cat", "suffix": "cat"} for name in names]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def test_addresses_and_paths_make_one_batch(server, tmp_path, tokenizer):
    (tmp_path / "local.png").write_bytes(png(50))
    server.pages["/b/a.png"] = [], png(100)
    path = write_rows(tmp_path, ["local.png", f"{server.url}/b/a.png"])
    found = records.read_jsonl(path)
    spec = pipeline.BatchSpec(res=14, text_len=16, batch_size=2)
    (batch,) = pipeline.eval_batches(found, tokenizer, spec)
    assert batch["image"][:, 0, 0, 0, 0].tolist() == [50, 100]
    assert server.requests == ["/b/a.png"]


def test_relative_names_are_looked_for_below_a_remote_folder(server, tmp_path):
    server.pages["/b/sub/a.png"] = [], png(100)
    path = write_rows(tmp_path, ["sub/a.png"])
    (record,) = records.read_jsonl(path, image_dir=f"{server.url}/b/")
    assert record.images == (f"{server.url}/b/sub/a.png",)
    assert images.load(record.images[0], res=14)[0, 0, 0] == 100


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "sub/../../a.png", "x::file:///etc/hosts"])
def test_a_name_that_leaves_the_remote_folder_is_refused(tmp_path, name):
    path = write_rows(tmp_path, [name])
    with pytest.raises(ValueError, match=r"a\.jsonl:1: image '.*' is outside gs://bucket/images"):
        records.read_jsonl(path, image_dir="gs://bucket/images")


@pytest.mark.parametrize(
    "name", ["file:///etc/hosts", "local:///etc/hosts", "https://a::file:///etc/hosts"]
)
def test_an_address_leads_to_no_local_file(tmp_path, name):
    assert not locations.is_address(name)
    with pytest.raises(ValueError, match=r"a\.jsonl:1: image '.*': no such file"):
        records.read_jsonl(write_rows(tmp_path, [name]))


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_buckets_are_read_through_fsspec(monkeypatch, scheme):
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/a.png", png(7))
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (system, url.partition("://")[2]))
    assert images.load(f"{scheme}://bucket/a.png", res=14)[0, 0, 0] == 7
    with pytest.raises(ValueError, match=rf"{scheme}://bucket/b\.png: it is not there"):
        locations.read(f"{scheme}://bucket/b.png")


def test_an_overloaded_server_is_asked_again(server):
    server.pages["/a.png"] = [503, 500, 429], png(9)
    assert locations.read(f"{server.url}/a.png") == png(9)
    assert len(server.requests) == 4


def test_what_stays_broken_ends_clearly(server):
    server.pages["/a.png"] = [503] * 9, png(9)
    with pytest.raises(ValueError, match=r"/a\.png: ClientResponseError 503, 4 times"):
        locations.read(f"{server.url}/a.png")
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "reason"), [(403, "not allowed"), (404, "it is not there")])
def test_a_refusal_is_final_and_shows_no_key(server, status, reason):
    server.pages["/a.png"] = [status] * 9, png(9)
    with pytest.raises(ValueError, match=reason) as caught:
        locations.read(f"{server.url}/a.png?X-Signature={SECRET}")
    assert len(server.requests) == 1
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None


def test_a_missing_package_is_named(monkeypatch):
    def missing(_):
        raise ImportError("s3fs")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(ValueError, match="s3:// needs a package: pip install s3fs"):
        locations.read("s3://bucket/a.png")


def test_a_run_that_cannot_have_an_image_names_row_and_address(server, tmp_path, tokenizer):
    server.pages["/a.png"] = [], png(1)
    path = write_rows(tmp_path, [f"{server.url}/a.png", f"{server.url}/gone.png"])
    spec = pipeline.BatchSpec(res=14, text_len=16, batch_size=2)
    batches = pipeline.eval_batches(records.read_jsonl(path), tokenizer, spec)
    message = r"a\.jsonl:2: cannot read image http://localhost:\d+/gone\.png: .*it is not there"
    with pytest.raises(ValueError, match=message):
        next(batches)


def test_what_is_no_image_is_said(server):
    server.pages["/a.png"] = [], b"<html>"
    with pytest.raises(ValueError, match=r"cannot read image http://localhost:\d+/a\.png: Unknown"):
        images.load(f"{server.url}/a.png", res=14)


class Endless(Handler):
    """Sends until nobody listens; "/silent.png" is never answered."""

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/silent.png":
            self.server.stop.wait(20)
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.stop.is_set():
                self.wfile.write(bytes(2**16))


@pytest.fixture
def endless(server):
    server.RequestHandlerClass, server.stop = Endless, threading.Event()
    yield server
    server.stop.set()


def test_a_server_that_never_stops_sending_is_left_at_the_largest_size(endless, monkeypatch):
    monkeypatch.setattr(locations, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match=r"/a\.png: more than 1\.0 MiB"):
        locations.read(f"{endless.url}/a.png")
    assert len(endless.requests) == 1


@pytest.mark.parametrize("path", ["/silent.png", "/a.png"])
def test_a_server_that_takes_too_long_is_left_at_the_deadline(endless, monkeypatch, path):
    monkeypatch.setattr(locations, "DEADLINE_S", 0.2)
    monkeypatch.setattr(locations, "MAX_BYTES", 2**40)
    with pytest.raises(ValueError, match=r"png: not had within 0\.2 s"):
        locations.read(f"{endless.url}{path}")
    assert len(endless.requests) == 1


def test_attempts_share_one_deadline(server, monkeypatch):
    monkeypatch.setattr(locations, "DEADLINE_S", 0.3)
    monkeypatch.setattr(locations, "WAIT_S", 0.4)
    server.pages["/a.png"] = [503] * 9, png(9)
    with pytest.raises(ValueError, match=r"/a\.png: .*503; not had within 0\.3 s|: not had within"):
        locations.read(f"{server.url}/a.png")
    assert len(server.requests) <= 2


# A pointer or a web page under another name is called what it is, wherever it is met.

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
PAGE = b"<!DOCTYPE html><html><body>Not found</body></html>"


@pytest.mark.parametrize(
    ("head", "told"), [(POINTER, "Git LFS pointer"), (PAGE, "web page"), (b"\n <HTML>", "web page")]
)
def test_what_a_file_is_is_told_by_its_beginning(head, told):
    assert told in (locations.describe_head(head) or "")


@pytest.mark.parametrize("head", [b"", b"\x89PNG", b"<svg>", b"{}"])
def test_other_files_are_not_judged(head):
    assert locations.describe_head(head) is None


@pytest.mark.parametrize(("content", "told"), [(POINTER, "git lfs pull"), (PAGE, "a web page")])
def test_training_is_told_what_lies_in_the_place_of_an_image_or_of_rows(tmp_path, content, told):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        images.load(path, res=8)
    with pytest.raises(ValueError, match=told):
        list(jsonl.read_lines(str(path)))
