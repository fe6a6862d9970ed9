#!/usr/bin/env bash
# Copies a run from the bucket to this machine; needs no TPU. Repeated, it copies what is new.
#
#   BUCKET=mine RUN=runs/mr OUT=runs/mr tpu_scripts/fetch.sh
set -euo pipefail
: "${BUCKET:?bucket with the run, without gs://}"
: "${RUN:?folder of the run in the bucket}"
: "${OUT:?folder to copy it to}"

mkdir -p "$OUT"
# Checkpoints that are being written are left out.
gcloud storage rsync "gs://$BUCKET/$RUN" "$OUT" --recursive --exclude='.*orbax-checkpoint-tmp.*'
