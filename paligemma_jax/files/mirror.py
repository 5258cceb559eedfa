"""A run in a folder of an object store: it works in a mirror, a folder of this machine.

A thread sends what changes there up: files first, then `remote.MANIFEST`, which says which of them
belong together and what they hold. Whoever goes on with the run, on this machine or another, begins
with what the manifest names: a checkpoint is there whole or not at all. `remote.LOCK` keeps a
second run out: its owner writes it anew every few seconds.
"""

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import pathlib
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from paligemma_jax.files import atomic, remote, run_folder

LOGGER = logging.getLogger("paligemma_jax")

STATE = "sent.json"  # beside a mirror: what of it is there
LOOK_S = 5.0  # between two looks at what changed: a store takes one write of a file a second
BEAT_S = 10.0  # between two writings of the lock
STALE_S = 35.0  # a lock that does not change for so long has no owner any more
AT_END_S = 900.0  # that the end of a run waits for a store that does not take its files


class Claim:
    """The lock of a folder in a store: within `with`, nobody else who asks for it gets it.

    Its owner writes it anew every `BEAT_S`. One that has not changed for `STALE_S`, by the clock of
    whoever looks, is of a process that was killed, and is taken over.

    Raises:
      ValueError: another process has the folder; the text says which.
    """

    def __init__(self, store: remote.Store):
        self._store = store
        self._token = uuid.uuid4().hex
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self.is_lost = False

    def __enter__(self) -> "Claim":
        other = self._store.read_json(remote.LOCK)
        if other and not _has_died(other):
            LOGGER.info(
                f"{self._store.shown} has a lock of {_owner(other)}: looking whether it is alive"
            )
            end = time.monotonic() + STALE_S
            while time.monotonic() < end:
                time.sleep(min(1.0, STALE_S / 10))
                now = self._store.read_json(remote.LOCK)
                if now is None:
                    break
                if now != other:
                    raise ValueError(
                        f"{self._store.shown} is in use by {_owner(now)}: wait until it ends, or "
                        f"choose another folder"
                    )
        if other:
            LOGGER.info(
                f"{self._store.shown}: {_owner(other)} did not end by itself; its folder is "
                f"taken over"
            )
        self._number = 0
        self._write()
        if other:
            time.sleep(min(1.0, STALE_S / 10))  # another one may have waited for the same
        self.check()
        if self.is_lost:
            raise ValueError(f"{self._store.shown} was taken by another process at this moment")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(timeout=BEAT_S)
        if not self.is_lost:
            with contextlib.suppress(OSError):
                self._store.remove(remote.LOCK)

    def check(self) -> None:
        """Notes whether the lock is another's now."""
        other = self._store.read_json(remote.LOCK)
        self.is_lost |= bool(other) and other.get("token") != self._token

    def _write(self) -> None:
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        owner = run_folder.Owner(socket.gethostname(), os.getpid(), since)
        one = {**dataclasses.asdict(owner), "token": self._token, "beat": self._number}
        self._store.write_json(remote.LOCK, one)

    def _beat(self) -> None:
        while not self._is_over.wait(BEAT_S) and not self.is_lost:
            self._number += 1
            # A store that is away is said by whoever sends files.
            with contextlib.suppress(OSError):
                self.check()
                if self.is_lost:
                    LOGGER.error(f"{self._store.shown} was taken over: nothing more is sent there")
                elif not self._is_over.is_set():
                    self._write()


class Mirror:
    """A folder here of a folder in a store: what changes here is sent there, by a thread.

    Within `with`: first what is there comes here; at the end all is there.

    Raises:
      ValueError: what is here could not be sent; it is kept, and goes up with the next start.
      OSError: the store does not answer, or refuses.
    """

    def __init__(self, store: remote.Store, folder: pathlib.Path, claim: Claim):
        self._store, self.folder, self._claim = store, folder, claim
        self._state_file = folder.parent / STATE
        self._sent: dict[str, dict[str, Any]] = {}  # name -> size, time, sha256 of what is there
        self._serial: str | None = None  # of the manifest that says so
        self._is_over = threading.Event()
        self._problem = ""
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Mirror":
        manifest = self._store.read_json(remote.MANIFEST) or {"serial": None, "files": {}}
        state = _read_json(self._state_file) or {"serial": None, "sent": {}}
        if manifest["serial"] == state["serial"] and self.folder.exists():
            # Nobody has sent anything since, so what is here is as new or newer.
            self._sent, self._serial = state["sent"], state["serial"]
        else:
            self._bring(manifest)
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._is_over.set()
        self._thread.join()
        end = time.monotonic() + AT_END_S
        is_told = False
        while not self._send_changed() and time.monotonic() < end and not self._claim.is_lost:
            if not is_told:
                LOGGER.info(f"sending the rest to {self._store.shown}")
                is_told = True
            time.sleep(LOOK_S)
        if not self._problem:
            LOGGER.info(f"all of it is at {self._store.shown}")
            return
        text = (
            f"{self._problem}. Not all of the run is there: the rest is in {self.folder}, and the "
            f"same command on this machine sends it"
        )
        if error is None:
            raise ValueError(text)
        error.add_note(f"And {text}")

    def _bring(self, manifest: Mapping[str, Any]) -> None:
        """Makes the mirror what the manifest says is there; without one, what is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._state_file.unlink(missing_ok=True)
        self.folder.mkdir(parents=True)
        sizes = self._store.sizes()
        known = manifest["files"] or {name: {} for name in sizes if name != remote.LOCK}
        names = [name for name in known if name in sizes]
        if names:
            size = sum(sizes[name] for name in names) / 1e6
            LOGGER.info(f"fetching {len(names)} files of {self._store.shown}: {size:.1f} MB")
        for name in names:
            file = self.folder / name
            # What grows may be newer than the manifest, in a store as here: a row more.
            noted = known[name].get("sha256") if remote.is_frozen(name) else None
            self._store.fetch(name, file, noted)
            entry, digest = file.stat(), noted or remote.hash_file(file)
            self._sent[name] = {
                **{"size": entry.st_size, "time": entry.st_mtime_ns},
                "sha256": digest,
            }
        self._serial = manifest["serial"]
        self._keep_state()

    def _follow(self) -> None:
        while not self._is_over.wait(LOOK_S) and not self._claim.is_lost:
            self._send_changed()

    def _send_changed(self) -> bool:
        """Sends what is new here and takes away what is gone; returns whether all is there."""
        if self._claim.is_lost:
            self._problem = f"{self._store.shown} was taken over by another process"
            return False
        before = self._problem
        try:
            now = remote.files_of(self.folder)
            changed = [name for name, one in now.items() if not _is_same(self._sent.get(name), one)]
            gone = [name for name in self._sent if name not in now]
            # Its presence ends the run: it comes when all else is there.
            for name in sorted(changed, key=lambda name: (name == run_folder.FINAL, name)):
                self._send(name, now[name])
            if changed or gone:
                for name in gone:
                    del self._sent[name]
                self._write_manifest()
                for name in gone:
                    self._store.remove(name)
            self._problem = ""
        except OSError as error:
            self._problem = str(error)
            if not before:
                LOGGER.warning(f"not sent yet, and tried again: {error}")
        return not self._problem

    def _send(self, name: str, entry: Mapping[str, int]) -> None:
        file = self.folder / name
        try:
            digest = remote.hash_file(file)
            self._store.send(file, name)
        except FileNotFoundError:
            return  # removed meanwhile, or replaced: the next look sees what is there
        self._sent[name] = {**entry, "sha256": digest}

    def _write_manifest(self) -> None:
        self._serial = uuid.uuid4().hex
        files = {
            name: {"size": one["size"], "sha256": one["sha256"]} for name, one in self._sent.items()
        }
        self._store.write_json(remote.MANIFEST, {"serial": self._serial, "files": files})
        self._keep_state()

    def _keep_state(self) -> None:
        atomic.write_json(self._state_file, {"serial": self._serial, "sent": self._sent})


@contextlib.contextmanager
def mirrored(address: str) -> Iterator[pathlib.Path]:
    """Yields a folder to work in, whose files are those of an address before and after."""
    store = remote.Store(address)
    folder = remote.place_of(address)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two of one machine do not share a mirror while they look at the store's lock.
    lock = atomic.try_lock(folder.parent / atomic.LOCK)
    if lock is None:
        raise ValueError(f"{store.shown} is in use by another process of this machine")
    try:
        with Claim(store) as claim, Mirror(store, folder, claim) as mirror:
            LOGGER.info(f"{store.shown} is mirrored in {mirror.folder}")
            yield mirror.folder
    finally:
        lock.release()


def _is_same(sent: Mapping[str, Any] | None, now: Mapping[str, int]) -> bool:
    return sent is not None and (sent["size"], sent["time"]) == (now["size"], now["time"])


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _has_died(owner: Mapping[str, Any]) -> bool:
    """Whether the owner of a lock was a process of this machine that is gone."""
    if owner.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _owner(lock: Mapping[str, Any]) -> str:
    return f"process {lock.get('pid')} on {lock.get('host')} (since {lock.get('since')})"
