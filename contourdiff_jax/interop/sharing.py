# SPDX-License-Identifier: Apache-2.0
"""Sharing: runs as one file each, and runs that are such a file, here or at a URL.

A shared run is a zip file, not compressed, of what translating needs of a run's folder: its
config.json, by default without the pseudonyms of subjects, the averaged weights of a checkpoint, by
default the latest, its parts, and CARD.md.
The same run gives the same bytes, so that a digest names it: URL#sha256=DIGEST.
"""

import dataclasses
import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from contourdiff_jax import methods
from contourdiff_jax.errors import InputError, printable
from contourdiff_jax.runtime import disk, downloads, ownership
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run

SUFFIX = ".zip"
CARD = "CARD.md"
DATE = (1980, 1, 1, 0, 0, 0)  # of all that is in the file; the earliest that zip knows
# Of what may be in it: up to eight folders deep, and short enough for any file system.
NAME = re.compile(r"(\w[\w.-]{0,99}/){0,8}\w[\w.-]{0,99}", re.ASCII)
ENCRYPTED = 1  # a flag of what is in a zip file
MADE = "`contourdiff export` makes such files"
OWN = "a run"  # by which the folder of one is known


def pack(
    folder: str | Path,
    out: str | Path,
    card: Path,
    which: str = checkpoint.LAST,
    subjects: bool = False,
) -> str:
    """Writes a run as a file to share; returns its SHA-256.

    Args:
      card: its model card, to go with it.
      which: the checkpoint, see checkpoint.averages.
      subjects: whether the pseudonyms of training subjects go with it, by which others are kept
        from scoring it on these; who guesses their names can tell that they are right.

    Raises:
      InputError: not a run, or one without an intact checkpoint; `out` exists, or cannot be
        written.
    """
    folder, out = Path(folder), Path(out)
    ownership.check_apart("out", out, {"run": folder})
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; choose another --out")
    ours = run.load(folder)
    one = meshes.local(1)
    players = methods.build(ours, mesh=one).players
    step, _ = checkpoint.averages(folder, players, one, which)  # that are as they were written
    files = {CARD: card}
    for item in (*checkpoint.drawn_with(players), checkpoint.ABOUT):
        files |= _below(folder / "checkpoints" / str(step) / item, folder)
    for path in ours.parts.values():
        files |= _below(path, folder)
    with tempfile.TemporaryDirectory() as place:
        runs = {"": ours} | {
            name: run.load(ours.parts[name]) for name in run.RUNS if name in ours.parts
        }
        for name, each in runs.items():
            kept = each if subjects else dataclasses.replace(each, subjects=())
            kept.save(Path(place) / name)
        files |= _below(Path(place), Path(place))
        with disk.file(out) as partial, zipfile.ZipFile(partial, "w") as packed:
            for name, path in sorted(files.items()):
                about = zipfile.ZipInfo(name, DATE)
                about.file_size = path.stat().st_size  # above 2 GiB it has another form
                with path.open("rb") as source, packed.open(about, "w") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    return disk.sha256(out)


def _below(path: Path, folder: Path) -> dict[str, Path]:
    """{name in the folder: path} of a file, or of all that can be seen in a folder."""
    found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    names = {each.relative_to(folder).as_posix(): each for each in found}
    return {name: each for name, each in names.items() if NAME.fullmatch(name)}


def at(address: str | Path) -> Path:
    """The folder of a run: the address itself, or where a shared one is unpacked, once.

    Args:
      address: a folder, a file that `pack` wrote, or URL#sha256=DIGEST of one.

    Raises:
      InputError: a file that is another than promised or no shared run; one that cannot be fetched.
    """
    place, _, promised = str(address).partition("#sha256=")
    if "://" in place:
        return _fetched(place, promised.lower())
    path = Path(place)
    if not promised and not (is_named(path) and path.is_file()):
        return Path(address)
    disk.check_is_file(path)
    digest = disk.sha256(path)
    if promised and digest != promised.lower():
        raise InputError(f"{path}: has the SHA-256 {digest}, not {promised}; fetch it again")
    return _unpacked(path, downloads.kept() / "runs" / digest)


def is_named(path: str | Path) -> bool:
    """Whether a file has the name of a shared run."""
    return Path(path).suffix.lower() == SUFFIX


def keep(folder: Path, workdir: str | Path) -> None:
    """Makes a run of one's own of the folder that `at` found; raises InputError as for `pack`."""
    with ownership.folder(Path(workdir), OWN) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)


def _fetched(url: str, promised: str) -> Path:
    """The folder of the run at a URL, fetched unless it is there."""
    if not url.lower().startswith(("https://", "http://")):
        raise InputError(f"{url}: only https and http are fetched")
    if not re.fullmatch("[0-9a-f]{64}", promised):
        raise InputError(
            f"{url}: say which file it has to be, URL#sha256=DIGEST; `contourdiff export` tells it"
        )
    folder = downloads.kept() / "runs" / promised
    if folder.exists():
        return folder
    file = folder.with_suffix(SUFFIX)
    if not file.exists() or disk.sha256(file) != promised:
        downloads.fetch(url, file, promised, "try again, or ask who shares it for its digest")
    _unpacked(file, folder)
    file.unlink(missing_ok=True)
    return folder


def _unpacked(file: Path, folder: Path) -> Path:
    """The folder, made of what is in the file unless it is there."""
    if folder.exists():
        return folder
    with disk.staged(folder) as partial:
        try:
            with zipfile.ZipFile(file) as packed:
                packed.extractall(partial, _checked(packed, file))
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError):
            raise InputError(f"{file}: no zip file, or damaged; {MADE}") from None
        try:
            run.load(partial)
        except InputError as error:
            raise InputError(str(error).replace(str(partial), str(file))) from None
        if not checkpoint.steps(partial):
            raise InputError(f"{file}: not a shared run, it has no weights; {MADE}")
        try:
            os.rename(partial, folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
    return folder


def _checked(packed: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
    """What is in the file; InputError for what `pack` puts into none: links, ways out, bombs."""
    members = packed.infolist()
    names = [each.filename for each in members]
    folders = {str(parent) for name in names for parent in PurePosixPath(name[:1000]).parents}
    for each in members:
        linked = stat.S_ISLNK(each.external_attr >> 16)
        stored = each.compress_type == zipfile.ZIP_STORED and each.compress_size == each.file_size
        plain = stored and not linked and not each.flag_bits & ENCRYPTED
        if not plain or not NAME.fullmatch(each.filename) or each.filename in folders:
            told = printable(each.filename[:40])
            raise InputError(f"{file}: not a shared run ({told} is in it); {MADE}")
    if len({*names}) < len(names):
        raise InputError(f"{file}: not a shared run (a name is in it twice); {MADE}")
    if sum(each.file_size for each in members) > file.stat().st_size:
        raise InputError(f"{file}: not a shared run (what is in it overlaps); {MADE}")
    return members
