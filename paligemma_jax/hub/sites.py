"""Kaggle and Hugging Face: where a key is made, and what an answer of theirs means to a user."""

import dataclasses
from typing import NoReturn

from paligemma_jax.hub import download


@dataclasses.dataclass(frozen=True)
class Site:
    """A site that wants a key: the scheme of its addresses, its host, and how to get a key."""

    key: str
    host: str
    how: str

    def refuse(
        self, source: str, status: int | None, page: str, listing: str, *, has_key: bool
    ) -> NoReturn:
        """Raises the error that says what is missing: a key, the licence, the file, the network.

        Args:
          source: the address that was asked for.
          status: the site's answer; None if it gave none.
          page: where the licence is accepted and the files are listed.
          listing: a sentence on the files that are known to be there, or "".
          has_key: whether a key was found.
        """
        licence = f"open {page} with your account and accept the licence"
        if status in (401, 403) and not has_key:
            advice = f"no key for {self.host} is found: {self.how}; then {licence}"
        elif status == 401:
            advice = f"{self.host} does not accept your key: {self.how}"
        elif status == 403:
            advice = f"not allowed for your key: {licence}, and check the name.{listing}"
        elif status == 404:
            advice = f"no such file (or revision), see {page}.{listing}"
        elif status is None:
            advice = f"{self.host} cannot be reached or is out of order; is there a network?"
        else:
            advice = f"{self.host} answers {status}; try again later"
        raise download.DownloadError(f"{source}: {advice}", status=status)


KAGGLE = Site(
    "kaggle",
    "www.kaggle.com",
    "create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY (or "
    "KAGGLE_API_TOKEN), or put kaggle.json into ~/.kaggle",
)
HUGGING_FACE = Site(
    "hf",
    "huggingface.co",
    "create a token at https://huggingface.co/settings/tokens and set HF_TOKEN, or run `hf auth "
    "login` (~/.cache/huggingface/token)",
)
