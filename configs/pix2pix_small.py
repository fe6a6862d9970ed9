# SPDX-License-Identifier: Apache-2.0
"""pix2pix on rendered heads: the method of configs/pix2pix.py on two cores of a CPU.

    contourdiff train --config=configs/pix2pix_small.py --store=stores/pairs --workdir=runs/pix2pix

Images and augmentation are those of configs/heads.py. U-Net and critic have half the features and
fewer levels, and batches of four images want norms of each image. What is drawn with is an average
of the parameters, as everywhere here. --config.model.conditions="('contour',)" shows it contours,
in place of the source of a paired store.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "pix2pix"
    settings.grid.update(axis="axial", spacing=2.4, size=96)
    settings.model.conditions = ("source",)
    settings.augment.probability = 0.5
    settings.adversarial.update(critic_layers=2, loss="vanilla")
    settings.train.update(images=8_600, sample=4_300, checkpoint=4_300)
    settings.train.update(decay="linear", constant=0.5, beta_1=0.5, learning_rate=5e-4)
    settings.train.update(warmup=0, weight_decay=0.0, clip=0.0)
    return settings
