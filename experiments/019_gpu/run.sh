#!/usr/bin/env bash
# All that is to be measured on a GPU, in two parts of eight minutes at most.
#
#   experiments/019_gpu/run.sh [--small] [--wheels=DIR] [--part=1|2] [--seconds=480] OUT
#
#   --small       everything on two cores of a CPU in minutes: proves the script, measures nothing
#   --wheels=DIR  installs what the machine lacks from the wheels of wheels.sh; nothing is downloaded or built
#   --part=N      one part alone; both by default
#   --seconds=N   of a part at most; of it each step has a share
#
# Each step writes OUT/STEP.json as soon as it knows something and OUT/STEP.log, and has a time limit. What became of
# it is a line of OUT/steps.jsonl: one that fails, or is stopped, leaves what it had, and the rest goes on. The exit
# status is 1 then, and the steps are named. Data are generated; they lie in a folder that goes away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
usage='usage: run.sh [--small] [--wheels=DIR] [--part=1|2] [--seconds=N] OUT'
small= wheels= parts=(1 2) seconds=480 out=
for word; do
    case $word in
        --small) small=--small ;;
        --wheels=*) wheels=${word#*=} ;;
        --part=[12]) parts=("${word#*=}") ;;
        --seconds=[1-9]*) seconds=${word#*=} ;;
        -*) echo "run.sh: $word: no such flag; $usage" >&2; exit 2 ;;
        *) out=$word ;;
    esac
done
[ -n "$out" ] || { echo "$usage" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --find-links "$wheels" --target "$work/site" "$wheels"/*.whl ||
        { echo "run.sh: --wheels=$wheels: cannot be installed; fill it with wheels.sh" >&2; exit 2; }
fi
export PYTHONPATH=$root:$work/site PYTHONUNBUFFERED=1
export JAX_COMPILATION_CACHE_DIR=$work/xla XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
if [ -n "$small" ]; then
    export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=1 XLA_FLAGS=--xla_backend_optimization_level=0
else
    export CONTOURDIFF_TEST_PLATFORMS=cuda,cpu
fi
failed=()

step() { # NAME SHARE: has step NAME's script do its work, for so many hundredths of a part at most
    local name=$1 limit=$(($2 * seconds / 100)) began=$SECONDS status=0 left=$((deadline - SECONDS))
    [ "$limit" -lt "$left" ] || limit=$left
    echo "$name: $limit s at most"
    if [ "$limit" -le 0 ]; then
        status=124
    else
        timeout --kill-after=10 "$limit" "$python" "$here/$name.py" $small "$out/$name.json" "$work/$name" \
            >"$out/$name.log" 2>&1 || status=$?
    fi
    printf '{"step": "%s", "status": %d, "seconds": %d, "limit": %d}\n' "$name" $status $((SECONDS - began)) "$limit" \
        >>"$out/steps.jsonl"
    if [ $status -ne 0 ]; then
        failed+=("$name")
        echo "$name: status $status after $((SECONDS - began)) s, see $out/$name.log" >&2
        [ -e "$out/$name.json" ] || printf '{"failed": %d}\n' $status >"$out/$name.json"
    fi
}

for part in "${parts[@]}"; do
    deadline=$((SECONDS + seconds))
    if [ "$part" = 1 ]; then # by worth
        step machine 8
        step published 58
        step volume 17
        step suite 30
    else
        step heads 70
        step methods 36
    fi
done
[ ${#failed[@]} -eq 0 ] || { echo "run.sh: not done: ${failed[*]}" >&2; exit 1; }
