# SPDX-License-Identifier: Apache-2.0
"""Registration: the rigid motion that lays one volume on another, by SimpleITK.

It maximises the mutual information of Mattes et al. (2003) from coarse to fine, always at the same
points of the volumes, so that it is the same whenever it is asked for.

Shapes: [X, Y, Z] volumes in closest-canonical RAS. SimpleITK's coordinates are LPS, where x and y
run the other way.
"""

from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from contourdiff_jax.volumes import geometry
from contourdiff_jax.volumes.volume import Volume

LPS = np.diag((-1.0, -1.0, 1.0, 1.0))
BINS = 32
POINTS = 1e5  # of a volume that are compared
SHRINK = (4, 2, 1)  # factors of the levels
LEAST = 16  # voxels along an axis, of a level
SEED = 1  # of where these points lie; 0 is the time of day
DIGITS = 6  # of the motion that is found: more says nothing, and differs between machines
STEP, SHORTEST, STEPS = 1.0, 1e-3, 200  # of the optimiser: mm at first and at last, and how many


class Motion(NamedTuple):
    """A rigid motion.

    Attributes:
      matrix: [4, 4] mm of the fixed volume -> mm of the moving one.
      moved: mm that the middle of the fixed volume moves.
      turned: degrees.
    """

    matrix: np.ndarray
    moved: float
    turned: float


def rigid(fixed: Volume, moving: Volume, start: np.ndarray) -> Motion | None:
    """The rigid motion with which `moving` fits `fixed`; None where SimpleITK finds none.

    A volume of one slice is moved in plane.

    Args:
      fixed, moving: of even slices.
      start: [3] mm by which `moving` lies off, as far as is known.
    """
    flat = fixed.array.shape[2] == 1 and moving.array.shape[2] == 1
    ours, theirs = _image(fixed, flat), _image(moving, flat)
    count = ours.GetDimension()
    middle = ours.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in ours.GetSize()])
    motion = sitk.Euler2DTransform() if flat else sitk.Euler3DTransform()
    motion.SetCenter(middle)
    motion.SetTranslation((LPS[:3, :3] @ start)[:count].tolist())
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(min(1.0, POINTS / ours.GetNumberOfPixels()), SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(STEP, SHORTEST, STEPS)
    method.SetOptimizerScalesFromPhysicalShift()
    levels = [n for n in SHRINK if min(ours.GetSize()) // n >= LEAST] or [1]
    method.SetShrinkFactorsPerLevel(levels)
    method.SetSmoothingSigmasPerLevel([n - 1 for n in levels])
    method.SetInitialTransform(motion, inPlace=True)
    try:
        method.Execute(ours, theirs)
    except RuntimeError:  # no point of one lies in the other
        return None
    matrix = np.eye(4)
    turn = np.reshape(motion.GetMatrix(), (count, count))
    centre = np.array(middle)
    matrix[:count, :count] = turn
    matrix[:count, 3] = centre + motion.GetTranslation() - turn @ centre
    matrix = (LPS @ matrix @ LPS).round(DIGITS)
    at = np.append(LPS[:count, :count] @ centre, np.ones(4 - count))
    at = at if not flat else np.array([*at[:2], 0.0, 1.0])
    moved = float(np.linalg.norm((matrix @ at - at)[:3]))
    cosine = (np.trace(matrix[:3, :3]) - 1) / 2
    return Motion(matrix, moved, float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))))


def _image(volume: Volume, flat: bool) -> sitk.Image:
    """A volume as SimpleITK has it, of one slice as a picture."""
    count = 2 if flat else 3
    array = np.transpose(volume.array)
    image = sitk.GetImageFromArray(array[0] if flat else array)
    affine = LPS @ volume.affine
    sizes = geometry.spacing(affine)
    image.SetSpacing(sizes[:count].tolist())
    image.SetOrigin(affine[:count, 3].tolist())
    image.SetDirection((affine[:3, :3] / sizes)[:count, :count].ravel().tolist())
    return image
