# SPDX-License-Identifier: Apache-2.0
"""Sessions: what is kept of a visitor, in a folder of their own, until they leave.

All of it lies below one root, which goes with the server. Names of folders are not what a browser
calls its session, which anyone can choose, and cannot be guessed.
"""

import dataclasses
import itertools
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from contourdiff_jax.contours.settings import ContourSettings
from contourdiff_jax.demo.offers import Offer, Wish
from contourdiff_jax.demo.views import Drawn, Seen
from contourdiff_jax.errors import InputError

KEPT = 24  # pictures, so that a browser still finds those that it was told of last


@dataclasses.dataclass(eq=False)
class Opened:
    """An image that is looked at, and its own translation: drawing may outlast what is shown.

    Attributes:
      source: the image as it was sent, or the folder of its series.
      offer: the run that translates it.
      wish: what it was read with.
      seen: its slices.
      contours: those looked at now.
      number: the slice looked at now.
      drawn: its translation.
    """

    source: Path
    offer: Offer
    wish: Wish
    seen: Seen
    contours: ContourSettings
    number: int
    drawn: Drawn | None = None


@dataclasses.dataclass
class Session:
    """One visitor's files, and what is looked at.

    Attributes:
      folder: where all of it lies.
      uploads: copies that the server made of what was sent, outside the folder.
      opened: the image that is looked at.
      opening: held while one is read, so that the last that was asked for stays.
      closed: whether the visitor has left.
    """

    folder: Path
    uploads: set[Path] = dataclasses.field(default_factory=set)
    opened: Opened | None = None
    opening: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    closed: bool = False
    _numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    _pictures: deque[Path] = dataclasses.field(default_factory=deque)

    def begin(self) -> Path:
        """A new place for an upload; what was there before is gone."""
        self.check_open()
        self.opened = None
        for path in self.folder.iterdir():
            _remove(path)
        self._pictures.clear()
        return self.place("source")

    def place(self, name: str) -> Path:
        """A folder of that name which does not exist yet, in one that does."""
        self.check_open()
        place = self.folder / f"{next(self._numbers)}" / name
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

    def check_open(self) -> None:
        """InputError where the visitor has left, so that nothing more is done for them."""
        if self.closed:
            raise InputError("the session has ended; open the page again")

    def check_shows(self, opened: Opened) -> None:
        """InputError where another image is looked at by now, or the visitor has left."""
        self.check_open()
        if self.opened is not opened:
            raise InputError("the image has changed meanwhile; translate it again")


class Sessions:
    """All visitors of now, by what their browsers call them."""

    def __init__(self, root: Path):
        self.root = root
        self._held: dict[str, Session] = {}
        self._lock = threading.Lock()

    def enter(self, name: str) -> Session:
        """The session of a visitor, who may be new."""
        with self._lock:
            if name not in self._held:
                session = self._held[name] = Session(self._folder())
                session.folder.mkdir(mode=0o700)
            return self._held[name]

    def of(self, name: str) -> Session:
        """The session of a visitor; a closed one, without a folder, for who is not here."""
        with self._lock:
            return self._held.get(name) or Session(self._folder(), closed=True)

    def close(self, name: str) -> None:
        """The visitor has left: all of theirs goes, and with the last one all that there is."""
        with self._lock:
            session = self._held.pop(name, None)
            if session is None:
                return
            session.closed, session.opened = True, None
        self.sweep(session)

    def sweep(self, session: Session) -> None:
        """Remove what was sent by a visitor who has left, and what was written for them since."""
        if not session.closed:
            return
        shutil.rmtree(session.folder, ignore_errors=True)
        with self._lock:
            # One file that two have sent is one copy; and a browser may name a folder.
            wanted = {path for other in self._held.values() for path in other.uploads}
            sent = {path for path in session.uploads - wanted if path.is_file()}
            left = sent if self._held else {*self.root.iterdir()}
        for path in left:
            _remove(path)

    def _folder(self) -> Path:
        return self.root / secrets.token_hex(16)


def _remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
