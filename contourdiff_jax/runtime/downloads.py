# SPDX-License-Identifier: Apache-2.0
"""Downloads: files that are fetched once, verified by their digest, and kept."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

TIMEOUT = 30  # seconds without an answer
BLOCK = 1 << 20


def kept() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/contourdiff_jax, by default below ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "contourdiff_jax"


def fetch(url: str, path: Path, sha256: str, remedy: str) -> None:
    """Downloads a file to `path`, whole or not at all.

    Args:
      remedy: what to do where it cannot be fetched, for the message.

    Raises:
      InputError: it cannot be had, or is another file than that of the digest.
    """
    try:
        with disk.whole(path) as partial:
            found = _download(url, partial)
            if found != sha256:
                raise InputError(f"{url}: arrived with the SHA-256 {found}, not {sha256}; {remedy}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise InputError(f"{url} cannot be fetched ({disk.reason(error)}); {remedy}") from None


def _download(url: str, path: Path) -> str:
    """Write what the URL answers, and return its SHA-256."""
    digest = hashlib.sha256()
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("xb") as file:
        named = url.rpartition("/")[2]
        with tqdm(total=answer.length, desc=named, unit="B", unit_scale=True, disable=None) as bar:
            while block := answer.read(BLOCK):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
    return digest.hexdigest()
