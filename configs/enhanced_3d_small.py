# SPDX-License-Identifier: Apache-2.0
"""The enhanced network of volumes on two CPU cores, after Ma, Chen & Liang.

    contourdiff prepare --source=scans/mr --out=stores/mr --preset=mr --spacing=3.5 --size=64 \\
        --slice_spacing=3.5
    contourdiff train --config=configs/enhanced_3d_small.py --store=stores/mr \\
        --workdir=runs/enhanced

That of configs/volumes_small.py with a path for broader shape in every residual block, and with
attention at every resolution, of pooled blocks where there are many positions. No code of theirs
(Sci Rep 16, 14774, 2026) is public: what is said of their network is built here in our words, and
agreement is not claimed.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.model.update(
        dims=3,
        patch=2,
        channels=(32, 32, 64),
        attention=(True, True, True),
        head_width=16,
        paths=2,
        pool=(4, 2, 1),
    )
    settings.diffusion.time_exponent = 0.25
    settings.augment.probability = 0.5
    settings.train.update(images=4_000, batch=2, warmup=200)
    settings.train.update(log=200, evaluate=2_000, sample=2_000, checkpoint=2_000)
    settings.sampler.batch = 1
    return settings
