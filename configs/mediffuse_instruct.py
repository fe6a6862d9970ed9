# SPDX-License-Identifier: Apache-2.0
"""InstructPix2Pix on Stable Diffusion 1.5 by Mediffuse's settings, on a GPU.

    contourdiff import --checkpoint=stable-diffusion-v1-5 --workdir=runs/sd --preset=mr \\
        --spacing=0.5 --prompt="convert this CT to an MR image"
    contourdiff train --config=configs/mediffuse_instruct.py --store=stores/pairs \\
        --workdir=runs/instruct --init=runs/sd
    contourdiff translate --run=runs/instruct --source=ct --preset=ct --out=translated \\
        --source_guidance=1.5 --prompt_guidance=7.5

512 px, 15,000 steps of 4 x 4 images, a constant learning rate of 5e-5, conditions dropped with a
probability of 0.05; 50 steps with a guidance of 1.5 by the image and 7.5 by the prompt (Brooks et
al. 2023, arXiv 2211.09800; sauravdosi/mediffuse). Network, process and sampler are those of the run
that it begins with; its first convolution is widened by zeros for the latents of the source. Either
direction is a store. Not run to the end yet: no numbers are claimed for it.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.seed = 42
    settings.grid.size = 512
    settings.model.conditions = ("source",)
    settings.augment.update(probability=0.0, flip=0.5)
    settings.train.update(images=240_000, batch=16, accumulate=4, learning_rate=5e-5)
    settings.train.update(decay="none", warmup=0, weight_decay=1e-2, clip=1.0, ema_rampup=0.0)
    settings.train.condition_dropout = 0.05
    return settings
