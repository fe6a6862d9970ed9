#!/usr/bin/env bash
# DICOM: a head CT with a tilted gantry and uneven gaps, translated by the model of the rendered heads.
#
#   CONTOURDIFF_DATA=DIR experiments/005_dicom/run.sh OUT RUN
#
# DIR/dicom holds ge_head_ct (README.md says from where); RUN is OUT/run of experiments/001_heads.
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT RUN}
run=${2:?usage: run.sh OUT RUN}
scan=${CONTOURDIFF_DATA:?name the folder that holds dicom}/dicom/ge_head_ct
mkdir -p "$out"

contourdiff inspect --overwrite --out="$out/inspected" "$scan"
contourdiff translate --run="$run" --source="$scan" --preset=ct --steps=2 --out="$out/translated"
contourdiff translate --run="$run" --source="$scan" --preset=ct --format=dicom --steps=2 --out="$out/series"
contourdiff evaluate --translated="$out/translated" --source="$scan" --overwrite --out="$out/scores"
python "$here/places.py" "$scan" "$out" > "$out/places.json"
python "$here/../record.py" "$out" "$here"
