# SPDX-License-Identifier: Apache-2.0
"""Marks: what this tool made, which is never a source of its own.

Stores, runs, evaluations and reports are known by the files that they have. A translation is known
by the notice in its sidecar, or in what describes a data set made of them.
"""

from collections.abc import Sequence
from pathlib import Path

from contourdiff_jax.runtime import disk
from contourdiff_jax.volumes import filenames

NOTICE = "Synthetic images, not for diagnosis."  # in every sidecar of a translation

# Files, or folders, that a folder of the tool has all of.
MADE = {
    "a store": {"dataset.json", "index.csv", "slices.npy"},
    "a run": {"config.json", "checkpoints"},
    "an exported model": {"contourdiff.json", "config.json"},
    "an evaluation": {"metrics.json", "rows.csv"},
    "a comparison of contours": {"statistics.json", "contact_sheet.png"},
}
DESCRIPTIONS = ("dataset.json", "dataset_description.json")  # of translations, for nnU-Net and BIDS
IMAGES = ("imagesTr", "imagesTs")
BESIDE = ("maps",)  # folders that translations have beside them
HEAD = 512  # bytes of a sidecar that hold the notice


def made(path: Path, files: Sequence[Path], folders: Sequence[Path]) -> str | None:
    """What a folder with this content is, if the tool made it; translations are not told."""
    names = {entry.name for entry in (*files, *folders)}
    for what, marks in MADE.items():
        if marks <= names:
            return what
    report = path.name.removesuffix("_figures")
    if report != path.name and any(
        path.with_name(f"{report}{it}").exists() for it in (".html", ".htm")
    ):
        return "figures of a report"
    return None


def holds_translations(files: Sequence[Path], folders: Sequence[Path]) -> bool:
    """Whether a folder with this content has translations of the tool in it."""
    return bool(sidecars(files)) or is_data_set(files, folders)


def is_data_set(files: Sequence[Path], folders: Sequence[Path]) -> bool:
    """Whether a folder with this content is a data set of translations, for nnU-Net or as BIDS."""
    if any(_notes(path) for path in files if path.name in DESCRIPTIONS):
        return True
    images = (path for path in folders if path.name in IMAGES)  # where it is not described yet
    return any(sidecars(disk.entries(path, "*.json")) for path in images)


def sidecars(files: Sequence[Path]) -> list[str]:
    """The names, without their suffix, of the sidecars among the files."""
    return [path.stem for path in files if path.suffix == ".json" and _notes(path, HEAD)]


def _notes(path: Path, count: int = -1) -> bool:
    """Whether the notice is in the first `count` bytes of a file, or in any."""
    try:
        return path.is_file() and disk.says(path, NOTICE, count)
    except OSError:  # nothing is known of it, then
        return False


def others(files: Sequence[Path]) -> list[Path]:
    """The files of a folder without those that the tool made: translations, and inspect's sheet."""
    translated = set(sidecars(files))
    names = {path.name for path in files}

    def is_made(path: Path) -> bool:
        stem = filenames.stem(path)
        if stem in translated or (path.name == "sheet.png" and "inspect.json" in names):
            return True
        sliced = filenames.suffix_of(path) in filenames.PICTURES
        return sliced and any(
            stem.startswith(name) and stem[len(name)] in filenames.SEPARATORS for name in translated
        )

    return [path for path in files if not is_made(path)]
