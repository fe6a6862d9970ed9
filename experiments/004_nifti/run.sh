#!/usr/bin/env bash
# NIfTI: train on the T1 of one patient, translate the T2 of another, score against the T1 of that one.
#
#   CONTOURDIFF_DATA=DIR experiments/004_nifti/run.sh OUT
#
# DIR/nifti/open_ms holds longitudinal_raw and mni (README.md says from where).
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
data=${CONTOURDIFF_DATA:?name the folder that holds nifti/open_ms}/nifti/open_ms
mkdir -p "$out"

contourdiff inspect --overwrite --out="$out/inspected" "$data/longitudinal_raw" "$data"/mni/patient07_T[12].nii.gz
[ -d "$out/store" ] || contourdiff prepare --source="$data/longitudinal_raw" --select=T1W --preset=mr \
    --spacing=2.4 --size=96 --out="$out/store"
contourdiff train --store="$out/store" --workdir="$out/run" --config.train.images=3600 \
    --config.diffusion.time_exponent=0.1 --config.augment.probability=0.5 --config.train.sample=0 --config.train.checkpoint=0
contourdiff translate --run="$out/run" --source="$data/mni/patient07_T2.nii.gz" --preset=mr --steps=1 \
    --out="$out/translated"
contourdiff evaluate --translated="$out/translated" --truth="$data/mni/patient07_T1.nii.gz" \
    --source="$data/mni/patient07_T2.nii.gz" --grid=model --overwrite --out="$out/scores"
python "$here/../record.py" "$out" "$here"
