# SPDX-License-Identifier: Apache-2.0
"""Conventions: layouts that other projects specify, with every name in its place.

nnU-Net, https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md; the Medical
Segmentation Decathlon, from which it comes, has no number of the channel in its names.
BIDS, https://bids-specification.readthedocs.io, its file names (entities, suffix) only.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from contourdiff_jax.data.layouts import naming
from contourdiff_jax.data.layouts.folders import Folder, is_picture, is_volume
from contourdiff_jax.data.layouts.naming import EVERY, Wanted
from contourdiff_jax.data.layouts.scans import Content
from contourdiff_jax.data.layouts.stacks import scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import forms
from contourdiff_jax.volumes import filenames

# --------------------------------------------------------------------------------------------------
# nnU-Net
# --------------------------------------------------------------------------------------------------

PARTS = {"Tr": "train", "Ts": "test"}
IMAGES = ("imagesTr", "imagesTs")
FIRST = "0000"


def holds_nnunet(folder: Folder) -> bool:
    """Whether there is a folder of images to train on or to test with, or it is one itself.

    One by itself counts where cases in it have several channels; else its files are volumes as any.
    """
    if folder.name not in IMAGES:
        return any(path.name in IMAGES for path in folder.folders)
    stems = {filenames.stem(path) for path in folder.volumes}
    channels = (re.fullmatch(r"(.+)_(\d{4})", stem) for stem in stems)
    return any(m and m[2] != FIRST and f"{m[1]}_{FIRST}" in stems for m in channels)


@dataclasses.dataclass
class _Case:
    """A subject of nnU-Net.

    Attributes:
      path: what messages call it.
      split: 'train' or 'test', None where the folder does not say.
      labels: the label map, where there is one.
      images: by the name or number of the channel.
    """

    path: Path
    split: str | None
    labels: Path | None
    images: dict[str, Path] = dataclasses.field(default_factory=dict)


def nnunet(folder: Folder, wanted: Wanted) -> Content:
    """The scans of an nnU-Net data set: of every case the channel that is wanted."""
    content, parts = Content("nnunet", []), PARTS
    if folder.name in IMAGES:  # of it alone, whatever it is for
        parts = {folder.name[-2:]: None}
        folder = folder.enter(folder.path.parent if folder.path.name else Path(".."))
    names = _channel_names(folder, content.notes)
    cases = _cases(folder, names, parts)
    kinds = {kind for case in cases for kind in case.images}
    if not kinds:
        raise InputError(f"{folder.path}: no images in imagesTr or imagesTs")
    if wanted.select in names:
        wanted = dataclasses.replace(wanted, select=names[wanted.select])
    for kind in wanted.among(folder.path, kinds):
        for case in cases:
            if kind not in case.images:
                why = f"{case.path}: no channel {kind}, as others have"
                content.failed.append((case.path, why))
                continue
            about = {"kind": kind, "split": case.split, "labels": case.labels}
            files = [case.images[kind]]
            content.scans.append(scan(case.path.name, files, assumed=wanted.assumed, **about))
    lacking = sum(case.labels is None and case.split != "test" for case in cases)
    if 0 < lacking < len(cases):
        content.notes.append(f"{lacking} of {len(cases)} cases have no label map")
    return content


def _cases(folder: Folder, names: dict[str, str], parts: dict[str, str | None]) -> list[_Case]:
    """The cases of folders and what they are for, by their names without the channel's number.

    The Decathlon and AMOS have no such numbers: then label maps are called as images are, or no
    name ends in that of the first channel.
    """
    files = {
        (what, part): _by_stem(folder.enter(path))
        if (path := folder.path / f"{what}{part}") in folder.folders
        else {}
        for part in parts
        for what in ("images", "labels")
    }
    images, labels = (
        {stem for part in parts for stem in files[it, part]} for it in ("images", "labels")
    )
    channel_of = {stem: re.fullmatch(r"(.+)_(\d{4})", stem) for stem in images - labels}
    channel_of = {stem: match for stem, match in channel_of.items() if match}
    told = any(match[1] in labels for match in channel_of.values())
    if not told and (images & labels or not any(m[2] == FIRST for m in channel_of.values())):
        channel_of = {}
    cases = {}
    for part, split in parts.items():
        for stem, path in files["images", part].items():
            match = channel_of.get(stem)
            name, channel = match.groups() if match else (stem, FIRST)
            label = files["labels", part].get(name)
            case = cases.setdefault((part, name), _Case(path.parent / name, split, label))
            case.images[names.get(channel, channel)] = path
    return list(cases.values())


def _by_stem(folder: Folder) -> dict[str, Path]:
    """The images directly in a folder, by their name without suffix."""
    return {
        filenames.stem(path): path for path in folder.files if is_volume(path) or is_picture(path)
    }


def _channel_names(folder: Folder, notes: list[str]) -> dict[str, str]:
    """The names of the channels {'0000': 'CT'} as dataset.json tells them, if each has its own."""
    path = folder.path / "dataset.json"
    if path not in folder.files:
        return {}
    try:
        form = dict.fromkeys(("channel_names?", "modality?"), dict[str, str])
        fields = forms.read(path, form, "")
        channels = fields.get("channel_names") or fields["modality"]
        names = {f"{int(number):04d}": name.strip() for number, name in channels.items()}
    except (InputError, KeyError, ValueError):
        notes.append("dataset.json names no channels; they are called by their numbers")
        return {}
    if len(set(names.values())) < len(names):
        return {}
    return names


# --------------------------------------------------------------------------------------------------
# BIDS
# --------------------------------------------------------------------------------------------------

# sub-01_ses-1_acq-mprage_T1w
NAME = re.compile(r"sub-[^_]+(?:_[^_-]+-[^_]+)*_[^_-]+")
# By these entities files differ that were made of one image; they are part of its kind.
MADE = ("space", "cohort", "res", "den", "label", "desc")


@dataclasses.dataclass(frozen=True)
class _Named:
    """A file by its name.

    Attributes:
      entities: {'sub': '01', 'acq': 'mprage', ...}, in their order.
      suffix: 'T1w', 'bold', ...
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def kind(self) -> str:
        made = [f"{key}-{value}" for key, value in self.entities.items() if key in MADE]
        return "_".join([*made, self.suffix])

    @property
    def visit(self) -> tuple[str, str | None]:
        return self.entities["sub"], self.entities.get("ses")

    def made(self, family: str, files: Iterable["_Named"]) -> Path | None:
        """The label map or mask, among files, that was made of this image; None of several.

        Those of one structure are not meant, nor the mask of the brain, where the body's is.
        """
        held = [
            file.path
            for file in files
            if file.path.parent == self.path.parent
            and naming.family(file.suffix) == family
            and file._image == self._image
            and "label" not in file.entities
            and file.entities.get("desc") != "brain"
        ]
        return held[0] if len(held) == 1 else None

    @property
    def _image(self) -> dict[str, str]:
        return {key: value for key, value in self.entities.items() if key != "desc"}


def holds_bids(folder: Folder) -> bool:
    """Whether there are images in folders of subjects, all named as they should."""
    return any(_named(below) for below in _subject_folders(folder))


def bids(folder: Folder, wanted: Wanted) -> Content:
    """The scans of a BIDS data set, raw or derived.

    `wanted.select` is a suffix (T1w), entities before one (acq-mprage_T1w), or entities alone.
    """
    content = Content("bids", [])
    subjects, files = [], []
    for below in _subject_folders(folder):
        files += _named(below)
        content.failed.extend(below.failed)
        subjects.append(below.path)
    every, kinds = files, {file.kind for file in files}
    if wanted.select not in (None, EVERY):
        files = [file for file in files if _matches(file, wanted.select)]
        if not files:
            raise InputError(
                f"{folder.path}: no {wanted.select!r} to select; it holds "
                f"{naming.joined(sorted(kinds))}"
            )
        kinds = {file.kind for file in files}
        # T1w is what has no desc or space before it, if there is such.
        kinds = {kind for kind in kinds if kind.casefold() == wanted.select.casefold()} or kinds
        wanted = dataclasses.replace(wanted, select=None, modality=None)
    for kind in wanted.among(folder.path, kinds):
        chosen = [file for file in files if file.kind == kind]
        visits = defaultdict(list)
        for file in chosen:
            visits[file.visit].append(file)
        for those in visits.values():
            for file in those:
                keys = [
                    key
                    for key in file.entities
                    if key in ("sub", "ses")
                    or len({other.entities.get(key) for other in those}) > 1
                ]
                name = "_".join(f"{key}-{file.entities[key]}" for key in keys)
                subject, found = f"sub-{file.entities['sub']}", {"name": name, "kind": kind}
                if wanted.select != EVERY and naming.family(file.suffix) not in naming.MADE:
                    found["labels"] = file.made("labels", every)
                    found["mask"] = file.made("masks", every)
                content.scans.append(scan(subject, [file.path], **found))
        having = {file.entities["sub"] for file in chosen}
        content.failed.extend(
            (path, f"{path}: no {kind}, as others have")
            for path in subjects
            if path.name.removeprefix("sub-") not in having
        )
    return content


def _subject_folders(folder: Folder) -> list[Folder]:
    """The folders of the subjects: sub-*, or the folder itself if it is one."""
    if re.fullmatch("sub-[^_]+", folder.name):
        return [folder]
    return [folder.enter(path) for path in folder.folders if re.fullmatch("sub-[^_]+", path.name)]


def _named(folder: Folder) -> list[_Named]:
    """The images of a subject's folder that are named as they should."""
    named = []
    for path in (path for files in folder.below.values() for path in files):
        stem = filenames.stem(path)
        if filenames.suffix_of(path) in filenames.NIFTI and NAME.fullmatch(stem):
            *entities, suffix = stem.split("_")
            named.append(_Named(path, dict(entity.split("-", 1) for entity in entities), suffix))
    return named


def _matches(file: _Named, select: str) -> bool:
    """Whether a file has all the entities, and the suffix if there is one, of a choice."""
    for part in select.split("_"):
        key, dash, value = part.partition("-")
        if dash and file.entities.get(key) != value:
            return False
        if not dash and file.suffix.casefold() != part.casefold():
            return False
    return True
