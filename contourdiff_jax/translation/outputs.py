# SPDX-License-Identifier: Apache-2.0
"""Outputs: where translations go, and in which format.

    same     as the source, under its name: NIfTI, .mha, .nrrd, .npy and pictures; DICOM becomes
             NIfTI, and so do pictures that cannot hold the target's values
    nifti    OUT/<name>.nii.gz
    dicom    OUT/<name>/0001.dcm ..., a derived series with identifiers of its own
    bids     OUT/sub-<label>/[ses-<label>/]<datatype>/<name>_desc-contourdiff_<kind>.nii.gz, a BIDS
             derivative with its dataset_description.json
    nnunet   OUT/imagesTr/<name>_0000.nii.gz and OUT/labelsTr/<name>.nii.gz, the labels of the
             source, with dataset.json: ready to train on

Beside every translation lies its sidecar. Maps (samples.py) are NIfTI whatever the format, each
kind in a folder of its own: OUT/maps/<kind>/<name>.nii.gz.

The affine, the axes and the shape of the source are put back by volumes/io.py and the formats.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from contourdiff_jax import __version__
from contourdiff_jax.data.layouts import pairs
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms, ownership
from contourdiff_jax.translation import sidecars
from contourdiff_jax.volumes import filenames, io
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.volume import Volume

FORMATS = ("same", "nifti", "dicom", "bids", "nnunet")
BIDS_VERSION = "1.10.0"
MAPS = "maps"  # folder of the maps beside translations
DESCRIPTIONS = {"bids": "dataset_description.json", "nnunet": "dataset.json"}  # of whole folders
DATATYPES = {"ct": "ct", "mr": "anat"}  # folders of BIDS


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where one translation goes.

    Attributes:
      root: OUT, in which all of it lies.
      files: all that must exist for it to be whole: files, or the folder of a series.
      sidecar: the JSON beside them, which lists all files (runtime/ownership.py).
      save: writes them into any folder as into OUT: (the folder, array [X, Y, Z] in native units,
        the source's volume) -> None.
      sources: of pictures, the file that each of `files` is made of.
      maps: where the maps go, by name.
    """

    root: Path
    files: tuple[Path, ...]
    sidecar: Path
    save: Callable[[Path, np.ndarray, Volume], None]
    sources: tuple[Path, ...] = ()
    maps: Mapping[str, Path] = dataclasses.field(default_factory=dict)

    @property
    def _all(self) -> tuple[Path, ...]:
        return (*self.files, *self.maps.values())

    def is_done(self, fields: dict) -> bool:
        """Whether the whole translation is there, and its sidecar says all that `fields` do."""
        sidecar = self._said()
        if "unfinished" in sidecar or not sidecars.states(sidecar, fields):
            return False
        listed = {self.root / name for name in sidecar.get("files", ())}  # a series' files, too
        ours = {*self._all, *(path for path in listed if {*path.parents} & {*self._all})}
        lost = {path.name for path in ours if not path.exists()}
        return lost == set(sidecar.get("left_out", []))

    def check(self, fields: dict, overwrite: bool) -> None:
        """Raise InputError for a place that is not free for a translation that is not done.

        What is lost or unfinished of the same is made again; of another, only to `overwrite` it.
        """
        names = [self._name(path) for path in self._all]
        own = ownership.owned(self.root, self._name(self.sidecar), sidecars.NOTICE, names)
        there = [path for name in [*names, *own] if (path := self.root / name).exists()]
        sidecar = self._said()
        if sidecars.states(sidecar, fields):
            there = [path for path in there if not {path, *path.parents} & {*self._all}]
        if there and not overwrite and "unfinished" not in sidecar:
            raise InputError(
                f"{there[0]}: made with other settings; choose another --out or give --overwrite"
            )

    def write(self, array: np.ndarray, like: Volume, fields: dict, maps: Mapping) -> None:
        """Write the translation, its sidecar and its maps {name: [X, Y, Z]}: all, or none.

        What was there goes when all is whole, and no file ever lies without a sidecar.
        """
        bad = {path for path, _ in like.failed}
        left_out = [p.name for p, of in zip(self.files, self.sources, strict=False) if of in bad]
        with disk.staged(self.root, inside=True) as new:
            for name, path in self.maps.items():
                place = new / self._name(path)
                io.write(place, maps[name], like, np.float32, notice=sidecars.NOTICE)
            self.save(new, array, like)
            fields = fields | ({"left_out": left_out} if left_out else {})
            fields["files"], sidecar = ownership.listing(new), self._name(self.sidecar)
            disk.write_json(new / sidecar, fields)
            ownership.merge(new, self.root, sidecar, sidecars.NOTICE)

    def _said(self) -> dict:
        """What the sidecar says, nothing without one."""
        try:
            form = {"left_out?": tuple[str, ...], "files?": dict[str, str]}
            return forms.read(self.sidecar, form, "")
        except InputError:
            return {}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclasses.dataclass(frozen=True)
class OutputFolder:
    """A folder of translations into one modality.

    Attributes:
      path: OUT.
      format: one of FORMATS.
      preset: of the target's intensities.
      window: of the translations, in native units.
      kind: what the target shows, as BIDS and nnU-Net call it: 'T1w', 'ct', ...
      labels: label maps by the name of their scan, for nnU-Net; None: those of the layout.
      maps: names of the maps that are written.
    """

    path: Path
    format: str
    preset: Preset
    window: Window
    kind: str
    labels: dict[str, Scan] | None = None
    maps: tuple[str, ...] = ()

    def destination(self, scan: Scan) -> Destination:
        """Where the translation of a scan and its maps go."""
        destination = self._without_maps(scan)
        name = destination.sidecar.stem
        maps = {kind: self.path / MAPS / kind / f"{name}.nii.gz" for kind in self.maps}
        return dataclasses.replace(destination, maps=maps)

    def claim(self, destination: Destination) -> Path:
        """The file by which a process claims a destination for itself."""
        return disk.hidden(
            self.path / "lock", of=destination.sidecar.relative_to(self.path).as_posix()
        )

    def _without_maps(self, scan: Scan) -> Destination:
        if self.format == "dicom":
            return self._series(scan)
        if self.format == "bids":
            return self._file(self._bids_path(scan))
        if self.format == "nnunet":
            return self._nnunet_case(scan)
        if self.format == "nifti":
            return self._file(self.path / f"{scan.stem}.nii.gz")
        return self._same(scan)

    def _same(self, scan: Scan) -> Destination:
        suffix = filenames.suffix_of(scan.files[0])
        if suffix in filenames.NIFTI:
            return self._file(self.path / f"{scan.stem}{suffix}")
        if suffix in filenames.ITK:  # detached headers become files of their own
            suffix = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
            return self._file(self.path / f"{scan.stem}{suffix}")
        if suffix in filenames.PICTURES:
            from contourdiff_jax.volumes.formats import pictures

            if suffix == ".npy" or pictures.holds(self.window.low, self.window.high):
                return self._pictures(scan)
        return self._file(self.path / f"{scan.stem}.nii.gz")

    def _file(self, path: Path) -> Destination:
        def save(root, array, volume):
            place = root / path.relative_to(self.path)
            io.write(place, array, volume, self.preset.dtype, notice=sidecars.NOTICE)

        sidecar = path.with_name(f"{filenames.stem(path)}.json")
        return Destination(self.path, (path,), sidecar, save)

    def _series(self, scan: Scan) -> Destination:
        def save(root, array, volume):
            from contourdiff_jax.volumes.formats import derived

            derived.write(
                root / scan.name,
                array,
                volume,
                modality=self.preset.modality,
                subject=scan.subject,
                notice=sidecars.NOTICE,
                software=f"contourdiff-jax {__version__}",
                window=(self.window.low, self.window.high),
            )

        path = self.path / scan.name
        return Destination(self.path, (path,), path.with_name(f"{path.name}.json"), save)

    def _pictures(self, scan: Scan) -> Destination:
        from contourdiff_jax.volumes.formats import pictures

        names = pictures.names(scan.files)
        files = tuple(self.path / name for name in names)

        def save(root, array, volume):
            bad = {path for path, _ in volume.failed}
            good = [name for name, of in zip(names, scan.files, strict=True) if of not in bad]
            window = (self.window.low, self.window.high)
            pictures.write(root, good, array, volume, window)

        return Destination(self.path, files, self.path / f"{scan.stem}.json", save, scan.files)

    # BIDS -----------------------------------------------------------------------------------------

    def _bids_path(self, scan: Scan) -> Path:
        entities = _entities(scan.name)
        folders = [part for part in entities if part.startswith(("sub-", "ses-"))]
        name = "_".join([*entities, "desc-contourdiff", self.kind])
        datatype = DATATYPES[self.preset.modality]
        return self.path.joinpath(*folders, datatype, f"{name}.nii.gz")

    # nnU-Net --------------------------------------------------------------------------------------

    def _nnunet_case(self, scan: Scan) -> Destination:
        part = "Ts" if scan.split == "test" else "Tr"
        label = f"labels{part}/{scan.name}.nii.gz"
        plain = self._file(self.path / f"images{part}" / f"{scan.name}_0000.nii.gz")

        def save(root, array, volume):
            labels = pairs.companion(volume, scan, self.labels, "labels")
            if labels is None:
                raise InputError(f"{scan.path}: no label map; --format=nnunet needs --labels")
            dtype = np.uint8 if labels.max() < 256 else np.uint16
            # On the grid of the image, or nnU-Net refuses them.
            io.write(root / label, labels, volume, dtype)
            plain.save(root, array, volume)

        return Destination(self.path, (*plain.files, self.path / label), plain.sidecar, save)

    # Whole folders --------------------------------------------------------------------------------

    def described(self) -> dict:
        """What describes the folder as a whole; InputError where others wrote it."""
        path = self.path / DESCRIPTIONS.get(self.format, "")
        if self.format not in DESCRIPTIONS or not os.path.lexists(path):
            return {}
        with contextlib.suppress(InputError):
            fields = forms.read(path, {}, "")
            if sidecars.NOTICE in str(fields):
                return fields
        raise InputError(f"{path}: describes what this tool did not make; choose another --out")

    def finish(self, source: Path) -> None:
        """Write what describes the folder as a whole; fields that others added stay."""
        if self.format in DESCRIPTIONS:
            fields = self._bids() if self.format == "bids" else self._nnunet(source)
            disk.write_json(self.path / DESCRIPTIONS[self.format], self.described() | fields)

    def _bids(self) -> dict:
        return {
            "Name": f"Synthetic {self.kind} images by contourdiff",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "contourdiff-jax",
                    "Version": __version__,
                    "Description": sidecars.NOTICE,
                }
            ],
            # Sidecars identify the source by its digest; its path may name a patient.
            "SourceDatasets": [{"URL": "local"}],
        }

    def _nnunet(self, source: Path) -> dict:
        images = disk.entries(self.path, "imagesTr/*_0000.nii.gz")
        labels = {0}
        for path in disk.entries(self.path, "labelsT[rs]/*.nii.gz"):
            with contextlib.suppress(InputError):  # of others, which is for nnU-Net to say
                labels |= set(np.unique(io.read(path, labels=True).array).astype(int).tolist())
        names = _label_names(source) or {
            "background": 0,
            **{f"label_{label}": label for label in sorted(labels - {0})},
        }
        return {
            "channel_names": {"0": "CT" if self.preset.modality == "ct" else self.kind},
            "labels": names,
            "numTraining": len(images),
            "file_ending": ".nii.gz",
            "description": sidecars.NOTICE,
        }


def _entities(name: str) -> list[str]:
    """The BIDS entities of a scan's name, or a subject label made of a name without any."""
    if name.startswith("sub-"):
        return name.split("_")
    return [f"sub-{re.sub('[^A-Za-z0-9]', '', name) or 'unnamed'}"]


def _label_names(source: Path) -> dict | None:
    """Labels by name, of the source's own dataset.json; None where it has none."""
    form = {"labels": dict[str, int | str | tuple[int, ...]]}
    try:
        labels = forms.read(Path(source) / "dataset.json", form, "")["labels"]
    except InputError:
        return None
    # Version 1 of the format has names by label: {"0": "background"}.
    if all(isinstance(name, str) for name in labels.values()):
        return {name: int(number) for number, name in labels.items() if number.isdecimal()}
    return labels
