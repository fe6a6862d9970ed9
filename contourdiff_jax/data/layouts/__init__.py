# SPDX-License-Identifier: Apache-2.0
"""Layouts: what a folder holds, recognised by how its files and folders are named.

  csv          a table that says which file is whose (tables.py)
  ab           trainA, trainB, valA, ..., testB: volumes or pictures of two domains
  contourdiff  images/ and df_meta.csv (tables.py)
  nnunet       imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz, dataset.json (conventions.py)
  bids         sub-01/[ses-1/]anat/sub-01_[ses-1_]T1w.nii.gz, raw or derived (conventions.py)
  synthrad     Task1/brain/1BA001/{ct,mr,mask}.nii.gz, or .mha; cbct in place of mr (subjects.py)
  subjects     a folder for each subject, a volume for each kind: p1/p1-t1.nii.gz (subjects.py)
  volumes      volumes directly in the folder, or one file
  slices       2-D pictures directly in the folder (stacks.py), or in one for each subject
  dicom        DICOM files at any depth, in a folder for each patient (subjects.py)

Names are all that is looked at, besides the sizes of pictures, and what DICOM headers tell of which
files make one volume.
"""

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from contourdiff_jax.data.layouts import conventions, marks, naming, subjects, tables
from contourdiff_jax.data.layouts.folders import Folder, is_dicom, is_picture, is_volume
from contourdiff_jax.data.layouts.naming import EVERY, Wanted, joined, unnumbered
from contourdiff_jax.data.layouts.scans import Content
from contourdiff_jax.data.layouts.stacks import of_file, recognition, stacked
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes import filenames
from contourdiff_jax.volumes.volume import UNKNOWN, Assumed


class SeveralLayouts(InputError):
    """A folder has no layout, but folders in it may: `folders`, those with images."""

    def __init__(self, message: str, folders: list[Path]):
        super().__init__(message)
        self.folders = folders


def find(
    source,
    *,
    layout: str = "auto",
    select: str | None = None,
    modality: str | None = None,
    assumed: Assumed = UNKNOWN,
    prefix: str | None = "",
    translations: bool = False,
) -> Content:
    """The scans of a file or folder.

    Args:
      source: the file or folder.
      layout: one of LAYOUTS, or the path of a CSV file that says what is whose; 'auto' tries them.
      select: which of several kinds of scans; '*' for every kind.
      modality: 'ct' or 'mr', which chooses among them where just one kind is of it.
      assumed: what pictures do not say themselves.
      prefix: of the flags --select and --layout, which errors may advise; None: there are none.
      translations: whether those of this tool are meant, also where there are other images.

    Raises:
      SeveralLayouts: a folder of folders with layouts of their own.
      InputError: nothing is found, or several kinds and none is chosen.
    """
    source, wanted = Path(source), Wanted(select, modality, assumed, prefix)
    if not os.path.exists(source):
        raise InputError(f"{source}: no such file or folder")
    if layout.lower().endswith(".csv"):
        content = tables.csv(Path(layout), wanted)
    elif layout not in ("auto", *LAYOUTS):
        flag = f"--{prefix or ''}layout"
        raise InputError(f"{flag}={layout}: known are auto, {', '.join(LAYOUTS)}, or a CSV file")
    elif os.path.isdir(source):
        content = _of_folder(_opened(source, translations), layout, wanted)
    else:
        content = _of_file(source, layout, wanted)
    return _checked(source, content, wanted)


def _opened(path: Path, translations: bool) -> Folder:
    """The folder of a source; translations are meant if so said, or where there is nothing else.

    Raises InputError for a folder that this tool made of scans, and which holds none.
    """
    folder = Folder(path)
    if what := marks.made(Path(os.path.abspath(path)), *folder.listed):
        raise InputError(f"{path}: {what} of this tool, where scans are expected")
    if translations or marks.is_data_set(*folder.listed):
        return Folder(path, translations=True)
    own = folder.files if any(map(_is_image, folder.files)) else None
    others = own or (file for files in folder.below.values() for file in files)
    return folder if any(map(_is_image, others)) else Folder(path, translations=True)


def _of_folder(folder: Folder, layout: str, wanted: Wanted) -> Content:
    """The scans of a folder; of one that holds nothing but another folder, those of that."""
    entered, inner = [], folder
    while True:
        if name := _recognised(inner, layout, wanted):
            content = FOLDERS[name].read(inner, wanted)
            content.notes[:0] = entered
            if inner.made:
                names = joined(path.relative_to(inner.path) for path in inner.made)
                content.notes.append(f"left out what this tool made: {names}")
            return content
        if len(inner.folders) != 1 or any(map(_is_image, inner.files)):
            break
        inner = inner.enter(inner.folders[0])
        entered.append(f"all lies in the folder {naming.legible(inner.path.name)}")
    if layout in FOLDERS:
        raise InputError(f"{folder.path}: not laid out as {layout}: no {FOLDERS[layout].needs}")
    if layout != "auto":
        flag = f"--{wanted.prefix or ''}layout={layout}"
        raise InputError(f"{folder.path}: a folder, where {flag} is for a CSV file")
    if held := [path for path, files in folder.below.items() if any(map(_is_image, files))]:
        names = joined(path.relative_to(folder.path) for path in held)
        raise SeveralLayouts(
            f"{folder.path}: no known layout; images lie in {names}: give one of these folders"
            + ("" if wanted.prefix is None else f", or name the --{wanted.prefix}layout"),
            [path for path in inner.folders if any(path in (it, *it.parents) for it in held)],
        )
    if folder.failed:
        raise InputError(folder.failed[0][1])
    known = ", ".join((*filenames.SUFFIXES, "DICOM"))
    raise InputError(f"{folder.path}: no {known} file in this folder")


def _recognised(folder: Folder, layout: str, wanted: Wanted) -> str | None:
    """The name of the folder's layout: `layout` or, if that is 'auto', the first that holds."""
    if layout == "subjects" and folder.leaves:  # who says so knows that they are
        return layout
    for name in FOLDERS if layout == "auto" else {layout} & FOLDERS.keys():
        if FOLDERS[name].holds(folder):
            if layout == "auto" and name in ("volumes", "slices", "dicom"):
                _check_unmixed(folder, wanted)
            return name
    return None


def _check_unmixed(folder: Folder, wanted: Wanted) -> None:
    """InputError where volumes, pictures and DICOM files lie side by side."""
    held = {
        f"{len(files)} {what}": name
        for name, what, files in (
            ("volumes", "volumes", folder.volumes),
            ("slices", "pictures", folder.pictures),
            ("dicom", "DICOM files", folder.dicom),
        )
        if files
    }
    if len(held) > 1:
        advice = wanted.advice(*(f"layout={name}" for name in held.values()))
        raise InputError(f"{folder.path}: holds {joined(held)} side by side; {advice}")


def _is_image(path: Path) -> bool:
    return is_volume(path) or is_picture(path) or is_dicom(path)


def _of_file(path: Path, layout: str, wanted: Wanted) -> Content:
    """The scans of one file."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: neither a file nor a folder")
    if path.suffix.lower() == ".csv":
        name, read = "csv", lambda: tables.csv(path, wanted)
    elif is_volume(path):
        name, read = "volumes", lambda: Content("volumes", [of_file(path, wanted)])
    elif is_picture(path):
        name, read = "slices", lambda: _picture(path, wanted)
    elif is_dicom(path):
        name, read = "dicom", lambda: subjects.of_dicom(path.parent, [path], wanted)
    else:
        known = ", ".join(filenames.SUFFIXES)
        raise InputError(f"{path}: unsupported file type; known are DICOM and {known}")
    if layout not in ("auto", name):
        raise InputError(f"{path}: a single file, not laid out as {layout}")
    if name in ("volumes", "slices"):
        _of_kind(path, [path], wanted, [])  # it is, or what is to be selected is not in it
    return read()


def _picture(path: Path, wanted: Wanted) -> Content:
    """The scan of one picture; its subject is recognised by the names of all in its folder."""
    content, folder = Content("slices", []), Folder(path.parent, translations=True)
    beside = [other for other in folder.pictures if other != path]
    content.scans.extend(stacked([path], wanted, content.failed, owner=folder.name, beside=beside))
    return content


def _checked(source: Path, content: Content, wanted: Wanted) -> Content:
    """The scans sorted and, if they are of every kind, with a stem for each."""
    if not content.scans:
        nothing = (source, f"{source}: holds no images")
        path, reason = content.failed[0] if content.failed else nothing
        alone = path == source and len(content.failed) < 2
        raise InputError(reason if alone else f"{source}: nothing can be used: {reason}")
    scans = sorted(content.scans, key=lambda scan: (scan.path, scan.name))
    if wanted.select == EVERY:
        counts = Counter(scan.stem for scan in scans)
        scans = [
            dataclasses.replace(scan, stem=naming.safe(f"{scan.stem}_{scan.kind}"))
            if counts[scan.stem] > 1 and scan.kind
            else scan
            for scan in scans
        ]
    return dataclasses.replace(content, scans=scans)


# --------------------------------------------------------------------------------------------------
# Volumes and pictures directly in a folder
# --------------------------------------------------------------------------------------------------


def _volumes(folder: Folder, wanted: Wanted) -> Content:
    content = Content("volumes", [])
    files = _of_kind(folder.path, folder.volumes, wanted, content.notes)
    labels, masks = (_beside(folder.volumes, files, family) for family in naming.MADE)
    content.scans.extend(
        of_file(path, wanted, labels=labels.get(path), mask=masks.get(path)) for path in files
    )
    used = {*files, *labels.values(), *masks.values()}
    content.notes.extend(_left_out(folder.volumes, used))
    return content


def _beside(volumes: list[Path], images: list[Path], family: str) -> dict[Path, Path]:
    """The label map or mask that lies beside an image: p1_ct_seg, or else p1_seg, beside p1_ct.

    Where there are several, none is meant: --labels or --masks tells which is.
    """
    held = defaultdict(list)
    for path in sorted({*volumes} - {*images}):
        stem = filenames.stem(path)
        kind = naming.last_kind(stem)
        if kind and naming.family(kind) == family:
            of = stem.removesuffix(kind).rstrip(filenames.SEPARATORS)
            for name in {of, filenames.plain(stem)}:
                held[name].append(path)
    stems = {path: filenames.stem(path) for path in images}
    named = {
        path: held.get(stem) or held.get(filenames.plain(stem)) for path, stem in stems.items()
    }
    return {path: paths[0] for path, paths in named.items() if paths and len(paths) == 1}


def _holds_slices(folder: Folder) -> bool:
    if folder.pictures:
        return True
    return bool(subjects.picture_folders(folder)) and not subjects.holds_dicom(folder)


def _slices(folder: Folder, wanted: Wanted) -> Content:
    if not folder.pictures:
        return subjects.of_pictures(folder, wanted)
    content = Content("slices", [])
    files = _of_kind(folder.path, folder.pictures, wanted, content.notes)
    of_kind = defaultdict(list)
    for path in files:
        of_kind[naming.last_kind(filenames.stem(path))].append(path)
    for kind, those in of_kind.items():
        beside = sorted(set(files) - set(those))
        made = stacked(those, wanted, content.failed, owner=folder.name, beside=beside)
        content.scans.extend(dataclasses.replace(scan, kind=kind) for scan in made)
    content.notes.extend(_left_out(folder.pictures, files))
    content.notes.append(recognition(files))
    return content


def _left_out(files: list[Path], used: Iterable[Path]) -> list[str]:
    """A note on the files that are not used, if there are any."""
    left = sorted({*files} - {*used})
    kinds = joined(sorted({naming.last_kind(filenames.stem(path)) for path in left} - {None}))
    note = f"{len(left)} of {len(files)} files left out{f': {kinds}' if kinds else ''}"
    return [note] if left else []


def _of_kind(folder: Path, files: list[Path], wanted: Wanted, notes: list[str]) -> list[Path]:
    """The files of the kind that is wanted, by the words at the end of their names.

    Where these tell of one modality only, all images are wanted: T1 and T2 may be meant together,
    CT and MR are not. Label maps and masks beside images are left out.
    """
    if wanted.select == EVERY:
        return files
    kinds = {path: naming.last_kind(filenames.stem(path)) for path in files}

    def shown(paths) -> str:
        return joined(sorted({kinds[path] for path in paths} - {None}))

    if wanted.select is not None:
        word = re.compile(rf"(?:^|[-_. ]){re.escape(wanted.select)}$", re.IGNORECASE)
        stems = {path: filenames.stem(path) for path in files}
        chosen = [p for p in files if word.search(stems[p]) or word.search(unnumbered(stems[p]))]
        if not chosen:
            held = shown(files) or "nothing that its names tell"
            raise InputError(f"{folder}: no {wanted.select!r} to select; it holds {held}")
    else:
        families = {path: kind and naming.family(kind) for path, kind in kinds.items()}
        chosen = [path for path in files if families[path] not in naming.MADE] or files
        chosen = [path for path in chosen if families[path] != "pet"] or chosen
        # Any MR is MR here: T1 and maps of diffusion are of one subject, and may be meant together.
        of = {path: (families[path] or "").removeprefix("special ") for path in chosen}
        modalities = set(of.values()) - {""}
        if len(modalities) > 1:
            if wanted.modality not in modalities:
                advice = wanted.advice(f"select={min({kinds[path] for path in chosen} - {None})}")
                raise InputError(f"{folder}: holds {shown(chosen)}; {advice}")
            chosen = [path for path in chosen if of[path] == wanted.modality]
        elif wanted.modality not in (None, *modalities) and modalities - {"labels", "masks"}:
            notes.append(
                f"the names say {shown(chosen)}, where the preset is for {wanted.modality}"
            )
        if " " in shown(chosen):
            one = "" if wanted.prefix is None else f"; --{wanted.prefix}select takes one of them"
            notes.append(f"{shown(chosen)} are taken together{one}")
    return chosen


# --------------------------------------------------------------------------------------------------
# Two domains
# --------------------------------------------------------------------------------------------------

DOMAIN = re.compile(r"(train|val|test)([AB])", re.IGNORECASE)


def _domains(folder: Folder) -> list[tuple[Path, str, str]]:
    """The folders of an 'ab' layout: path, split and domain."""
    matches = [(path, DOMAIN.fullmatch(path.name)) for path in folder.folders]
    return [(path, match[1].lower(), match[2].upper()) for path, match in matches if match]


def _ab(folder: Folder, wanted: Wanted) -> Content:
    """`wanted.select` is a domain, A or B, or one folder: trainA."""
    content, domains = Content("ab", []), _domains(folder)
    select = (wanted.select or "").casefold()
    chosen = [domain for domain in domains if domain[0].name.casefold() == select]
    if not chosen:
        kinds = wanted.among(folder.path, {kind for *_, kind in domains})
        chosen = [domain for domain in domains if domain[2] in kinds]
    for path, split, kind in chosen:
        inner = folder.enter(path)
        try:
            _check_unmixed(inner, wanted)
            if not inner.volumes and not inner.pictures:
                raise InputError(f"{path}: no volumes or pictures in this folder")
            read = _volumes if inner.volumes else _slices
            held = read(inner, dataclasses.replace(wanted, select=None))
        except InputError as error:
            content.failed.append((path, str(error)))
            continue
        content.failed.extend(held.failed)
        content.notes.extend(f"{path.name}: {note}" for note in held.notes)
        for scan in held.scans:
            # A number is of a file in its folder, not of a person.
            subject = f"{path.name}_{scan.subject}" if scan.subject.isdigit() else scan.subject
            content.scans.append(dataclasses.replace(scan, subject=subject, kind=kind, split=split))
    counts = Counter((scan.name, scan.kind) for scan in content.scans)
    content.scans[:] = [
        dataclasses.replace(
            scan, name=f"{scan.split}_{scan.name}", stem=f"{scan.split}_{scan.stem}"
        )
        if counts[scan.name, scan.kind] > 1
        else scan
        for scan in content.scans
    ]
    return content


# --------------------------------------------------------------------------------------------------
# All layouts of folders
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a layout is recognised and read.

    Attributes:
      holds: whether a folder is laid out so.
      read: lists its scans.
      needs: what a folder must have, in words.
    """

    holds: Callable[[Folder], bool]
    read: Callable[[Folder, Wanted], Content]
    needs: str


FOLDERS = {
    "ab": _Layout(
        lambda folder: bool(_domains(folder)), _ab, "folder trainA, trainB, valA, ..., or testB"
    ),
    "contourdiff": _Layout(
        tables.holds_contourdiff, tables.contourdiff, f"folder {tables.IMAGES} with {tables.META}"
    ),
    "nnunet": _Layout(conventions.holds_nnunet, conventions.nnunet, "folder imagesTr or imagesTs"),
    "bids": _Layout(
        conventions.holds_bids, conventions.bids, "images sub-01/anat/sub-01_T1w.nii.gz"
    ),
    "synthrad": _Layout(
        subjects.holds_synthrad, subjects.synthrad, "volumes called just ct, mr, cbct and mask"
    ),
    "subjects": _Layout(
        subjects.holds_volumes,
        subjects.of_volumes,
        "folders of subjects with volumes of the same names",
    ),
    "volumes": _Layout(
        lambda folder: bool(folder.volumes),
        _volumes,
        f"{', '.join((*filenames.NIFTI, *filenames.ITK))} or 3-D .npy file",
    ),
    "slices": _Layout(_holds_slices, _slices, f"{', '.join(filenames.PICTURES)} file"),
    "dicom": _Layout(subjects.holds_dicom, subjects.dicom, "DICOM file"),
}
LAYOUTS = ("csv", *FOLDERS)
