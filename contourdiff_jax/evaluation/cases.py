# SPDX-License-Identifier: Apache-2.0
"""Cases: all that is compared with a translated volume, on one grid and in one set of units.

Shapes: [X, Y, Z] volumes in closest-canonical RAS, [N, H, W] slices on the model's grid. "Values"
are numbers in the units of a preset: HU, or the fraction of an MR volume's percentile window.
"""

import dataclasses
from pathlib import Path

import numpy as np

from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts import pairs, scans
from contourdiff_jax.data.layouts.scans import Content, Scan
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation.metrics.paired import SSIM_WINDOW
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation.sidecars import Settings, Sidecar, check_one_model
from contourdiff_jax.volumes import geometry, intensity, io
from contourdiff_jax.volumes.grid import AXES, Grid, Resampling
from contourdiff_jax.volumes.intensity import Preset, Window
from contourdiff_jax.volumes.masks import body_mask
from contourdiff_jax.volumes.volume import Volume


@dataclasses.dataclass(frozen=True)
class Translations:
    """The translated volumes of a folder, and what belongs to them.

    Attributes:
      scans: those that can be scored, by name.
      sidecars: by the same names, None where there is none.
      settings: that all of them have in common.
      partners: {'truth', 'source', 'masks', 'labels', 'uncertainty': {name: scan}}; only folders
        that are given.
      subject_of: {name: subject}, of scans that cannot be scored too.
      failed: (path, reason) of these.
      of_real: how folders of other real volumes are understood, arguments of `layouts.find`.
    """

    scans: dict[str, Scan]
    sidecars: dict[str, Sidecar | None]
    settings: Settings
    partners: dict[str, dict[str, Scan]] = dataclasses.field(default_factory=dict)
    subject_of: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: list[tuple[Path, str]] = dataclasses.field(default_factory=list)
    of_real: dict = dataclasses.field(default_factory=dict)

    def real(self, folder) -> Content:
        """The volumes of the target in a folder."""
        return layouts.find(folder, modality=self.settings.target.modality, **self.of_real)

    @property
    def subjects(self) -> set[str]:
        """The subjects of the scans."""
        return {scan.subject for scan in self.scans.values()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One translated volume: values [X, Y, Z] on its own grid, None where not given."""

    name: str
    settings: Settings
    translation: np.ndarray
    truth: np.ndarray | None
    source: np.ndarray | None
    labels: np.ndarray | None  # whole numbers, what the voxels show
    deviation: np.ndarray | None  # of the translation, as a fraction of the target's image window
    mask: np.ndarray  # bool [X, Y, Z], the body
    body: np.ndarray  # bool [N, H, W], the mask on the model's grid
    condition: np.ndarray | None  # contours [N, H, W] of the source: all that the model was given
    resampling: Resampling  # to the model's grid and back
    spacing: np.ndarray  # [3], mm between voxels along the volume's own axes
    seconds: float | None  # that a slice took to translate

    def slices(self, values: np.ndarray) -> np.ndarray:
        """Target values [X, Y, Z] -> [N, H, W] on the model's grid."""
        return self.resampling.slices(values, self.settings.target.air)

    @property
    def gap(self) -> float:
        """Distance between neighbouring slices on the model's grid, mm."""
        return self.resampling.gap

    def contours(self, values: np.ndarray) -> np.ndarray:
        """Target values [X, Y, Z] -> their contours [N, H, W] on the model's grid."""
        target, contours = self.settings.target, self.settings.contours["target"]
        return opencv.on_grid(values, self.body, self.resampling, target, contours)


def read(scan: Scan, sidecar: Sidecar | None, partners: dict, settings: Settings) -> Case:
    """The case of a translated volume.

    Args:
      scan: the volume.
      sidecar: what lies beside it.
      partners: see `Translations`; with at least the truth or the source.
      settings: of all translated volumes.

    Raises InputError for a volume that is missing, on another grid, or not what it should be.
    """
    volume = scan.read().even()
    scans.check_unit(scan, volume, settings.target, "translated_", as_greys=False)
    volumes = {
        flag: pairs.partner(volume, scan, others, flag, labels=flag in ("masks", "labels"))
        for flag, others in partners.items()
    }
    truth, source, labels = (volumes.get(flag) for flag in ("truth", "source", "labels"))
    for side, taken in (("truth", settings.target), ("source", settings.source)):
        if side in partners and not (side == "source" and settings.contours[side].suits_any):
            other = partners[side][pairs.plain(scan.name)]
            scans.check_unit(other, volumes[side], taken, f"{side}_", as_greys=False)
    mask = _mask(volume, scan, volumes.get("masks"), partners)
    if mask is None and source is not None:
        mask = body_mask(source.array, source.affine, settings.source.modality)
    elif mask is None:
        mask = body_mask(truth.array, truth.affine, settings.target.modality)
    resampling = settings.grid.fit(volume.array.shape, volume.affine)
    height, width = resampling.planes(mask).shape[1:]
    if min(height, width) < SSIM_WINDOW:
        raise InputError(
            f"{scan.path}: {settings.grid.axis} slices of {height} x {width} pixels; "
            f"at least {SSIM_WINDOW} x {SSIM_WINDOW} are needed"
        )
    body = resampling.masks(mask)
    source_values = condition = None
    if source is not None:
        window = settings.source.window_of(source)
        source_values = values_of(source, settings.source, window)
        condition = opencv.on_grid(
            source_values,
            body,
            resampling,
            settings.source,
            settings.contours["source"],
            settings.source.shown(source, window),
        )
    window = (sidecar and sidecar.window) or settings.target.window_of(volume)
    for image in (volume, truth):
        if image is not None:
            check_units(image, settings.target)
    return Case(
        name=scan.name,
        settings=settings,
        translation=values_of(volume, settings.target, window),
        truth=None if truth is None else values_of(truth, settings.target),
        source=source_values,
        labels=None if labels is None else labels.array,
        deviation=_deviation(volumes.get("uncertainty"), settings.target, window),
        mask=mask,
        body=body,
        condition=condition,
        resampling=resampling,
        spacing=geometry.spacing(volume.affine),
        seconds=sidecar and sidecar.seconds,
    )


def _mask(volume: Volume, scan: Scan, given: Volume | None, partners: dict) -> np.ndarray | None:
    """The body mask [X, Y, Z] that is given, else that of the layout of the source or the truth."""
    if given is not None:
        return given.array > 0
    held = (partners.get(side, {}).get(scan.name) for side in ("source", "truth"))
    other = next((it for it in held if it is not None and it.mask is not None), None)
    return None if other is None else pairs.companion(volume, other, None, "masks") > 0


def values_of(volume: Volume, preset: Preset, window: Window | None = None) -> np.ndarray:
    """Values of a volume through a window, by default its own."""
    return preset.values(volume.array, window or preset.window_of(volume))


def check_units(volume: Volume, preset: Preset) -> None:
    """InputError for a CT that cannot be in HU: fat and air are below 0.

    Pictures and other unsigned numbers hold HU with an offset, or through a window, and do not say
    which.
    """
    if preset.modality == "ct" and volume.array.min() >= 0:
        raise InputError(
            f"{volume.path}: no value is below 0, so these are no HU; take off their offset (often "
            f"1024) or undo their window, and write numbers with a sign"
        )


def _deviation(volume: Volume | None, preset: Preset, window: Window) -> np.ndarray | None:
    """Standard deviations in a volume's native units, as a fraction of the image window."""
    if volume is None:
        return None
    if volume.array.min() < 0:
        raise InputError(f"{volume.path}: below 0, so these are no standard deviations")
    # A difference: only the widths of windows matter.
    return volume.array / np.float32(
        (window.high - window.low) * (preset.image.high - preset.image.low)
    )


# ----------------------------------------------------------------------------------------------
# Sidecars
# ----------------------------------------------------------------------------------------------


def read_sidecars(scans: dict[str, Scan]) -> tuple[dict[str, Sidecar | None], list]:
    """Sidecars by the names of their scans, None where there is none, and failures: (path, reason).

    Where some volumes have a sidecar, those without one are failures.
    Raises InputError for a subject that the model was trained on, and where all are damaged.
    """
    readable, failed = {}, []
    for name, scan in scans.items():
        try:
            sidecar = sidecars.read(scan)
        except InputError as error:
            failed.append((scan.path, str(error)))
            continue
        # The name of a file may say less than that of its source did, as of ann/T1.nii.gz.
        for subject in () if sidecar is None else (scan.subject, sidecar.subject):
            if dataclasses.replace(scan, subject=subject).is_of(sidecar.training_subjects):
                raise InputError(
                    f"{scan.path}: the subject {subject!r} was used for training; leave it out"
                )
        readable[name] = sidecar
    lacking = [name for name, sidecar in readable.items() if sidecar is None]
    for name in lacking if len(lacking) < len(readable) else ():
        path = scans[name].path
        failed.append((path, f"{path}: no sidecar, where other volumes have theirs"))
        del readable[name]
    if not readable:
        raise InputError(failed[0][1])
    return readable, failed


# ----------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------


def common_settings(
    scans: dict[str, Scan],
    sidecars: dict[str, Sidecar | None],
    preset: str | None,
    source_preset: str | None,
    needs_source: bool,
) -> Settings:
    """The settings that all sidecars agree on; where there are none, what the presets imply."""
    first = next(iter(sidecars))
    if sidecars[first] is None:
        path = scans[first].path
        if preset is None or (needs_source and source_preset is None):
            raise InputError(
                f"{path}: no sidecar beside it, so --preset and, for --source, --source_preset "
                f"must say what the intensities are"
            )
        return _implied_settings(list(map(scans.get, sidecars)), preset, source_preset)
    check_one_model((scans[name].path, sidecar) for name, sidecar in sidecars.items())
    settings = sidecars[first].settings
    for name, sidecar in sidecars.items():
        if sidecar.settings != settings:
            raise InputError(
                f"{scans[name].path}: made with another preset, grid or other contours than "
                f"{scans[first].path.name}; score one translation at a time"
            )
    for flag, name, recorded in (
        ("preset", preset, settings.target),
        ("source_preset", source_preset, settings.source),
    ):
        if name not in (None, recorded.name):
            raise InputError(f"--{flag}={name}, but the sidecars say {recorded.name}")
    return settings


def _implied_settings(scans: list[Scan], preset: str, source_preset: str | None) -> Settings:
    """Default contours, and axial slices that cover the first volume at its finest spacing."""
    target = intensity.preset(preset)
    source = None if source_preset is None else intensity.preset(source_preset)
    failed = []
    for scan in scans:
        with io.failures(scan.path, failed):
            shape, affine = scan.geometry()
            break
    else:
        raise InputError(failed[0][1])
    sizes, plane = geometry.spacing(affine), list(AXES["axial"][1:])
    spacing = sizes[plane].min()
    size = np.ceil(np.round((np.array(shape) * sizes)[plane].max() / spacing, 3))
    sides = {"source": source or target, "target": target}
    return Settings(
        source,
        target,
        Grid("axial", float(spacing), int(size)),
        {name: contour_settings.preset("default", side.modality) for name, side in sides.items()},
    )
