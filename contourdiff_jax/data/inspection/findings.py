# SPDX-License-Identifier: Apache-2.0
"""Findings: what is known of inspected scans, as people read it."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.volumes.intensity import Window

PROBLEM, NOTE = "problem", "note"
Remark = tuple[str, str]  # one of these two, and a line


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a scan seems to show.

    Attributes:
      modality: 'ct', 'mr', 'labels' or 'picture'.
      preset: the intensity preset that suits it; None for labels.
      reason: why, in a few words.
      offset: how far its values lie above HU.
    """

    modality: str
    preset: str | None
    reason: str
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Inspected:
    """One scan that can be read.

    Attributes:
      scan: its names and files, and what the layout tells.
      root: the path under which it lies, of those that were inspected.
      format, dtype: of the files.
      shape, orientation, spacing: along the file's own axes; spacing in mm.
      percentiles: {percentile: value}; 0 and 100 are of all voxels, the others of `sampled` voxels.
      window: through which it is shown; None for labels.
      remarks: what is wrong, and what is good to know, without the file's name.
      view: its middle slices, uint8 [H, W, 3], where wanted.
    """

    scan: Scan
    root: str
    format: str
    dtype: str
    shape: tuple[int, ...]
    orientation: str
    spacing: tuple[float, ...]
    percentiles: dict[float, float]
    sampled: int
    guess: Guess
    window: Window | None
    remarks: list[Remark]
    view: np.ndarray | None = None

    @property
    def title(self) -> str:
        """Its name, and where the layout tells several kinds of scans apart, its kind."""
        return " ".join(filter(None, (self.scan.name, self.scan.kind)))

    def lines(self, which: str) -> list[str]:
        """Its problems or its notes."""
        return only(which, self.remarks)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All findings.

    Attributes:
      layouts: {path: layout}.
      scans: those that can be read.
      failed: [(path, why)] what cannot be used.
      remarks: on several scans together; those on one scan are with it.
    """

    layouts: dict[str, str]
    scans: list[Inspected]
    failed: list[tuple[Path, str]]
    remarks: list[Remark]

    @property
    def status(self) -> int:
        """The exit status: 0 all can be used, 1 some cannot, 2 none can."""
        return int(bool(self.failed)) if self.scans else 2

    def lines(self, which: str) -> list[str]:
        """The problems or the notes, a line each; what is alike in many scans is one line."""
        each = ((seen.scan.path, text) for seen in self.scans for text in seen.lines(which))
        return alike(each) + only(which, self.remarks)

    @property
    def summary(self) -> str:
        """One line: layout, and how many there are of everything."""
        layout = ", ".join(sorted(set(self.layouts.values()))) or "unknown"
        subjects = count({inspected.scan.subject for inspected in self.scans}, "subject")
        problems = count(self.lines(PROBLEM), "problem")
        failed = f", {len(self.failed)} cannot be used" if self.failed else ""
        return f"layout {layout}, {count(self.scans, 'scan')} of {subjects}, {problems}{failed}"


def alike(texts: Iterable[tuple[Path, str]]) -> list[str]:
    """Texts on files, a line each; those that differ in their numbers alone are one line."""
    lines = defaultdict(list)
    for path, text in texts:
        lines[re.sub(r"[\d.]+", "0", text)].append(f"{path}: {text}")
    return [
        f"{first} (and {len(more)} more like it)" if more else first
        for first, *more in lines.values()
    ]


def only(which: str, remarks: list[Remark]) -> list[str]:
    return [text for kind, text in remarks if kind == which]


def count(things, noun: str) -> str:
    return f"{len(things)} {noun}{'s' * (len(things) != 1)}"
