# SPDX-License-Identifier: Apache-2.0
"""A ControlNet on Stable Diffusion 1.5 by Mediffuse's settings (sauravdosi/mediffuse), on a GPU.

    contourdiff import --checkpoint=stable-diffusion-v1-5 --workdir=runs/sd --preset=mr \\
        --spacing=0.5 --prompt="an MR image of a head"
    contourdiff train --config=configs/mediffuse_controlnet.py --store=stores/mr \\
        --workdir=runs/controlnet --base=runs/sd
    contourdiff translate --run=runs/controlnet --source=ct --preset=ct --out=translated \\
        --prompt_guidance=7.5

512 px, the base locked, 35,000 steps of 4 images, a constant learning rate of 1e-5; DDIM in 50
steps with a guidance of 7.5. Network, process and sampler are those of the base. What differs, on
purpose: hints of training are contours as those of translation are, where Mediffuse trained on the
CT with an outline drawn on it; MR is scaled by percentiles of the volume; subjects are not split
between training and test. Not run to the end yet: no numbers are claimed for it.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "controlnet"
    settings.seed = 42
    settings.grid.size = 512
    settings.augment.update(probability=0.0, flip=0.5)
    settings.controlnet.update(channels=(16, 32, 96, 256), image_channels=3)
    settings.train.update(images=140_000, batch=4, learning_rate=1e-5, decay="none", warmup=0)
    settings.train.update(weight_decay=1e-2, clip=1.0, ema_rampup=0.0, condition_dropout=0.05)
    return settings
