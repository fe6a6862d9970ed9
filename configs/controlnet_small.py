# SPDX-License-Identifier: Apache-2.0
"""ControlNet on rendered heads: contours for a model of latents that has learnt without them.

    contourdiff train --config=configs/latent_small.py --store=stores/mr --workdir=runs/base \\
        --codec=runs/codec --config.model.conditions="()"
    contourdiff train --config=configs/controlnet_small.py --store=stores/mr \\
        --workdir=runs/controlnet --base=runs/base

Network, process and sampler are those of the base.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "controlnet"
    settings.augment.probability = 0.5
    settings.train.update(images=10_000, sample=5_000, checkpoint=5_000)
    return settings
