# SPDX-License-Identifier: Apache-2.0
"""Python: what the commands do, in a few lines, with images in memory as well as files.

    import contourdiff_jax as cd

    run = cd.load("runs/mr")
    mr = run(nibabel.load("ct.nii.gz"), preset="ct")

What a command does to files is done here by functions of the same names, whose arguments are its
flags; what is said of a flag by `contourdiff COMMAND --help` holds here. They raise InputError, of
one line, where a command would print it.

Shapes: [X, Y, Z] volumes on any grid, N slices, H rows, W columns.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np

from contourdiff_jax import config as configuration
from contourdiff_jax.contours import opencv
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.contracts import Method
from contourdiff_jax.data import layouts
from contourdiff_jax.data.layouts.scans import Scan
from contourdiff_jax.data.phantoms.heads import phantoms
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import Store, open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import folder as evaluation
from contourdiff_jax.evaluation.records import Outcome
from contourdiff_jax.interop import sharing
from contourdiff_jax.methods import train
from contourdiff_jax.training import checkpoint as checkpoints
from contourdiff_jax.training import run as runs
from contourdiff_jax.training.run import Run
from contourdiff_jax.translation import folder as translation
from contourdiff_jax.translation import sidecars
from contourdiff_jax.translation import volume as volumes
from contourdiff_jax.translation.volume import Plan
from contourdiff_jax.volumes import geometry, intensity, io, masks
from contourdiff_jax.volumes.formats import nifti
from contourdiff_jax.volumes.geometry import NativeGrid
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.volume import Image, Volume, canonical

__all__ = [
    "Model",
    "Store",
    "contours_of",
    "evaluate",
    "load",
    "open_store",
    "phantoms",
    "prepare",
    "train",
    "translate",
]
Picture = TypeVar("Picture", nibabel.Nifti1Image, np.ndarray)
PLANS = 8  # ways to translate that a model keeps compiled, each with its weights
NAME = Path("image")  # what messages call an image that is from no file


def load(
    run: str | Path,
    *,
    devices: int | None = None,
    checkpoint: str | int = checkpoints.LAST,
    method: Callable[..., Method] | None = None,
) -> "Model":
    """A trained run, to translate images with.

    Args:
      run: its folder, made by `train` or `import`, or one that is shared: a file of `export`, or
        URL#sha256=DIGEST of one, which is fetched once.
      devices: how many to use; default: all that JAX knows. Of a CPU it knows one unless
        JAX_NUM_CPU_DEVICES says how many cores to take, before JAX is imported.
      checkpoint: "last"; "best", of held-out loss; or the step of another.
      method: what builds its method, of a run that was trained with one of your own.

    Raises:
      InputError: no run, or one that cannot be fetched; no such checkpoint.
    """
    folder = sharing.at(run)
    trained = dataclasses.replace(runs.load(folder), build=method)
    if checkpoint != checkpoints.LAST:
        checkpoint = checkpoints.chosen(folder, checkpoint)
    return Model(folder, trained, devices, checkpoint)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A run that translates images in memory as `contourdiff translate` does files.

    What is compiled is kept: a second image of the same kind takes the time of its drawing alone,
    and so does another seed. Of settings, the last few are.

    Attributes:
      folder: of the run.
      run: what it was made with.
      devices, checkpoint: see `load`.
    """

    folder: Path
    run: Run
    devices: int | None = None
    checkpoint: str | int = checkpoints.LAST
    _plans: dict[object, Plan] = dataclasses.field(default_factory=dict, repr=False)

    def __call__(
        self,
        image: Picture,
        preset: str,
        *,
        affine: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        name: str | None = None,
        contours: str | Path | None = None,
        direction: str | None = None,
        seed: int = 0,
        normalise: bool = False,
        contrast: float = 0.0,
        **sampler: object,
    ) -> Picture:
        """The translation of an image, on its own grid and of its own kind.

        Of a file's image it is to the bit what the command writes for that file, with as many
        devices and the same `batch`.

        Args:
          image: of nibabel, or an array [X, Y, Z].
          preset: of its intensities, 'ct', 'ct_wide' or 'mr'.
          affine: of an array: [4, 4], indices -> mm in RAS.
          mask: [X, Y, Z] of the body on the same grid; default: it is computed.
          name: of the subject, by which the noise is drawn; default: that of the file, or "image".
          contours, direction, seed, normalise, contrast: as of the command.
          sampler: fields of the run's `sampler` section that are to be others: steps=5.

        Returns:
          An image of nibabel for one; for an array an array in the target's type: HU of CT as
          int16.

        Raises:
          InputError: an image that cannot be one; settings that the run cannot draw with.
        """
        volume = _volume(image, affine)
        request = translation.Request(
            self.folder,
            source=volume.path,
            out=NAME,
            preset=preset,
            contours=contours,
            direction=direction,
            seed=seed,
            normalise=normalise,
            contrast=contrast,
            sampler=sampler,
            devices=self.devices,
            checkpoint=self.checkpoint,
            method=self.run.build,
        )
        plan = self._plan(request)
        scan = _scan(image, name)
        source = volumes.of(plan, scan, volume, lambda volume: _mask(volume, mask))
        array, _ = volumes.finish(plan, source, volumes.draw(plan, [source])[0])
        kept, native, target = volume.to_native(array), volume.native, plan.settings.target
        made = nifti.image(kept, native, target.dtype, sidecars.NOTICE)
        return made if isinstance(image, nibabel.Nifti1Image) else np.asarray(made.dataobj)

    def _plan(self, request: translation.Request) -> Plan:
        """How images are translated, made once for all that are asked for alike, with any seed."""
        if type(request.seed) is not int or not 0 <= request.seed < configuration.SEEDS:
            raise InputError(
                f"seed: {request.seed!r} must be 0 or more, below {configuration.SEEDS}"
            )
        fields = vars(dataclasses.replace(request, source=NAME, seed=0))
        key = repr(sorted(fields.items()))
        if key not in self._plans:
            if len(self._plans) >= PLANS:
                del self._plans[next(iter(self._plans))]
            trained, config, settings = translation.asked(request)
            drawing = translation.network(trained, config.sampler, request)
            self._plans[key] = translation.planned(
                trained, config.sampler, settings, request, drawing
            )
        return self._plans[key]._replace(seed=request.seed)


def contours_of(
    image: nibabel.Nifti1Image | np.ndarray,
    preset: str,
    *,
    affine: np.ndarray | None = None,
    settings: str | Path | None = None,
    axis: str = "axial",
    spacing: float = 1.0,
    size: int = 256,
    slice_spacing: float = 0.0,
) -> np.ndarray:
    """Contours [N, H, W] uint8, 1 on one, of an image's slices in increasing coordinate.

    Args:
      image, affine: as of `Model`.
      preset: of its intensities, 'ct', 'ct_wide' or 'mr'.
      settings: name of a contour preset, or a JSON file; default: "default".
      axis, spacing [mm], size [px], slice_spacing [mm]: of the grid that slices are brought to, as
        flags of `prepare`; without a slice spacing slices stay where they are.

    Raises:
      InputError: an image that cannot be one, or nothing of the body on the grid.
    """
    chosen, volume = intensity.preset(preset), _volume(image, affine)
    given = contour_settings.named(settings or "default", chosen.modality)
    volume, resampling = Grid(axis, spacing, size, slice_spacing).fit_volume(volume)
    window = chosen.window_of(volume)
    inside = masks.body_mask(volume.array, volume.affine, chosen.modality)
    body = resampling.body(inside, volume.path, "take a larger size or spacing")
    values = chosen.values(volume.array, window)
    basis = opencv.basis(values, resampling, chosen, given, chosen.shown(volume, window))
    return opencv.of_basis(basis, body, given)


def translate(
    run: str | Path, source: str | Path, out: str | Path, *, preset: str, **options: object
) -> translation.Result:
    """Translate a file or a folder of them: fields of translation.folder.Request, and of `sampler`.

    `options` that are no field of the request are those of the sampler, as flags of the command.
    """
    known = {field.name for field in dataclasses.fields(translation.Request)} - {"sampler"}
    sampler = {name: value for name, value in options.items() if name not in known}
    given: Mapping[str, object] = {n: value for n, value in options.items() if n in known}
    return translation.translate(
        translation.Request(run, source, out, preset=preset, sampler=sampler, **given)
    )


def evaluate(translated: str | Path, out: str | Path, **options: object) -> Outcome | None:
    """Score a folder of translations: fields of evaluation.folder.Request."""
    return evaluation.evaluate(evaluation.Request(translated, out, **options))


# --------------------------------------------------------------------------------------------------
# Images in memory
# --------------------------------------------------------------------------------------------------


def _volume(image: nibabel.Nifti1Image | np.ndarray, affine: np.ndarray | None) -> Volume:
    """An image in memory as a volume, with what is checked of files."""
    if isinstance(image, nibabel.Nifti1Image):
        if affine is not None:
            raise InputError("affine: an image of nibabel has its own; leave it out")
        file = image.get_filename()
        path = Path(file) if file else NAME
        opened = nifti.of(image, path)
        return io.usable(opened, opened.voxels(), path)
    array = _array(image)
    if array.ndim != 3 or not array.size or array.dtype.kind not in "iuf":
        raise InputError(f"image: {array.dtype} {array.shape}, where [X, Y, Z] of numbers belongs")
    if affine is None:
        raise InputError("affine: an array does not say where its voxels lie; give its affine")
    affine = _array(affine)
    if affine.shape != (4, 4) or affine.dtype.kind not in "iuf":
        raise InputError(f"affine: {affine.dtype} {affine.shape}, where [4, 4] of numbers belongs")
    affine = affine.astype(np.float64)
    geometry.check_affine(NAME, affine)
    geometry.check_sizes(NAME, affine, "give another affine")
    native = NativeGrid(array.shape, affine)
    return io.usable(Image(native, lambda: array, array.dtype, "array"), array, NAME)


def _array(given) -> np.ndarray:
    """What is given, as an array; of no numbers where it is none."""
    try:
        return np.asarray(given)
    except ValueError:  # lists of different lengths
        return np.array(None)


def _scan(image: Picture, name: str | None) -> Scan:
    """The scan that the command would make of an image's file, or one of that name."""
    file = image.get_filename() if isinstance(image, nibabel.Nifti1Image) else None
    path = Path(file) if file else NAME
    if name is None and file and path.is_file():
        return layouts.find(path).scans[0]
    called = name or NAME.name
    return Scan(name=called, subject=called, files=(path,), path=path, stem=called)


def _mask(volume: Volume, mask: np.ndarray | None) -> np.ndarray | None:
    """A mask [X, Y, Z] of the body as the volume lies, given as its image lay."""
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != volume.native.shape or not mask.any():
        raise InputError(
            f"mask: of shape {mask.shape}, or empty, where the image has {volume.native.shape}"
        )
    return canonical(np.float32(mask > 0), volume.native, volume.path, (), ()).array
