# SPDX-License-Identifier: Apache-2.0
"""ContourDiff's network and training as published (arXiv 2403.10786), on one GPU.

Question: what does the published recipe give in this toolkit?

    contourdiff prepare --source=mr --out=store --preset=mr --size=256 --spacing=1
    contourdiff train --config=configs/contourdiff_2d.py --store=store --workdir=run

The network is the published one, diffusers' UNet2DModel of 113,669,761 parameters (113,670,913 with
a neighbour), and so are linear schedule, eps prediction, batch, learning rate, clipping and
thresholds; new here are bfloat16 and the average of the parameters that is sampled with. Not run to
the end yet: no numbers are claimed for it.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.grid.size = 256
    settings.contours.preset = "published"
    settings.model.update(
        null="empty",
        channels=(128, 128, 256, 256, 512, 512),
        layers=2,
        attention=(False, False, False, False, True, False),
        middle_attention=True,
        resample_convolution=True,
        head_width=8,
        groups=32,
        dtype="bfloat16",
    )
    settings.diffusion.update(
        schedule="linear", prediction="eps", weighting="none", time_exponent=1.0
    )
    settings.train.update(
        images=2_000_000,
        batch=4,
        learning_rate=1e-4,
        warmup=2_000,
        weight_decay=1e-2,
        ema_halflife=50_000,
        log=4_000,
        evaluate=100_000,
        sample=200_000,
        checkpoint=100_000,
    )
    settings.sampler.update(name="ddpm", steps=50, spacing="leading")
    return settings
