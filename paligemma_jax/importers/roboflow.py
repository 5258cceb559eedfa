"""A version of a Roboflow project, fetched as COCO through Roboflow's REST interface.

The key is read from ROBOFLOW_API_KEY by the caller, goes into the one request that needs it, and
into no message. The interface: https://docs.roboflow.com/api, route /:workspace/:project/:version/
:format, which answers with a link to a zip file, or with how far its making is.
"""

import json
import os
import pathlib
import re
import shutil
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from typing import Any

from paligemma_jax.files import atomic
from paligemma_jax.hub import download as hub_download
from paligemma_jax.importers import example

KEY = "ROBOFLOW_API_KEY"
KEY_PAGE = "https://app.roboflow.com/settings/api"
HOST, HOST_ENV = "https://api.roboflow.com", "ROBOFLOW_API_URL"
ADDRESS = re.compile(
    r"(?:roboflow://|https://(?:universe|app)\.roboflow\.com/)"
    r"(?P<workspace>[\w-]+)/(?P<project>[\w-]+)/(?:dataset/)?(?P<version>\d+)/?"
)
TIMEOUT_S = 60.0
POLL_S, MAX_POLLS = 3.0, 200
CHUNK, MOST_ANSWER = 2**20, 2**20


def is_address(source: str) -> bool:
    """Whether a source means something to download: roboflow://..., or a page of Roboflow."""
    return source.startswith("roboflow:") or "roboflow.com/" in source


def download(
    address: str,
    folder: str | os.PathLike[str],
    *,
    key: str | None,
    with_outlines: bool,
    host: str = HOST,
    progress: example.Progress | None = None,
) -> None:
    """Fetches a version and unpacks it into a folder, which is made.

    Args:
      address: roboflow://WORKSPACE/PROJECT/VERSION, or the page of a version.
      folder: nothing is written elsewhere, whatever the zip file says.
      key: the API key.
      with_outlines: polygons too, as projects of instance segmentation have them.
      host: of the interface.
      progress: called with (bytes received, bytes in all).

    Raises:
      ValueError: a wrong address, a missing or refused key, or an unsafe zip file.
      OSError: no network, or too little space.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise ValueError(f"SRC {address}: expected roboflow://WORKSPACE/PROJECT/VERSION")
    if not key:
        raise ValueError(
            f"SRC {address} needs an API key: make one at {KEY_PAGE} and set it, export {KEY}=..."
        )
    form = "coco-segmentation" if with_outlines else "coco"
    place = "/".join(match[part] for part in ("workspace", "project", "version"))
    link = _ask_for_link(f"{host}/{place}/{form}", key, address)
    target = pathlib.Path(folder)
    target.mkdir(parents=True)
    packed = target / "download.zip"
    _fetch(link, packed, progress)
    unpack(packed, target)
    packed.unlink()


def unpack(packed: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Unpacks a zip file, into the folder only.

    Raises:
      ValueError: no zip file, or a member that would land elsewhere or is a link.
      OSError: too little space.
    """
    root = pathlib.Path(folder)
    try:
        with zipfile.ZipFile(packed) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            atomic.require_space(
                root,
                sum(member.file_size for member in members),
                what=f"{packed}, unpacked,",
                remedy="choose another folder, or make room",
            )
            for member in members:
                _check_member(member)
            for member in members:
                place = root / member.filename
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(place, "wb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{packed}: what was received is no zip file: {error}") from error


def _check_member(member: zipfile.ZipInfo) -> None:
    path = pathlib.PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or is_link:
        raise ValueError(f"the zip file holds {member.filename!r}, which would leave its folder")


def _ask_for_link(url: str, key: str, address: str) -> str:
    """Returns where the zip file is, once Roboflow has made it."""
    request = urllib.request.Request(f"{url}?{urllib.parse.urlencode({'api_key': key})}")
    for _ in range(MAX_POLLS):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                parts = hub_download.arriving(response, url, size=None, most=MOST_ANSWER)
                answer: Any = json.loads(b"".join(parts))
        except urllib.error.HTTPError as error:
            reason = {
                401: f"the key in {KEY} is refused; see {KEY_PAGE}",
                403: f"the key in {KEY} may not read it; see {KEY_PAGE}",
                404: "no such workspace, project or version",
            }.get(error.code, "Roboflow cannot give it")
            error.close()
            raise ValueError(f"{address}: {reason} (HTTP {error.code})") from None
        except urllib.error.URLError as error:
            raise OSError(f"{address}: Roboflow cannot be reached: {error.reason}") from None
        except ValueError:
            raise ValueError(f"{address}: Roboflow's answer is no JSON") from None
        export = answer.get("export") if isinstance(answer, dict) else None
        if isinstance(export, dict) and isinstance(export.get("link"), str):
            return export["link"]
        time.sleep(POLL_S)
    raise OSError(f"{address}: Roboflow is still making the download; try again later")


def _fetch(link: str, path: pathlib.Path, progress: example.Progress | None) -> None:
    if not link.startswith(("https://", "http://")):
        raise ValueError(f"Roboflow's link is {link[:20]!r}..., expected https://")
    hub_download.fetch(link, path, progress=progress)
