# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of latent diffusion on rendered heads: 24 x 24 latents of 96 x 96 pixels.

    contourdiff train --config=configs/autoencoder_small.py --store=stores/mr --workdir=runs/codec

For two cores of a CPU. `--codec=runs/codec` learns its latents then. How well it draws held-out
images again, their SSIM and PSNR say in runs/codec/stats.jsonl and on the card: that is the ceiling
of every model of its latents. docs/latent.md has more.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "autoencoder"
    settings.model.conditions = ("source",)
    settings.augment.probability = 0.5
    settings.autoencoder.update(channels=(16, 32, 64), adversarial=0.1)
    settings.adversarial.update(critic_layers=2, loss="hinge")
    settings.train.update(images=4_000, sample=2_000, checkpoint=2_000)
    return settings
