# SPDX-License-Identifier: Apache-2.0
"""CycleGAN as published (Zhu et al., arXiv 1703.10593), on one GPU.

Question: what does the method give that most studies of unpaired translation compare with?

    contourdiff prepare --source=mr --preset=mr --out=stores/mr --size=256 --spacing=1
    contourdiff prepare --source=ct --preset=ct --out=stores/ct --size=256 --spacing=1
    contourdiff train --config=configs/cyclegan.py --store=stores/mr --source_store=stores/ct \\
        --workdir=run

Two ResNet-9 (11,365,633 parameters each) and two critics of 70 x 70 pixels (2,762,689 each),
batches of one image, Adam with 2e-4 and 0.5, half of the training at that rate and half down to
zero, least squares, 10 times the error of what comes back and 5 times that of what should stay, and
pools of 50 images. Images are as many as 200 epochs of 1,000 slices. In place of a crop of an
enlarged image, the image is shifted by as much. What is drawn with are the last parameters, no
average. Not run to the end yet: no numbers are claimed for it.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "cyclegan"
    settings.grid.size = 256
    settings.model.conditions = ("source",)
    settings.augment.update(probability=1.0, scale=0.0, zoom=0.0, rotation=0.0, shift=15 / 256)
    settings.adversarial.update(width=64, blocks=9, critic_width=64, critic_layers=3)
    settings.train.update(
        images=200_000,
        batch=1,
        learning_rate=2e-4,
        warmup=0,
        decay="linear",
        constant=0.5,
        beta_1=0.5,
        weight_decay=0.0,
        clip=0.0,
        ema_rampup=0.0,
    )
    return settings
