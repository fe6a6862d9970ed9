# SPDX-License-Identifier: Apache-2.0
"""Regression on rendered heads: what of ContourDiff's scores is diffusion, and what the contours?

    contourdiff train --config=configs/regression.py --store=stores/mr --workdir=runs/regression

Images, network, augmentation and optimiser are those of configs/heads.py; in place of the noise the
network sees the contours alone and draws the image in one pass. On a paired store,
--config.model.conditions="('source',)" shows it the image of the source: what any method that needs
pairs has to beat.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "regression"
    settings.grid.update(axis="axial", spacing=2.4, size=96)
    settings.augment.probability = 0.5
    settings.train.update(images=8_600, sample=4_300, checkpoint=4_300)
    return settings
