# SPDX-License-Identifier: Apache-2.0
"""Diffusion of whole volumes with the enhanced network, after Ma, Chen & Liang, on a GPU.

    contourdiff prepare --source=scans/mr --out=stores/mr --preset=mr --spacing=1 --size=256 \\
        --slice_spacing=1
    contourdiff train --config=configs/enhanced_3d.py --store=stores/mr --workdir=runs/enhanced
    contourdiff translate --run=runs/enhanced --source=scans/ct --preset=ct --out=translated

Brains of 1 mm a side, learnt from patches of 64 x 96 x 96 and drawn in tiles of as much that
overlap by a quarter. Their system (Sci Rep 16, 14774, 2026) sees the source volume, has blocks of
two paths and attention that pools before and upsamples after; no code and no numbers of it are
public. What is built here is in our words and agreement is not claimed; with a paired store,
--config.model.conditions="('source',)" shows it what theirs sees. Not run to the end yet: no
numbers are claimed for it.

Pelvises have slices of 3 mm or so of pixels of 1 mm: there --config.model.planar=1 keeps the first
resolution within its slices, after which voxels are 3 x 2 x 2 mm, or 2 for slices of 4 mm and more.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.model.update(
        dims=3,
        channels=(32, 64, 128, 256),
        layers=2,
        paths=2,
        attention=(False, True, True, True),
        pool=(4, 4, 2, 1),
        head_width=64,
        dtype="bfloat16",
        rematerialise=True,
    )
    settings.volume.update(depth=64, side=96)
    settings.augment.probability = 0.5
    settings.train.update(
        images=100_000,
        batch=2,
        learning_rate=2e-4,
        warmup=2_000,
        ema_halflife=5_000,
        log=400,
        evaluate=5_000,
        sample=10_000,
        checkpoint=5_000,
    )
    settings.sampler.update(steps=20, tiles=0.25, batch=2)
    return settings
