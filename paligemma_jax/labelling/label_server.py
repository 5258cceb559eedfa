"""The labelling page over HTTP: for this machine alone, or for whoever has the token.

Who may ask: without a token, programs of this machine, at its own names (a page of the web that
gives its name this address is refused by the name). With one, whoever has sent it: a cookie, which
no script can read, says so from then on. What changes anything must come from this page itself.
Files are those of the package's page and the images that the data set names, told by their bytes.
"""

import hmac
import http.server
import ipaddress
import json
import os
import pathlib
import secrets
import socket
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.files import atomic
from paligemma_jax.labelling import exports, page_calls, row_store, served_images

PAGE = pathlib.Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
TOKEN = "PALIGEMMA_JAX_LABEL_TOKEN"  # the variable
FEWEST_LETTERS = 16  # of a token
COOKIE = "label_session"
WRONG_TOKEN_S = 1.0  # that a wrong token waits for its answer
MAX_JSON, MAX_TOKEN = 2**25, 2**12  # bytes of what a page sends, and of the form of the token
SIDE = 320  # px of an image in the grid
IDLE_S = 120  # a connection without a request

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


class Refused(Exception):
    """A request that is not answered: status and reason."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


def read_token(host: str, is_wanted: bool) -> str | None:
    """Returns the token of the environment, if the page is to ask for one.

    Raises:
      ValueError: another machine could ask and there is no token, or one that can be guessed.
    """
    if not is_wanted:
        if not is_loopback(host):
            raise ValueError(
                f"--host {host} lets other machines in: add --token, and set {TOKEN} to a secret "
                f"of {FEWEST_LETTERS} letters or more, which the page then asks for"
            )
        return None
    token = os.environ.get(TOKEN, "")
    if len(token) < FEWEST_LETTERS:
        is_set = f"has {len(token)} letters" if token else "is not set"
        raise ValueError(
            f"--token: {TOKEN} {is_set}; expected {FEWEST_LETTERS} or more: "
            f"export {TOKEN}=$(openssl rand -hex 16)"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Server(http.server.ThreadingHTTPServer):
    """Answers as long as `serve_forever` runs.

    Args:
      calls: what the page can ask.
      host, port: to listen at; port 0: one that is free.
      token: None: this machine alone may ask.
    """

    daemon_threads = True

    def __init__(self, calls: page_calls.Calls, *, host: str, port: int, token: str | None = None):
        self.calls, self.token = calls, token
        self.sessions: set[str] = set()
        self.pages = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.is_file()}
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise ValueError(
                f"cannot listen at {host}:{port}: {error.strerror}; another program may: "
                f"--port 0 takes one that is free"
            ) from error

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A browser that leaves in the middle is no error; others are ours."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            say.error(f"{type(error).__name__}: {error}")


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "paligemma_jax", ""
    timeout = IDLE_S

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: labels and names are nobody else's."""

    def _answer(self, answer: Callable[[str, Mapping[str, str]], None]) -> None:
        parts = urllib.parse.urlsplit(self.path)
        query = {key: values[0] for key, values in urllib.parse.parse_qs(parts.query).items()}
        try:
            self._check_host()
            answer(urllib.parse.unquote(parts.path), query)
        except Refused as refusal:
            self.close_connection = True  # what it would still send is not read
            self._send_json({"error": str(refusal)}, refusal.status)
        except row_store.Conflict as conflict:
            items = [self.server.calls.item({"key": item.key}) for item in conflict.items]
            self._send_json({"error": str(conflict), "items": items}, HTTPStatus.CONFLICT)
        except atomic.WriteError as error:
            self._send_json({"error": str(error)}, HTTPStatus.INSUFFICIENT_STORAGE)
        except (ValueError, OSError) as error:
            self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    def _get(self, path: str, query: Mapping[str, str]) -> None:
        name = {"/": "page.html", "/favicon.ico": "icon.svg"}.get(path, path[1:])
        if name in self.server.pages and name != "login.html":
            if path == "/" and not self._is_allowed():
                name = "login.html"
            self._send_page(name)
            return
        self._require_allowed()
        if self.headers.get("Sec-Fetch-Site") == "cross-site":
            raise Refused(HTTPStatus.FORBIDDEN, "asked by a page of another site")
        calls = self.server.calls
        reads = {
            "/api/state": calls.state,
            "/api/item": calls.item,
            "/api/changes": calls.changes,
            "/api/check": calls.check,
            "/api/numbers": calls.numbers,
        }
        if path in reads:
            self._send_json(reads[path](query))
        elif path == "/image":
            self._send_image(query)
        elif path == "/api/export":
            name, mime_type, content = exports.make(calls, query.get("format", ""))
            more = {"Content-Disposition": f'attachment; filename="{name}"'}
            self._send(content, mime_type, more=more)
        else:
            raise Refused(HTTPStatus.NOT_FOUND, f"nothing at {path:.80}")

    def _post(self, path: str, query: Mapping[str, str]) -> None:
        self._check_origin()
        if path == "/login":
            self._log_in()
            return
        self._require_allowed()
        calls = self.server.calls
        writes = {
            "/api/save": calls.save,
            "/api/batch": calls.batch,
            "/api/undo": calls.undo,
            "/api/redo": calls.redo,
            "/api/settings": calls.change_settings,
            "/api/add": calls.add,
            "/api/explain": calls.explain,
            "/api/train": calls.train,
        }
        if path == "/api/upload":
            data = self._body(served_images.MAX_UPLOAD)
            self._send_json(calls.upload(query.get("name", "image"), data))
        elif path in writes:
            self._send_json(writes[path](self._json()))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, f"nothing at {path:.80}")

    def _check_host(self) -> None:
        """Refuses names that lead here although they are not this machine's own."""
        if self.server.token is not None:
            return
        name = urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        if not is_loopback(name):
            raise Refused(
                HTTPStatus.FORBIDDEN, f"this is not {name:.80}: open {self.server.address}"
            )

    def _check_origin(self) -> None:
        """Refuses what another page sends."""
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        own = {f"http://{host}", f"https://{host}"}  # a proxy may add the s
        if (origin is not None and origin not in own) or site not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "sent by a page of another site")

    def _is_allowed(self) -> bool:
        if self.server.token is None:
            return True
        parts = (part.strip().partition("=") for part in self.headers.get("Cookie", "").split(";"))
        sent = next((value for name, _, value in parts if name == COOKIE), "")
        return any(hmac.compare_digest(sent.encode(), one.encode()) for one in self.server.sessions)

    def _require_allowed(self) -> None:
        if not self._is_allowed():
            raise Refused(HTTPStatus.UNAUTHORIZED, f"open {self.server.address} and give the token")

    def _log_in(self) -> None:
        fields = urllib.parse.parse_qs(self._body(MAX_TOKEN).decode("utf-8", "replace"))
        sent, token = fields.get("token", [""])[0], self.server.token
        if token is None or not hmac.compare_digest(sent.encode(), token.encode()):
            time.sleep(WRONG_TOKEN_S)
            raise Refused(HTTPStatus.FORBIDDEN, "that is not the token: go back and try again")
        session = secrets.token_urlsafe(32)
        self.server.sessions.add(session)
        cookie = f"{COOKIE}={session}; HttpOnly; SameSite=Strict; Path=/"
        more = {"Set-Cookie": cookie, "Location": "/"}
        self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, more=more)

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or self.headers.get("Transfer-Encoding"):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing")
        if int(length) > limit:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {limit} bytes")
        return self.rfile.read(int(length))

    def _json(self) -> Mapping[str, Any]:
        if not self.headers.get("Content-Type", "").startswith("application/json"):
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        try:
            values = json.loads(self._body(MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError("expected a JSON object")
        return values

    def _send_image(self, query: Mapping[str, str]) -> None:
        item = self.server.calls.store.get(query.get("key", ""))
        number = query.get("n", "0")
        if not number.isdigit() or int(number) >= len(item.images):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such image of this row")
        name, images = item.images[int(number)], self.server.calls.images
        served = images.serve_small(name, SIDE) if query.get("small") else images.serve(name)
        more = {"Cache-Control": "private, max-age=3600"}
        self._send(served.content, served.mime_type, more=more)

    def _send_page(self, name: str) -> None:
        kind = TYPES.get(pathlib.PurePath(name).suffix, "application/octet-stream")
        self._send(self.server.pages[name], kind)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        data = text.encode("utf-8", "backslashreplace")
        self._send(data, "application/json; charset=utf-8", status)

    def _send(
        self,
        content: bytes,
        mime_type: str,
        status: HTTPStatus = HTTPStatus.OK,
        *,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        headers = {"Content-Type": mime_type, "Content-Length": str(len(content)), **HEADERS}
        headers = {"Cache-Control": "no-store", **headers, **(more or {})}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
