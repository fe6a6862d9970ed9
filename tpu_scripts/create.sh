#!/usr/bin/env bash
# Makes a TPU by a queued resource of the same name, and waits until it is ready. One that is ready
# stays as it is; one that was preempted is deleted and made anew.
#
#   TPU_NAME=pod ZONE=us-west4-a ACCELERATOR_TYPE=v5litepod-16 RUNTIME_VERSION=v2-alpha-tpuv5-lite \
#       [SPOT=1] tpu_scripts/create.sh [further flags of `queued-resources create`]
set -euo pipefail
: "${TPU_NAME:?what to call the TPU}"
: "${ZONE:?zone, such as us-west4-a}"
: "${ACCELERATOR_TYPE:?such as v5litepod-16}"
: "${RUNTIME_VERSION:?of the VMs, such as v2-alpha-tpuv5-lite}"

request=(gcloud compute tpus queued-resources)
node() {
    gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" --format='value(state)' 2>/dev/null || true
}
queued() {
    "${request[@]}" describe "$TPU_NAME" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || true
}

until [ "$(node)" = READY ]; do
    case "$(queued):$(node)" in
    :*) "${request[@]}" create "$TPU_NAME" --node-id="$TPU_NAME" --zone="$ZONE" \
        --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION" ${SPOT:+--spot} "$@" ;;
    SUSPENDED:* | *:PREEMPTED) "${request[@]}" delete "$TPU_NAME" --zone="$ZONE" --force --quiet ;;
    FAILED:*)
        echo "create.sh: $TPU_NAME: the request failed; delete.sh removes it, and \`${request[*]} describe\` says why" >&2
        exit 1
        ;;
    esac
    sleep "${POLL:-30}"
done
