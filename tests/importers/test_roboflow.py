"""Fetching from Roboflow, against a server on this machine: the key, the wait, the zip file."""

import contextlib
import http.server
import io
import json
import stat
import threading
import zipfile

import pytest

from paligemma_jax.hub import download as hub_download
from paligemma_jax.importers import roboflow

KEY = "secret-of-a-user"
ADDRESS = "roboflow://space/coins/3"


def pack(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Server:
    """Answers as Roboflow does; `asked` are the paths, `status` and `waits` change the answer."""

    def __init__(self):
        self.asked, self.status, self.waits, self.says_size = [], 200, 0, True
        self.content = pack({"train/_annotations.coco.json": "{}", "train/a.jpg": "pixels"})
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                body = outer.answer(self.path)
                self.send_response(outer.status)
                if outer.says_size:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # nobody reads on
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path):
        if path == "/zip":
            return self.content
        if self.waits:
            self.waits -= 1
            return json.dumps({"ready": False, "progress": 0.5}).encode()
        return json.dumps({"export": {"format": "coco", "link": f"{self.host}/zip"}}).encode()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(roboflow, "POLL_S", 0.01)
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def download(server, folder, *, address=ADDRESS, key=KEY, with_outlines=False, **options):
    roboflow.download(
        address, folder, key=key, with_outlines=with_outlines, host=server.host, **options
    )


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "https://universe.roboflow.com/space/coins/dataset/3",
        "https://app.roboflow.com/space/coins/3/",
    ],
)
def test_a_version_is_asked_for_waited_for_and_unpacked(server, tmp_path, address):
    server.waits = 2
    calls = []
    assert roboflow.is_address(address)
    download(server, tmp_path / "d", address=address, progress=lambda *done: calls.append(done))
    assert server.asked == [f"/space/coins/3/coco?api_key={KEY}"] * 3 + ["/zip"]
    result = {
        str(p.relative_to(tmp_path / "d")) for p in (tmp_path / "d").rglob("*") if p.is_file()
    }
    assert result == {"train/_annotations.coco.json", "train/a.jpg"}
    assert calls[-1] == (len(server.content),) * 2


def test_outlines_are_asked_for(server, tmp_path):
    download(server, tmp_path / "d", with_outlines=True)
    assert server.asked[0].startswith("/space/coins/3/coco-segmentation?")


def test_a_missing_key_names_the_page_before_anything_is_asked(server, tmp_path):
    with pytest.raises(ValueError, match=r"make one at https://app\.roboflow\.com/settings/api"):
        download(server, tmp_path / "d", key=None)
    assert server.asked == [] and not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "is refused"), (403, "may not read it"), (404, "no such workspace"), (500, "HTTP 500")],
)
def test_a_refusal_is_told_without_the_key(server, tmp_path, status, message):
    server.status = status
    with pytest.raises(ValueError, match=message) as error:
        download(server, tmp_path / "d")
    assert KEY not in str(error.value) and error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_no_network_is_told_without_the_key(tmp_path):
    with pytest.raises(OSError, match="cannot be reached") as error:
        roboflow.download(
            ADDRESS, tmp_path / "d", key=KEY, with_outlines=False, host="http://127.0.0.1:9"
        )
    assert KEY not in str(error.value)


@pytest.mark.parametrize("address", ["roboflow://coins/3", "roboflow://a/b/latest", "roboflow:x"])
def test_another_address_says_how_it_should_look(server, tmp_path, address):
    with pytest.raises(ValueError, match="WORKSPACE/PROJECT/VERSION"):
        download(server, tmp_path / "d", address=address)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil"])
def test_a_zip_file_cannot_write_outside_its_folder(tmp_path, name):
    (tmp_path / "a.zip").write_bytes(pack({"good": "1", name: "2"}))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="would leave its folder"):
        roboflow.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_in_a_zip_file_is_refused(tmp_path):
    member = zipfile.ZipInfo("link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    (tmp_path / "a.zip").write_bytes(pack({member: "/etc/passwd"}))
    with pytest.raises(ValueError, match="'link'"):
        roboflow.unpack(tmp_path / "a.zip", tmp_path)


def test_what_is_no_zip_file_is_told(server, tmp_path):
    server.content = b"<html>"
    with pytest.raises(ValueError, match="no zip file"):
        download(server, tmp_path / "d")


def test_an_archive_without_an_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_download, "MOST_BYTES_OF_LARGE", 100_000)
    server.content, server.says_size = b"x" * 1_000_000, False
    with pytest.raises(OSError, match=r"/zip: the server does not say .* give its path"):
        download(server, tmp_path / "d")
    assert not list((tmp_path / "d").iterdir())
