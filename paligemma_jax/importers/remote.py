"""Data sets by address: fetched into our cache, to be read as a folder.

    hf://OWNER/NAME, hf://OWNER/NAME/SUBSET, hf://OWNER/NAME@REVISION
    gs://BUCKET/FOLDER
    kaggle://OWNER/NAME

Of parquet files only those of the split that is asked for are fetched, and no more of them than
hold the rows that are. Roboflow has a file of its own: `roboflow`.
"""

import collections
import concurrent.futures
import pathlib
from collections.abc import Sequence

from paligemma_jax.console import say
from paligemma_jax.hub import repositories
from paligemma_jax.importers import arrow, columns, example
from paligemma_jax.wording import phrases

PARQUET = ".parquet"
# Beside data: what no importer reads.
NO_DATA = (".py", ".md", ".gitattributes", ".gitignore", ".git")
AT_ONCE = 8  # files that are fetched side by side
WHOLE = "all"  # what is kept where no split is chosen


def is_address(source: str) -> bool:
    """Whether a source is a data set of Hugging Face, Google Cloud Storage or Kaggle."""
    return source.startswith(("hf://", "gs://", "kaggle://"))


def fetch(source: str, *, split: str | None, first: int | None) -> pathlib.Path:
    """Returns the folder of a data set, fetched as far as it is wanted and not here.

    Args:
      source: its address.
      split: the one that is wanted, "train", "valid" or the source's own name; None: all.
      first: rows that are wanted; None: all.

    Raises:
      ValueError: an address that is not understood, or no such split or subset.
      OSError: what cannot be had, with what to do.
    """
    if match := repositories.KAGGLE.fullmatch(source):
        with say.working(f"fetching {source}"):
            return repositories.fetch_kaggle(match[1], match[2])
    if source.startswith("gs://"):
        listing, subset = repositories.list_google_storage(source), None
    elif match := repositories.HUGGING_FACE.fullmatch(source):
        listing, subset = repositories.list_hugging_face(match[1], match[3]), match[2]
    else:
        expected = "hf://OWNER/NAME, gs://BUCKET/FOLDER or kaggle://OWNER/NAME"
        raise ValueError(f"SRC {source}: expected {expected}")
    wanted = choose(listing.files, source, split=split, subset=subset)
    folder = listing.folder / "-".join(filter(None, (subset, split or WHOLE))).replace("/", "-")
    size = phrases.size(sum(one.size for one in wanted))
    state = f", {listing.revision}" if listing.revision else ""
    say.info(f"{source}: {phrases.count(len(wanted), 'files')}, {size}{state}, kept in {folder}")
    _fetch_all(listing, wanted, folder, source, first)
    return folder


def _fetch_all(
    listing: repositories.Listing,
    wanted: Sequence[repositories.File],
    folder: pathlib.Path,
    source: str,
    first: int | None,
) -> None:
    """Fetches files, of parquet no more than hold so many rows."""
    total, done, rows = sum(one.size for one in wanted), 0, 0
    with say.progress(f"fetching {source}", unit="B", unit_scale=True) as report:
        if first is not None and wanted[0].path.endswith(PARQUET):
            for one in wanted:
                rows += arrow.count_rows(str(listing.fetch(one, folder)))
                done += one.size
                report(done, total)
                if rows >= first:
                    return
            return
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            begun = {pool.submit(listing.fetch, one, folder): one for one in wanted}
            try:
                for ended in concurrent.futures.as_completed(begun):
                    ended.result()
                    done += begun[ended].size
                    report(done, total)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def choose(
    files: Sequence[repositories.File], source: str, *, split: str | None, subset: str | None
) -> list[repositories.File]:
    """Returns the files that are wanted, in order.

    Raises:
      ValueError: nothing that is data, no such split or subset, or several subsets and none chosen.
    """
    files = sorted((f for f in files if _is_data(f.path)), key=lambda one: one.path)
    if subset:
        inside = [one for one in files if one.path.startswith(f"{subset}/")]
        if not inside:
            known = sorted({one.path.partition("/")[0] for one in files if "/" in one.path})
            hint = phrases.did_you_mean(subset, known)
            raise ValueError(f"SRC {source}: no subset '{subset}'. {hint}It has {_few(known)}")
        files = inside
    tables = [one for one in files if one.path.endswith(PARQUET)]
    if not tables:
        if not files:
            raise ValueError(f"SRC {source}: no file that could be data")
        return files
    if not subset:
        _check_one_subset(tables, source)
    if split is None:
        return tables
    by_split = collections.defaultdict(list)
    for one in tables:
        by_split[split_of(one.path)].append(one)
    chosen = by_split.get(example.split_name(split) or split)
    if not chosen:
        known = _few(sorted(name for name in by_split if name))
        raise ValueError(f"SRC {source}: no split '{split}'; it has {known}")
    return chosen


def split_of(path: str) -> str | None:
    """Returns the split that the path of a file tells: its own name, else its folder's."""
    folder = path.rpartition("/")[0].rpartition("/")[2]
    return columns.split_of(path) or example.split_name(folder) or folder or None


def _check_one_subset(tables: Sequence[repositories.File], source: str) -> None:
    """Raises a ValueError where parquet lies in several folders that are no splits."""
    tops = {one.path.partition("/")[0] for one in tables if "/" in one.path}
    subsets = sorted(top for top in tops if example.split_name(top) is None)
    if len(subsets) > 1:
        raise ValueError(
            f"SRC {source} has subsets: {_few(subsets)}. Choose one: {source}/{subsets[0]}"
        )


def _is_data(path: str) -> bool:
    name = path.rpartition("/")[2]
    return not name.startswith(".") and not name.endswith(NO_DATA)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return f"{shown}, ..." if len(names) > 12 else shown or "none"
