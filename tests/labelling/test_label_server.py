"""Who may ask the labelling page's server, for what, and what it answers."""

import http.client
import io
import json
import os
import urllib.parse

import pytest
from PIL import Image

from paligemma_jax import label
from paligemma_jax.labelling import label_server

TOKEN = "a secret of many letters"


class Client:
    def __init__(self, address):
        self.host = urllib.parse.urlsplit(address).netloc
        self.headers = {}

    def ask(self, method, path, body=None, **headers):
        """Returns (status, headers, bytes)."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        kind = {"Content-Type": "application/json"} if isinstance(body, dict) else {}
        sent = {**kind, **self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def get(self, path, **query):
        status, _, content = self.ask("GET", f"{path}?{urllib.parse.urlencode(query)}")
        return status, json.loads(content)

    def post(self, path, **body):
        status, _, content = self.ask("POST", f"/api/{path}", body)
        return status, json.loads(content)


@pytest.fixture
def folder(make_images):
    return make_images(3)


@pytest.fixture
def client(folder, serve):
    address, store = serve(folder, classes="cat,dog")
    made = Client(address)
    made.store = store
    return made


def keys(client):
    return [item[0] for item in client.get("/api/state")[1]["items"]]


BOX = {"label": "cat", "box": [10, 20, 60, 80]}


def save(client, key, revision=0, by="ann", **answer):
    answer = answer or {"objects": [BOX]}
    return client.post("save", key=key, revision=revision, by=by, done=True, **answer)


def test_a_label_is_saved_shown_and_taken_back(client, folder):
    first, *_ = keys(client)
    status, saved = save(client, first)
    assert status == 200 and saved["suffix"].endswith(" cat") and saved["reads"]["fits"]
    status, shown = client.get("/api/item", key=first)
    assert shown["objects"] == [BOX] and (shown["width"], shown["height"]) == (200, 100)
    client.store.flush()
    (row,) = map(json.loads, (folder / "labels.jsonl").read_text().splitlines())
    assert row["image"] == "0.png" and row["labelling"]["by"] == "ann"
    status, undone = client.post("undo", by="ann")
    assert undone["items"][0][2] == 0 and undone["steps"] == [0, 1]


def test_a_second_labeller_gets_what_the_first_one_saved(client):
    first, *_ = keys(client)
    save(client, first, by="ann")
    status, conflict = save(client, first, by="bob", objects=[])
    assert status == 409 and conflict["items"][0]["objects"] == [BOX]
    assert conflict["error"] == "0.png: changed by ann meanwhile"
    assert save(client, first, revision=1, by="bob", objects=[])[0] == 200


def test_what_changed_is_told_and_who_is_where(client):
    first, second, _ = keys(client)
    _, start = client.get("/api/changes", since=0, by="bob", at=second)
    save(client, first)
    _, changed = client.get("/api/changes", since=start["mark"], by="ann", at=first)
    assert [item[0] for item in changed["items"]] == [first]
    assert changed["others"] == {"bob": second}


def test_one_answer_for_many_is_one_change(folder, serve):
    address, store = serve(folder, task="vqa")
    client = Client(address)
    items = [{"key": key, "revision": 0} for key in keys(client)]
    status, changed = client.post("batch", by="ann", items=items, text="none", question="what?")
    assert status == 200 and len(changed["items"]) == 3
    assert {item.row["prefix"] for item in store.items()} == {"answer en what?"}
    client.post("undo", by="ann")
    assert not any(item.is_labelled for item in store.items())


def test_new_classes_change_the_prompts_that_had_the_old_ones(client):
    first, second, _ = keys(client)
    save(client, first)
    save(client, second, objects=[], prefix="detect dog")
    settings = {"classes": ["cat", "dog", "bird"]}
    status, state = client.post("settings", by="ann", settings=settings)
    assert status == 200 and state["settings"]["classes"] == settings["classes"]
    prompts = [(item.row or {}).get("prefix") for item in client.store.items()]
    assert prompts == ["detect cat ; dog ; bird", "detect dog", None]


def test_what_is_wrong_is_said(client):
    first, *_ = keys(client)
    for body, message in (
        (dict(objects=[{"label": "cat", "box": [0, 0, 300, 50]}]), "not inside the image's"),
        (dict(objects="x"), "objects: expected a list"),
        (dict(objects=[BOX], by=" "), "by: expected a text"),
        (dict(objects=[BOX], by="a\u202eb"), "by: expected a name"),
        (dict(objects=[BOX], by="\ud800"), "half a letter"),
        (dict(objects=[BOX], key="x|y|0"), "there is no item"),
        (dict(objects=[BOX], revision=-1), "revision: expected a number"),
    ):
        status, told = save(client, **{"key": first, **body})
        assert (status, message in told["error"]) == (422, True), told
    assert not client.store.get(first).is_labelled
    assert client.ask("POST", "/api/save", b"{", Content_Type="application/json")[0] == 422
    assert client.ask("POST", "/api/save", b"{}")[0] == 415


def test_pages_of_other_sites_and_other_names_are_refused(client):
    first, *_ = keys(client)
    body = dict(key=first, revision=0, by="ann", objects=[])
    assert client.ask("POST", "/api/save", body, Origin="http://evil.example")[0] == 403
    assert client.ask("POST", "/api/save", body, Sec_Fetch_Site="cross-site")[0] == 403
    assert client.ask("GET", "/api/state", Sec_Fetch_Site="cross-site")[0] == 403
    assert client.ask("GET", "/api/state", Host="evil.example")[0] == 403
    assert client.ask("GET", "/api/state", Host=f"localhost:{client.host[-5:]}")[0] == 200
    assert client.ask("POST", "/api/save", body, Origin=f"http://{client.host}")[0] == 200


def test_pages_may_load_nothing_from_elsewhere(client):
    for path in ("/", "/main.js", "/style.css"):
        status, headers, content = client.ask("GET", path)
        assert status == 200 and content
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../label.py", "/..%2flabel.py", "/page.html/x", "/image"])
def test_nothing_else_is_served(client, path):
    assert client.ask("GET", path)[0] in (404, 422)


def test_images_are_told_by_their_bytes_and_lie_in_the_folder(tmp_path, serve):
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (4, 3)).save(data / "really.png.tmp", "JPEG")
    os.rename(data / "really.png.tmp", data / "jpeg.png")
    Image.new("I;16", (4, 3), 65535).save(data / "deep.png")
    (data / "text.png").write_text("<script>")
    (tmp_path / "secret.png").write_bytes((data / "deep.png").read_bytes())
    names = ("jpeg.png", "deep.png", "text.png", "../secret.png", str(tmp_path / "secret.png"))
    rows = [json.dumps({"image": name, "prefix": "caption en"}) for name in names]
    (data / "x.jsonl").write_text("\n".join(rows))
    client = Client(serve(data)[0])
    answers = [
        client.ask("GET", f"/image?{urllib.parse.urlencode({'key': k})}") for k in keys(client)
    ]
    assert [answer[0] for answer in answers] == [200, 200, 422, 422, 422]
    assert answers[0][1]["Content-Type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answers[1][2])).getextrema() == (255, 255)
    assert b"outside" in answers[3][2] and b"outside" in answers[4][2]
    small = client.ask(
        "GET", f"/image?{urllib.parse.urlencode({'key': keys(client)[0], 'small': 1})}"
    )
    assert small[1]["Content-Type"] == "image/jpeg"


def test_an_image_that_is_dropped_is_looked_at_before_it_is_taken(client, folder):
    out = io.BytesIO()
    Image.new("RGB", (5, 5)).save(out, "PNG")
    status, _, content = client.ask("POST", "/api/upload?name=..%2F..%2F.evil.html", out.getvalue())
    assert status == 200 and json.loads(content)["summary"][1] == "evil.png"
    assert (folder / "evil.png").read_bytes() == out.getvalue()
    for data in (b"<html>", out.getvalue()[:40]):
        assert client.ask("POST", "/api/upload?name=b.png", data)[0] == 422
    Image.new("RGB", (5, 5)).save(out := io.BytesIO(), "TIFF")
    assert client.ask("POST", "/api/upload?name=b.png", out.getvalue())[0] == 422
    assert sorted(p.name for p in folder.glob("*.png")) == ["0.png", "1.png", "2.png", "evil.png"]


def test_a_token_is_asked_for_and_a_cookie_kept(folder, serve):
    client = Client(serve(folder, token=TOKEN)[0])
    assert client.ask("GET", "/api/state")[0] == 401
    assert client.ask("POST", "/api/save", {})[0] == 401
    assert b"password" in client.ask("GET", "/")[2]
    wrong = client.ask("POST", "/login", b"token=guess")
    assert wrong[0] == 403 and "Set-Cookie" not in wrong[1]
    form = urllib.parse.urlencode({"token": TOKEN}).encode()
    assert client.ask("POST", "/login", form, Origin="http://evil.example")[0] == 403
    status, headers, _ = client.ask("POST", "/login", form)
    assert status == 303 and TOKEN not in headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
    client.headers["Cookie"] = headers["Set-Cookie"].partition(";")[0]
    assert client.ask("GET", "/api/state")[0] == 200
    client.headers["Cookie"] = "label_session=x"
    assert client.ask("GET", "/api/state")[0] == 401


@pytest.mark.parametrize(
    ("words", "token", "message"),
    [
        (["--host", "0.0.0.0"], None, "lets other machines in: add --token"),
        (["--host", "192.168.0.2"], TOKEN, "lets other machines in: add --token"),
        (["--host", "0.0.0.0", "--token"], None, "is not set; expected 16 or more"),
        (["--host", "0.0.0.0", "--token"], "short", "has 5 letters; expected 16"),
    ],
)
def test_a_page_for_others_needs_a_token(words, token, message, folder, monkeypatch):
    monkeypatch.delenv(label_server.TOKEN, raising=False)
    if token:
        monkeypatch.setenv(label_server.TOKEN, token)
    with pytest.raises(ValueError, match=message):
        label.main([str(folder), *words])


def test_data_of_another_tool_say_how_they_are_labelled(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "question": "what?", "answer": "x"}\n')
    with pytest.raises(ValueError, match=r"--task vqa --out .*q_jsonl"):
        label.main([str(tmp_path / "q.jsonl")])
    with pytest.raises(ValueError, match="no such file or folder"):
        label.main([str(tmp_path / "nowhere")])


def test_what_check_finds_is_shown_with_the_image(client):
    first, second, _ = keys(client)
    save(client, first)
    save(client, second, objects=[{**BOX, "label": "Cat"}])
    _, told = client.get("/api/check")
    spelt = {one["kind"]: one for one in told["findings"]}["class spelt in several ways"]
    assert spelt["places"] == [second] or spelt["places"] == [first]
