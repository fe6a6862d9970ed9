# SPDX-License-Identifier: Apache-2.0
"""CycleGAN on rendered heads: the method of configs/cyclegan.py on two cores of a CPU.

    contourdiff train --config=configs/cyclegan_small.py --store=stores/mr \\
        --source_store=stores/ct --workdir=runs/cyclegan

Images and augmentation are those of configs/heads.py. Generators and critics have a quarter of the
features, and generators four blocks. What is drawn with is an average of the parameters, as
everywhere here.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "cyclegan"
    settings.grid.update(axis="axial", spacing=2.4, size=96)
    settings.model.conditions = ("source",)
    settings.augment.probability = 0.5
    settings.adversarial.update(width=16, blocks=4, critic_width=16, critic_layers=2)
    settings.train.update(images=4_000, sample=2_000, checkpoint=2_000)
    settings.train.update(decay="linear", constant=0.5, beta_1=0.5, learning_rate=5e-4)
    settings.train.update(warmup=0, weight_decay=0.0, clip=0.0)
    return settings
