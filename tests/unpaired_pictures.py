# SPDX-License-Identifier: Apache-2.0
"""Pictures of several subjects, and a network for KID that compiles at once."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

MIXING = np.random.default_rng(1).standard_normal((100, 2048)).astype(np.float32) / 10


def look(params, images):
    """In place of the network: 10 x 10 pixels, mixed."""
    shown = images[:, 15::30, 15::30, 0].reshape(len(images), -1)
    return jnp.abs(shown @ MIXING)


def pictures(folder, subjects, slices, seed, size=20, brighter=0):
    """8-bit PNG slices of some subjects: <subject>-<slice>.png."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for subject in subjects:
        base = rng.integers(0, 200, (size, size))
        for number in range(slices):
            image = np.uint8(np.clip(base + rng.integers(0, 50, base.shape) + brighter, 0, 255))
            Image.fromarray(image).save(folder / f"{subject}-{number:03d}.png")
    return folder
