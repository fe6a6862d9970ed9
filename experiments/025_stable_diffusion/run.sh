#!/usr/bin/env bash
# Stable Diffusion 1.5 with a ControlNet, at its full size: import, one answer of each part, export. How long, how much memory, and the same?
#
#   experiments/025_stable_diffusion/run.sh OUT
#
# Needs the environment of `make test-parity` (PyTorch, diffusers, transformers) and 20 GB of disk; its python comes first on PATH.
set -euo pipefail
out=${1:?usage: run.sh OUT}
mkdir -p "$out"
python "$(dirname "$0")/measure.py" "$out"
