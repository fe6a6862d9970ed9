# SPDX-License-Identifier: Apache-2.0
"""Real patients without pairs: the recipe that scored best on them (experiments/021_real).

    contourdiff prepare   --source=scans/mr --out=stores/mr --preset=mr --spacing=2 --size=128
    contourdiff train     --config=configs/patients.py --store=stores/mr --workdir=runs/mr
    contourdiff translate --run=runs/mr --source=scans/ct --preset=ct --out=translated

A regression learns from the target alone, in 8 minutes of one core for slices of 128 px, and sees
of a source its contours and the picture in which they are sought. It draws no noise: images are
smooth, and one source has one translation. For samples, or where nothing but contours may be seen,
--config.method=diffusion and --config.model.conditions="('contour',)" are the way back; what these
cost is in the table of experiments/021_real.
"""

from contourdiff_jax import config


def get_config():
    settings = config.default()
    settings.method = "regression"
    settings.augment.probability = 0.5
    # Contours of CT lack what those of MR have, and have what is noise.
    settings.disturbance.thresholds = 4.0
    settings.model.update(conditions=("contour", "picture"), patch=2)
    settings.train.update(images=6_000, sample=3_000, checkpoint=3_000)
    return settings
