"""A browser to look at pages with: Chromium, through the W3C WebDriver protocol of its driver.

Both are programs of the system (Debian: chromium, chromium-driver).
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

MISSING = "chromium and chromedriver are not installed"
START_S = 60  # of the driver, and of the browser: the machine may be busy
# Names of keys, as W3C's WebDriver spells them.
KEYS = {"ctrl": "\ue009", "shift": "\ue008", "alt": "\ue00a", "Enter": "\ue007", "Tab": "\ue004"}
KEYS |= {"Escape": "\ue00c", "Delete": "\ue017", "Backspace": "\ue003", "Left": "\ue012"}
KEYS |= {"Right": "\ue014"}
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key of an element's number


class Browser:
    """A window without a screen. Make one with `opened`."""

    def __init__(self, address: str, session: str):
        self._address = f"{address}/session/{session}"

    def open(self, path: pathlib.Path) -> None:
        self.call("POST", "url", url=path.resolve().as_uri())

    def go(self, address: str) -> None:
        self.call("POST", "url", url=address)

    def wait(self, script: str, *arguments: Any, seconds: float = 20) -> Any:
        """Returns the first value of a script that is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {script}")
            time.sleep(0.02)
        return value

    def press(self, *keys: str) -> None:
        """Presses keys one after the other; of "ctrl+z" both at once."""
        actions = []
        for key in keys:
            parts = key.split("+") if len(key) > 1 else [key]
            values = [KEYS.get(part, part) for part in parts]
            actions += [{"type": "keyDown", "value": value} for value in values]
            actions += [{"type": "keyUp", "value": value} for value in reversed(values)]
        self.call("POST", "actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def drag(self, *fingers: list[tuple[float, float]], kind: str = "mouse") -> None:
        """Moves pointers along points of the page, all at once; a path of one point is a click."""
        sources = []
        for number, path in enumerate(fingers):
            moves = [
                {"type": "pointerMove", "duration": 30 * bool(n), "x": round(x), "y": round(y)}
                for n, (x, y) in enumerate(path)
            ]
            down, up = ({"type": name, "button": 0} for name in ("pointerDown", "pointerUp"))
            actions = [moves[0], down, *moves[1:], up]
            source = {"type": "pointer", "id": f"{kind}{number}", "actions": actions}
            sources.append({**source, "parameters": {"pointerType": kind}})
        self.call("POST", "actions", actions=sources)

    def resize(self, width: int, height: int = 900) -> None:
        """Sets the size of the page in px, also below what a window can have."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Sets what the reader prefers: "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.cdp("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a script on the page returns."""
        return self.call("POST", "execute/sync", script=script, args=list(arguments))

    def click(self, selector: str) -> None:
        """Clicks where the one element of a selector is, as a person does: it must be visible."""
        found = self.call("POST", "elements", using="css selector", value=selector)
        assert len(found) == 1, f"{selector}: {len(found)} elements"
        self.call("POST", f"element/{found[0][ELEMENT]}/click")

    def type(self, selector: str, text: str) -> None:
        """Types into the first element of a selector."""
        found = self.call("POST", "element", using="css selector", value=selector)
        self.call("POST", f"element/{found[ELEMENT]}/value", text=text)

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes the whole page, also what is below the window, as PNG."""
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def logged(self) -> list[str]:
        """Returns the errors and warnings of the console since the last call."""
        return [entry["message"] for entry in self.call("POST", "se/log", type="browser")]

    def cdp(self, command: str, **parameters: Any) -> Any:
        """Returns what a command of Chromium's own protocol returns."""
        return self.call("POST", "goog/cdp/execute", cmd=command, params=parameters)

    def call(self, method: str, path: str, **body: Any) -> Any:
        return request(method, f"{self._address}/{path}", body)


def request(method: str, address: str, body: dict[str, Any] | None = None) -> Any:
    """Returns the "value" of the driver's answer; its errors are a RuntimeError."""
    data = json.dumps(body or {}).encode() if method == "POST" else None
    asked = urllib.request.Request(address, data=data, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=START_S) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        value = json.load(error)["value"]
        raise RuntimeError(f"{value['error']}: {value['message']}") from None


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """Yields a browser; a test that asks for one is skipped where there is none."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip(MISSING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        address = f"http://127.0.0.1:{port}"
        try:
            _wait(address)
            session = request("POST", f"{address}/session", _capabilities(chromium, folder))
            yield Browser(address, session["sessionId"])
            request("DELETE", f"{address}/session/{session['sessionId']}")
        finally:
            process.terminate()
            process.wait()


def _capabilities(chromium: str, folder: str) -> dict[str, Any]:
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    flags = ["--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage", *root]
    options = {"binary": chromium, "args": [*flags, f"--user-data-dir={folder}"]}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    return {"capabilities": {"alwaysMatch": wanted}}


def _wait(address: str) -> None:
    """Waits for the driver to take orders."""
    for _ in range(10 * START_S):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if request("GET", f"{address}/status")["ready"]:
                return
        time.sleep(0.1)
    raise RuntimeError("chromedriver does not start")
