#!/bin/sh
# Behind every scripts/run_*.sh: sh common/run.sh SCRIPT DATASET IPC VARIABLES [FLAGS]
# Runs SCRIPT (relative to the repository's root) with --dataset, the flags that the environment sets (VARIABLES names those
# which the script takes, e.g. "IPC DATA_PATH"), then FLAGS. Without DATASET in the environment the script's own is taken,
# and its IPC unless the environment has one; an empty one is not passed on. PYTHON names the interpreter, NPROC how many
# processes torchrun starts on this machine; without it there is one, started plainly.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
script=$1 default_dataset=$2 default_ipc=$3 variables=$4
shift 4
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; else PYTHON=python3; fi
fi
if [ -z "${DATASET:-}" ]; then
  DATASET=$default_dataset
  IPC=${IPC:-$default_ipc}
fi
# Each goes before those that are there, so the last one comes first.
backwards=
for name in $variables; do backwards="$name $backwards"; done
for name in $backwards; do
  eval "value=\${$name:-}"
  if [ -n "$value" ]; then set -- "--$(printf %s "$name" | tr '[:upper:]' '[:lower:]')" "$value" "$@"; fi
done
if [ -n "$DATASET" ]; then set -- --dataset "$DATASET" "$@"; fi
set -- "$root/$script" "$@"
case ${NPROC:-1} in
  gpu | cpu | auto) ;; # which torchrun counts
  0* | *[!0-9]*)
    printf 'error: NPROC=%s is no number of processes: give 1 or more, or leave it unset\n' "$NPROC" >&2
    exit 2
    ;;
esac
if [ -n "${NPROC:-}" ]; then set -- -m torch.distributed.run --standalone --nproc_per_node "$NPROC" "$@"; fi
exec "$PYTHON" "$@"
