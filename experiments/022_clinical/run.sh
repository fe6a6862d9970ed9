#!/usr/bin/env bash
# Rendered CT beside real CT: four heads, as rendered now and as they were before.
#
#   CONTOURDIFF_DATA=DIR experiments/022_clinical/run.sh OUT
set -euo pipefail
here=$(dirname "$0")
out=${1:?usage: run.sh OUT}
data=${CONTOURDIFF_DATA:?name the folder that holds nifti, dicom and real}
mkdir -p "$out/labels"
for head in 01 05 10 13; do
    ln -sfn "$(realpath "$data")/nifti/synthseg_labels/training_seg_$head.nii.gz" "$out/labels/"
done
before=9307cf4 # the last commit with the kind renderer, which needs nothing of the package
git -C "$here" show "$before:experiments/001_heads/render_heads.py" >"$out/before.py"
[ -d "$out/heads_kind" ] ||
    python "$out/before.py" --labels "$out/labels" --out "$out/heads_kind" --folds 1
[ -d "$out/heads_clinical" ] ||
    python "$here/../001_heads/render_heads.py" --labels "$out/labels" --out "$out/heads_clinical" --folds 1
python "$here/compare.py" "$out" kind="$out/heads_kind" clinical="$out/heads_clinical"
