#!/usr/bin/env bash
# Pictures: train on PNG slices of MR, translate PNG slices of CT of other patients, score by file name.
#
#   CONTOURDIFF_DATA=DIR experiments/003_pictures/run.sh OUT
#
# DIR/png2d holds harvard_mr_extra, harvard_ct and harvard_mr (README.md says from where).
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
data=${CONTOURDIFF_DATA:?name the folder that holds png2d}/png2d
mkdir -p "$out"

contourdiff inspect --overwrite --out="$out/inspected" "$data/harvard_mr_extra" "$data/harvard_ct"
[ -d "$out/store" ] || contourdiff prepare --source="$data/harvard_mr_extra" --preset=mr --pixel_spacing=1 \
    --spacing=2.7 --size=96 --validation=0 --out="$out/store"
contourdiff train --store="$out/store" --workdir="$out/run" --config.train.images=3600 \
    --config.diffusion.time_exponent=0.1 --config.augment.probability=0.5 --config.train.sample=0 --config.train.checkpoint=0
# A CT shown through an unknown window has no HU: its greys are taken as they are, as those of MR.
contourdiff translate --run="$out/run" --source="$data/harvard_ct" --preset=mr --pixel_spacing=1 --steps=1 \
    --out="$out/translated"
contourdiff evaluate --translated="$out/translated" --truth="$data/harvard_mr" --source="$data/harvard_ct" \
    --real="$data/harvard_mr_extra" --grid=model --overwrite --out="$out/scores"
python "$here/../record.py" "$out" "$here"
