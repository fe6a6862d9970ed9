# SPDX-License-Identifier: Apache-2.0
"""Sessions: what is kept of a visitor, in a folder of their own, until they leave.

All of it lies below one root, which goes with the server. Names of folders are not what a browser
calls its session, which anyone can choose, and cannot be guessed.
"""

import dataclasses
import secrets
import shutil
import threading
from collections import deque
from pathlib import Path

import numpy as np
from PIL import Image

from contourdiff_jax.demo.views import Drawn, Seen
from contourdiff_jax.errors import InputError

KEPT = 24  # pictures, so that a browser still finds those that it was told of last


@dataclasses.dataclass
class Session:
    """One visitor's files, and what is looked at.

    Attributes:
      folder: where all of it lies.
      uploads: copies that the server made of what was sent, outside the folder.
      source: the image as it was sent, or the folder of its series.
      seen: its slices.
      drawn: its translation.
      closed: whether the visitor has left.
    """

    folder: Path
    uploads: set[Path] = dataclasses.field(default_factory=set)
    source: Path | None = None
    seen: Seen | None = None
    drawn: Drawn | None = None
    closed: bool = False
    _count: int = 0
    _pictures: deque[Path] = dataclasses.field(default_factory=deque)

    def begin(self) -> Path:
        """A new place for an upload; what was there before is gone."""
        self.forget()
        self.source = None
        for path in self.folder.iterdir():
            _remove(path)
        self._pictures.clear()
        return self.place("source")

    def forget(self) -> None:
        """No image is looked at any longer."""
        self.seen = self.drawn = None

    def place(self, name: str) -> Path:
        """A folder of that name which does not exist yet, in one that does."""
        self.check_open()
        self._count += 1
        place = self.folder / f"{self._count}" / name
        place.parent.mkdir()
        return place

    def picture(self, array: np.ndarray) -> str:
        """The file of a picture [H, W, 3] uint8; older ones go."""
        path = self.place("slice.png")
        Image.fromarray(array).save(path, compress_level=1)
        self._pictures.append(path.parent)
        if len(self._pictures) > KEPT:
            shutil.rmtree(self._pictures.popleft(), ignore_errors=True)
        return str(path)

    def plain(self, text: str) -> str:
        """A line without the place where the server keeps files."""
        for path in sorted(self.folder.glob("*"), reverse=True):
            text = text.replace(f"{path}/source/", "").replace(f"{path}/", "")
        return text.replace(f"{self.folder}/", "")

    def sweep(self) -> None:
        """Remove what was written for a visitor who had left meanwhile."""
        if self.closed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def check_open(self) -> None:
        """InputError where the visitor has left, so that nothing more is done for them."""
        if self.closed:
            raise InputError("the session has ended; open the page again")


class Sessions:
    """All visitors of now, by what their browsers call them."""

    def __init__(self, root: Path):
        self.root = root
        self._held: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, name: str) -> Session:
        """The session of a visitor, who may be new."""
        with self._lock:
            if name not in self._held:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(mode=0o700)
                self._held[name] = Session(folder)
            return self._held[name]

    def close(self, name: str) -> None:
        """The visitor has left: all of theirs goes, and with the last one all that there is."""
        with self._lock:
            session = self._held.pop(name, None)
            if session is None:
                return
            session.closed = True
            session.forget()
            shutil.rmtree(session.folder, ignore_errors=True)
            # One file that two have sent is one copy.
            wanted = {path for other in self._held.values() for path in other.uploads}
            left = session.uploads - wanted if self._held else {*self.root.iterdir()}
        for path in left:
            _remove(path)


def _remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
