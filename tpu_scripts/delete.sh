#!/usr/bin/env bash
# Deletes a TPU with its queued resource, whatever it is doing. The bucket is not touched.
#
#   TPU_NAME=pod ZONE=us-west4-a tpu_scripts/delete.sh
set -euo pipefail
: "${TPU_NAME:?what the TPU is called}"
: "${ZONE:?zone of the TPU}"

gcloud compute tpus queued-resources delete "$TPU_NAME" --zone="$ZONE" --force --quiet
