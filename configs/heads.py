# SPDX-License-Identifier: Apache-2.0
"""Rendered heads: how much of a head's MR can be made from the contours of its CT, in minutes?

    experiments/001_heads/run.sh      renders, prepares, trains, translates, scores

Whole-head label maps of real anatomy rendered as CT and T1-weighted MR, five heads to
train on, three others to test. 96 px of 2.4 mm; twelve minutes of training on two CPU
cores, without a GPU. Results, hardware and picture: experiments/001_heads/README.md.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.grid.update(axis="axial", spacing=2.4, size=96)
    settings.diffusion.time_exponent = 0.25
    settings.augment.probability = 0.5
    settings.train.update(images=8_600, sample=4_300, checkpoint=4_300)
    return settings
