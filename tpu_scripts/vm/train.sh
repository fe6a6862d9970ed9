#!/usr/bin/env bash
# On a TPU VM, called by ../run.sh: trains as a service of the system, which goes on when the
# connection is lost, and is told to save by SIGTERM when the VM is taken back.
#
#   RUN=runs/mr bash vm/train.sh [flags of `train`]
set -euo pipefail
: "${RUN:?folder of the run in the bucket}"
cd "$(dirname "$0")/../.."

sudo systemctl stop contourdiff 2>/dev/null || true # left by a lost connection: it saves, and is resumed
touch ~/train.log
tail --lines=0 --follow ~/train.log &
trap 'kill "$!"' EXIT
sudo systemd-run --unit=contourdiff --uid="$(id -u)" --working-directory="$PWD" --collect --quiet --wait \
    --property=After=bucket.service --property=StandardOutput="append:$HOME/train.log" --property=StandardError=inherit \
    "$PWD/.venv/bin/contourdiff" train --coordinator=auto --store="$HOME/store" --workdir="$HOME/bucket/$RUN" "$@"
