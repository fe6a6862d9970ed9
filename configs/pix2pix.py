# SPDX-License-Identifier: Apache-2.0
"""pix2pix as published (Isola et al., arXiv 1611.07004), on one GPU.

Question: what does the method give that most studies of paired translation compare with?

    contourdiff prepare --source=mr --pairs=ct --pairs_preset=ct --preset=mr --out=store --size=256
    contourdiff train --config=configs/pix2pix.py --store=store --workdir=run

U-Net-256 (54,407,809 parameters) and a critic of 70 x 70 pixels (2,764,609), batches of one image,
Adam with 2e-4 and 0.5, half of the training at that rate and half down to zero, cross entropy and
100 times the absolute error. Images are as many as 200 epochs of 1,000 slices. In place of a crop
of an enlarged image, the image is shifted by as much. What is drawn with are the last parameters,
no average. Without pairs, --config.model.conditions="('contour',)" shows it contours. Not run to
the end yet: no numbers are claimed for it.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "pix2pix"
    settings.grid.size = 256
    settings.model.conditions = ("source",)
    settings.augment.update(probability=1.0, scale=0.0, zoom=0.0, rotation=0.0, shift=15 / 256)
    settings.adversarial.update(
        width=64, levels=8, critic_width=64, critic_layers=3, norm="batch", loss="vanilla"
    )
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
