#!/usr/bin/env bash
# Rendered heads: segmenters trained on CT translated to MR, on the CT itself and on real MR, tested on real MR.
#
#   experiments/014_segment/run.sh HEADS RUN OUT
#
# HEADS and RUN are the folders heads and run that experiments/001_heads/run.sh has made.
set -euo pipefail
here=$(dirname "$0")
usage="usage: run.sh HEADS RUN OUT"
heads=${1:?$usage} run=${2:?$usage} out=${3:?$usage}
mkdir -p "$out"

contourdiff translate --run="$run" --source="$heads/train_ct" --preset=ct --steps=2 --out="$out/translated"
# Lesions (label 5) are left out: CT does not show them, so that nothing could be learnt of them.
contourdiff segment --train_images="$out/translated" --train_labels="$heads/train_ct_labels" \
    --lower_images="$heads/train_ct" --lower_preset=ct \
    --upper_images="$heads/train_mr" --upper_labels="$heads/train_mr_labels" \
    --test_images="$heads/test_mr" --test_labels="$heads/test_labels" \
    --classes=1,2,3,4 --spacing=2.4 --size=96 --images=4000 --out="$out/scores"
contourdiff report --overwrite --out="$out/report.html" "$out/scores"
python "$here/../record.py" "$out" "$here"
