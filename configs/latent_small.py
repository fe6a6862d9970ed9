# SPDX-License-Identifier: Apache-2.0
"""Diffusion of an autoencoder's latents on rendered heads, for two cores of a CPU.

    contourdiff train --config=configs/latent_small.py --store=stores/mr --workdir=runs/latent \\
        --codec=runs/codec

It sees contours: ContourDiff of latents. On a paired store
--config.model.conditions="('source',)" shows it the source, InstructPix2Pix without words;
"()" shows it nothing, which makes the base that a ControlNet shows contours:

    contourdiff train --config=configs/controlnet_small.py --store=stores/mr \\
        --workdir=runs/controlnet --base=runs/base

The network is wider than that of pixels, since there are a sixteenth as many latents.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.augment.probability = 0.5
    settings.model.update(channels=(64, 128), attention=(False, True))
    settings.diffusion.time_exponent = 0.5
    settings.sampler.clip = False  # latents have no bounds
    settings.train.update(images=20_000, sample=10_000, checkpoint=10_000)
    return settings
