"""Finding a data set's images: inside its folder only, without asking the disk once per row."""

import os

from paligemma_jax.data import jsonl, remote


class ImageFolder:
    """Finds images inside one folder, listing each subfolder once instead of asking per image.

    Addresses (see `remote`) are taken as they are: nobody is asked whether they are there.

    Args:
      root: the folder, or its address.
      setting: what a user names another folder with, for errors.

    Raises:
      ValueError: no such folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, setting: str = "image_dir"):
        self.setting = setting
        self._folders: dict[str, tuple[str, dict[str, bool] | None]] = {}
        self._by_key: dict[str, dict[str, str]] = {}  # of each folder: a name's key -> the name
        self._address = os.fspath(root).rstrip("/") if remote.is_address(os.fspath(root)) else None
        self.root = self._address or os.path.realpath(root)
        if not self._address and not os.path.isdir(self.root):
            raise ValueError(f"{setting} {os.fspath(root)}: no such folder")

    def locate(self, image: str) -> tuple[str, jsonl.Problem | None]:
        """Returns (absolute path, None) of a row's image, or ("", what is wrong with it)."""
        if remote.is_address(image):
            return image, None
        if self._address:
            return self._locate_below(self._address, image)
        folder, name = os.path.split(os.path.join(self.root, image))
        if folder not in self._folders:
            try:
                self._folders[folder] = self._list(folder)
            except (OSError, ValueError) as error:
                return "", ("image not found", f"image '{image}': {error}")
        real, is_link = self._folders[folder]
        path = os.path.join(real, name)
        if is_link is None or (is_link.get(name) and not self.contains(os.path.realpath(path))):
            return "", (
                "image outside the folder",
                f"image '{image}' is outside {as_typed(self.root)}; set {self.setting} to the "
                f"folder that holds all images",
            )
        if name not in is_link:
            near = self._find_near(folder, name)
            hint = f"; did you mean {near}?" if near else ""
            return "", (
                "image not found",
                f"image '{image}': no such file in {as_typed(real)}{hint}",
            )
        return path, None

    def _find_near(self, folder: str, name: str) -> str | None:
        """Returns the file whose name differs by upper and lower case or by its ending alone."""
        if folder not in self._by_key:
            names = sorted(self._folders[folder][1] or ())
            by_stem = {os.path.splitext(name)[0].casefold(): name for name in names}
            self._by_key[folder] = by_stem | {name.casefold(): name for name in names}
        known = self._by_key[folder]
        stem = os.path.splitext(name)[0]
        return known.get(name.casefold()) or known.get(stem.casefold()) if stem else None

    def _locate_below(self, address: str, image: str) -> tuple[str, jsonl.Problem | None]:
        location = f"{address}/{image}"
        if image.startswith("/") or ".." in image.split("/") or not remote.is_address(location):
            return "", ("image outside the folder", f"image '{image}' is outside {address}")
        return location, None

    def contains(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root.rstrip(os.sep) + os.sep)

    def _list(self, folder: str) -> tuple[str, dict[str, bool] | None]:
        """Returns (real path, {file name: is it a link}); None instead if it lies outside."""
        real = os.path.realpath(folder)
        if not self.contains(real):
            return real, None
        if not os.path.isdir(real):
            return real, {}
        with os.scandir(real) as entries:
            return real, {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}


def as_typed(path: str) -> str:
    """Returns a path as one would type it here: from the working folder on, if it lies below."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False
