# SPDX-License-Identifier: Apache-2.0
"""Scans: the volumes of a folder, each with its files and what the layout tells about it."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from contourdiff_jax.data import pseudonyms
from contourdiff_jax.data.layouts import naming
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames, io
from contourdiff_jax.volumes.intensity import Preset
from contourdiff_jax.volumes.volume import BRAIN, UNKNOWN, Assumed, Volume


@dataclasses.dataclass(frozen=True)
class Scan:
    """One volume that can be read.

    Attributes:
      name: scans of several folders belong together by it: the subject, and where it has several
        sessions or series, which.
      subject: whose it is, by the names of files and folders, never by what is in them.
      files: the file, or the slices of the volume.
      path: what messages call it: the file, or the folder of its slices.
      stem: what is made of it is called so.
      kind: what it shows, where the layout says it: 'ct', 'T1w', '0000', 'trainA', ...
      split: 'train', 'val' or 'test', where the layout says it.
      labels, mask: the label map and the body mask on its grid, where the layout holds them.
      assumed: what pictures do not say themselves.
      formerly: other names that earlier versions gave the subject.
      frames: of a DICOM file that holds several volumes, which frames are this one's.
    """

    name: str
    subject: str
    files: tuple[Path, ...]
    path: Path
    stem: str
    kind: str | None = None
    split: str | None = None
    labels: Path | None = None
    mask: Path | None = None
    assumed: Assumed = UNKNOWN
    formerly: tuple[str, ...] = ()
    frames: tuple[int, ...] | None = None

    def is_of(self, known: Collection[str]) -> bool:
        """Whether the subject is one of those with these pseudonyms.

        Names that earlier versions gave it count too: their stores and runs remember those.
        """
        return pseudonyms.recognised(self.subject, self.formerly, known)

    def read(self, *, labels: bool = False) -> Volume:
        """The volume; see `volumes.io.read`."""
        how = {"assumed": self.assumed, "frames": self.frames}
        return io.read(self.files, labels=labels, path=self.path, **how)

    def geometry(self):
        """Shape and affine [4, 4] in closest-canonical RAS, from the headers alone."""
        return io.shape_and_affine(self.files, self.assumed, self.frames)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the bytes of its files, voxels that lie beside a header included."""
        return disk.sha256(*(part for path in self.files for part in io.parts(path)))

    @property
    def is_picture(self) -> bool:
        """Whether it is made of pictures or arrays, which say neither their spacing nor a unit."""
        return filenames.suffix_of(self.files[0]) in filenames.PICTURES

    @property
    def source(self) -> str:
        """What a record may call it: names of DICOM files can hold identifiers, so not those."""
        if len(self.files) == 1 and filenames.suffix_of(self.files[0]) not in (
            None,
            *filenames.DICOM,
        ):
            return naming.safe(self.files[0].name)
        return self.name


@dataclasses.dataclass(frozen=True)
class Content:
    """What a folder holds.

    Attributes:
      layout: how it is laid out, one of `layouts.LAYOUTS`.
      scans: sorted by path.
      failed: files that belong to it but cannot be used, and why.
      notes: what was assumed, one line each.
    """

    layout: str
    scans: list[Scan]
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def check_assumed(scans: Iterable[Scan], assumed: Assumed, prefix: str = "") -> None:
    """InputError where something is assumed of pictures, and none of the scans is one.

    Args:
      prefix: of the flags by which it was.
    """
    if assumed != UNKNOWN and not any(scan.is_picture for scan in scans):
        given = assumed.to_dict()
        flag = next(name for name, value in given.items() if value is not None)
        flag = f"{prefix}{flag}" if flag != "spacing" else "pixel_spacing"
        raise InputError(f"--{flag}: it is of pictures, and no scan here is one; leave it out")


def check_unit(
    scan: Scan, volume: Volume, preset: Preset, prefix: str = "", *, as_greys: bool = True
) -> None:
    """InputError for pictures of 8 bits that are taken for CT, where nothing says their HU.

    Args:
      volume: of the scan, as it was read.
      preset: what it is taken for.
      prefix: of the flags that say it.
      as_greys: whether another preset may take the numbers as they are.
    """
    if preset.modality != "ct" or volume.span is None or scan.assumed.range is not None:
        return
    greys = f", or take greys as they are by --{prefix}preset=mr" if as_greys else ""
    raise InputError(
        f"{scan.path}: pictures of 8 bits hold no HU; say what black and white are by "
        f"--{prefix}range=LOW,HIGH, or --{prefix}range={BRAIN} for heads{greys}"
    )


def tally(notes: Iterable[str]) -> list[str]:
    """Each note once, in the order of first occurrence, with how often it occurred."""
    return [
        f"{note} ({count} scans)" if count > 1 else note for note, count in Counter(notes).items()
    ]
