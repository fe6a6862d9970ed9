# SPDX-License-Identifier: Apache-2.0
"""Whole heads in 3D on two CPU cores: a plain U-Net of three dimensions (docs/volumes.md).

    contourdiff prepare --source=scans/mr --out=stores/mr --preset=mr --spacing=3.5 --size=64 \\
        --slice_spacing=3.5
    contourdiff train --config=configs/volumes_small.py --store=stores/mr --workdir=runs/volumes

Heads of 64 px of 3 to 4 mm, in slices as far apart; patches of 32 slices. The network takes 2 x 2 x
2 voxels for one, an eighth of the work. It is what
configs/enhanced_3d_small.py has to be better than.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.model.update(
        dims=3,
        patch=2,
        channels=(32, 32, 64),
        attention=(False, False, False),
    )
    # In a few hundred steps a network does not learn to tell the noise, which v asks of it.
    settings.diffusion.update(prediction="x0", time_exponent=0.25)
    settings.augment.probability = 0.5
    settings.train.update(images=4_000, batch=1, warmup=100)
    settings.train.update(log=200, evaluate=2_000, sample=2_000, checkpoint=2_000)
    settings.sampler.update(steps=2, batch=1)
    return settings
