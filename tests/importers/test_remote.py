"""Data sets by address, against a server on this machine that speaks as the hubs do."""

import http.server
import io
import json
import pathlib
import threading
import urllib.parse

import kagglehub
import kagglehub.exceptions
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from paligemma_jax import import_data
from paligemma_jax.hub import download, repositories
from paligemma_jax.importers import remote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(first: int, count: int) -> bytes:
    """Returns parquet with questions about images, as Hugging Face's datasets writes it."""
    rows = range(first, first + count)
    columns = {
        "image": [{"bytes": png(n), "path": None} for n in rows],
        "question": [f"what is {n}?" for n in rows],
        "multiple_choice_answer": [f"number {n}" for n in rows],
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


class Hub(http.server.ThreadingHTTPServer):
    """Hugging Face's and Google's interfaces: `repos` (name, revision) and `buckets` hold files.

    Attributes:
      cuts: path -> after how many bytes its next answer ends.
      asked: (method, path, Range) of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.buckets, self.cuts, self.asked = {}, {}, {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def fetched(self) -> list[str]:
        """Returns the names of the files that were sent, in order."""
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET"]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, _, query = self.path.partition("?")
        path = urllib.parse.unquote(path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        steps = path.strip("/").split("/")
        if steps[:2] == ["api", "datasets"] and steps[4:5] == ["tree"]:
            return self.send_tree("/".join(steps[2:4]), "/".join(steps[5:]))
        if steps[0] == "datasets" and steps[3] == "resolve":
            name = "/".join(steps[1:3])
            revision = "refs/convert/parquet" if steps[4] == "refs" else steps[4]
            rest = steps[4 + len(revision.split("/")) :]
            return self.send_file(self.server.repos[name, revision]["/".join(rest)])
        if steps[:3] == ["storage", "v1", "b"]:
            return self.send_objects(steps[3], urllib.parse.parse_qs(query))
        files = self.server.buckets.get(steps[0], {})
        if data := files.get("/".join(steps[1:])):
            return self.send_file(data)
        return self.send_json({}, status=404)

    def send_tree(self, name, revision):
        if not any(known == name for known, _ in self.server.repos):
            return self.send_json({}, status=401, code="RepoNotFound")
        files = self.server.repos.get((name, revision))
        if files is None:
            return self.send_json({}, status=404, code="RevisionNotFound")
        rows = [
            {"type": "file", "oid": "0", "size": len(x), "path": path} for path, x in files.items()
        ]
        return self.send_json([{"type": "directory", "oid": "0", "path": "data"}, *rows])

    def send_objects(self, bucket, query):
        """Two names a page, as a large bucket has many pages."""
        if bucket not in self.server.buckets:
            return self.send_json({}, status=404)
        prefix = query.get("prefix", [""])[0]
        names = [name for name in sorted(self.server.buckets[bucket]) if name.startswith(prefix)]
        start = int(query.get("pageToken", ["0"])[0])
        sizes = {name: str(len(self.server.buckets[bucket][name])) for name in names}
        answer = {"items": [{"name": n, "size": sizes[n]} for n in names[start : start + 2]]}
        if start + 2 < len(names):
            answer["nextPageToken"] = str(start + 2)
        return self.send_json(answer)

    def send_json(self, answer, *, status=200, code=""):
        body = json.dumps(answer).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, data):
        start = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{len(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts.pop(self.path.rpartition("/")[2], len(data))
            self.wfile.write(data[start:cut])
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = Hub()
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", made.url)
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(download, "WAIT_S", 0)
    yield made
    made.shutdown()
    made.server_close()


def lines(file: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def vqa(hub) -> None:
    """A data set of two training files, and one for validation."""
    hub.repos["owner/vqa", "main"] = {
        "README.md": b"no data",
        "data/train-00000-of-00002.parquet": table(0, 6),
        "data/train-00001-of-00002.parquet": table(6, 4),
        "data/validation-00000-of-00001.parquet": table(10, 3),
    }


def test_one_split_is_fetched_and_divided_without_the_others(hub, tmp_path, capsys):
    vqa(hub)
    out = tmp_path / "out"
    words = ["hf://owner/vqa", str(out), "--task=vqa", "--columns=answer=multiple_choice_answer"]
    import_data.main([*words, "--only=train", "--split=train=0.9,valid=0.1"])
    train, valid = lines(out / "train.jsonl"), lines(out / "valid.jsonl")
    assert (len(train), len(valid)) == (9, 1)
    answers = {row["suffix"] for row in (*train, *valid)}
    assert answers == {f"number {n}" for n in range(10)}
    assert "validation-00000-of-00001.parquet" not in hub.fetched()
    with Image.open(out / train[0]["image"]) as image:
        assert image.size == (8, 8)
    # Everything is here now: another import asks for no file again.
    before = len(hub.fetched())
    import_data.main([*words, "--split=train", "--overwrite"])
    assert len(lines(out / "train.jsonl")) == 10
    assert not [name for name in hub.fetched()[before:] if name.endswith(".parquet")]


def test_all_splits_keep_their_names(hub, tmp_path):
    vqa(hub)
    words = ["hf://owner/vqa", "--task=vqa", "--columns=answer=multiple_choice_answer"]
    import_data.main([words[0], str(tmp_path / "out"), *words[1:]])
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 10
    assert len(lines(tmp_path / "out" / "valid.jsonl")) == 3


def test_a_file_that_was_cut_arrives_whole(hub, tmp_path):
    vqa(hub)
    name = "train-00000-of-00002.parquet"
    hub.cuts[name] = 200
    place = remote.fetch("hf://owner/vqa", split="train", first=None)
    assert (place / "data" / name).read_bytes() == table(0, 6)
    assert hub.fetched().count(name) == 2


def test_the_first_rows_need_only_the_first_files(hub, tmp_path):
    vqa(hub)
    words = ["--task=vqa", "--columns=answer=multiple_choice_answer", "--split=train", "--first=4"]
    import_data.main(["hf://owner/vqa", str(tmp_path / "out"), *words])
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 4
    assert "train-00001-of-00002.parquet" not in hub.fetched()


def test_of_a_script_what_hugging_face_made_of_it_is_read(hub, tmp_path, capsys):
    hub.repos["owner/script", "main"] = {"script.py": b"import os"}
    hub.repos["owner/script", "refs/convert/parquet"] = {"default/train/0000.parquet": table(0, 2)}
    words = ["--task=vqa", "--columns=answer=multiple_choice_answer", "--split=train"]
    import_data.main(["hf://owner/script", str(tmp_path / "out"), *words])
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 2
    assert "refs/convert/parquet" in capsys.readouterr().err
    assert "script.py" not in hub.fetched()


def test_a_bucket_is_read_as_the_folder_that_it_is(hub, tmp_path):
    rows = {"train90": range(3), "val10": range(3, 5)}
    files = {f"{n}.png": png(n) for n in range(5)}
    for name, numbers in rows.items():
        held = [{"image": f"{n}.png", "suffix": f"Caption {n}."} for n in numbers]
        files[f"data_{name}.jsonl"] = "".join(json.dumps(row) + "\n" for row in held).encode()
    hub.buckets["longcap"] = files
    out = tmp_path / "out"
    import_data.main(["gs://longcap", str(out), "--task=caption", "--prompt=caption en"])
    (first, *_), valid = lines(out / "train.jsonl"), lines(out / "valid.jsonl")
    assert len(valid) == 2
    assert (first["prefix"], first["suffix"]) == ("caption en", "Caption 0.")
    asked = len(hub.fetched())
    remote.fetch("gs://longcap", split=None, first=None)
    assert not [name for name in hub.fetched()[asked:] if "." in name]


def test_a_name_that_would_leave_the_folder_is_refused(hub):
    hub.buckets["bad"] = {"../a.png": png(0)}
    with pytest.raises(ValueError, match="would leave its folder"):
        remote.fetch("gs://bad", split=None, first=None)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://owner/none", "hf://owner/none: no such data set, or it is not public.*HF_TOKEN"),
        ("hf://owner/vqa@v2", "no revision 'v2'"),
        ("hf://owner/vqa/dta", "no subset 'dta'. Did you mean 'data'"),
        ("hf://vqa", "expected hf://OWNER/NAME, gs://BUCKET/FOLDER"),
        ("gs://none", "gs://none: no such bucket"),
        ("gs://empty", "nothing lies there"),
        ("hf://owner/two", "has subsets: a, b. Choose one: hf://owner/two/a"),
    ],
)
def test_what_is_not_there_is_named(source, message, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    vqa(hub)
    hub.buckets["empty"] = {}
    tables = {f"{name}/0.parquet": table(0, 1) for name in ("a", "b")}
    hub.repos["owner/two", "main"] = tables
    with pytest.raises((ValueError, OSError), match=message):
        remote.fetch(source, split=None, first=None)


def test_a_split_that_there_is_not_shows_those_that_there_are(hub):
    vqa(hub)
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        remote.fetch("hf://owner/vqa", split="test", first=None)


def test_kaggle_is_asked_through_its_client(hub, tmp_path, monkeypatch):
    held = tmp_path / "held"
    held.mkdir()
    asked = []
    monkeypatch.setattr(kagglehub, "dataset_download", lambda name: asked.append(name) or held)
    assert remote.fetch("kaggle://owner/set/versions/3", split=None, first=None) == held
    assert asked == ["owner/set/versions/3"]

    def refuse(name):
        raise kagglehub.exceptions.UnauthenticatedError

    monkeypatch.setattr(kagglehub, "dataset_download", refuse)
    monkeypatch.setattr(
        repositories.sites, "has_credentials", lambda: {"kaggle": False, "hf": False}
    )
    with pytest.raises(download.DownloadError, match=r"kaggle://owner/set: no key for www"):
        remote.fetch("kaggle://owner/set", split=None, first=None)
