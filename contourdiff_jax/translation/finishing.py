# SPDX-License-Identifier: Apache-2.0
"""Finishing: what is done to a translation after it is drawn, where it is asked for.

    contrast     contrast-limited adaptive histogram equalisation (Zuiderveld 1994, Graphics Gems
                 IV, pp. 474-485) of the body: of each slice, or of a volume that was drawn whole
    normalise    one linear map for the whole volume, so that the mean and the standard deviation of
                 its body are those of the training images' bodies

In this order: what is normalised has that mean and deviation, but for what is clipped. Outside the
body all stays as it is, and so do the maps of samples. Values of CT mean something: none of this is
for them.

Shapes: N slices, H rows, W columns.
"""

import dataclasses

import numpy as np
from skimage import exposure

AIR = -1.0  # in the model's range


@dataclasses.dataclass(frozen=True)
class Finishing:
    """What is asked for.

    Attributes:
      contrast: limit to which a histogram is clipped, as scikit-image has it: from 0, nothing is
        done, to 1.
      normalise: mean and standard deviation in the model's range [-1, 1]; None: nothing is done.
    """

    contrast: float = 0.0
    normalise: tuple[float, float] | None = None

    def to_dict(self) -> dict:
        """As a field of a sidecar."""
        return dataclasses.asdict(self)

    def __call__(self, slices: np.ndarray, body: np.ndarray, dims: int) -> np.ndarray:
        """A translation [N, H, W] in [-1, 1], finished.

        Args:
          body: [N, H, W] bool.
          dims: of what was drawn at once, 2 or 3.
        """
        if self.contrast and dims == 3:
            slices = contrasted(slices, body, self.contrast)
        elif self.contrast:
            pairs = zip(slices, body, strict=True)
            slices = np.stack([contrasted(*pair, self.contrast) for pair in pairs])
        return slices if self.normalise is None else normalised(slices, body, *self.normalise)


def contrasted(image: np.ndarray, body: np.ndarray, clip: float) -> np.ndarray:
    """An image of two or three dimensions, with the contrast of its body enhanced.

    Histograms are those of eighths of the box around the body, whose range of values stays. What
    lies outside the body is air to them.
    """
    if not body.any():
        return image
    spans = [np.flatnonzero(body.any(_others(axis, body.ndim))) for axis in range(body.ndim)]
    box = tuple(slice(span[0], span[-1] + 1) for span in spans)
    within = np.where(body[box], image[box], np.float32(AIR))
    low, high = within.min(), within.max()
    if not low < high:
        return image
    enhanced = exposure.equalize_adapthist((within - low) / (high - low), clip_limit=clip)
    result = image.copy()
    result[box] = np.where(body[box], low + (high - low) * enhanced, image[box])
    return result


def _others(axis: int, count: int) -> tuple[int, ...]:
    return tuple(other for other in range(count) if other != axis)


def normalised(slices: np.ndarray, body: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Slices [N, H, W] in [-1, 1] whose body has that mean and standard deviation.

    Values beyond [-1, 1] are clipped. A body without any contrast gets the mean alone.
    """
    inside = slices[body].astype(np.float64)
    if not inside.size:
        return slices
    own = inside.std()
    mapped = mean + (inside - inside.mean()) * (std / own if own else 0)
    result = slices.copy()
    result[body] = mapped.clip(-1, 1)
    return result
