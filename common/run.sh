#!/bin/sh
# Behind every scripts/run_*.sh: sh common/run.sh SCRIPT DATASET IPC [FLAGS]
# Runs SCRIPT (relative to the repository's root) with what the environment sets: DATASET, IPC, DATA_PATH, SAVE_PATH,
# BUFFER_PATH, PYTHON; then FLAGS. Without DATASET the script's own is taken, and its IPC unless the environment has one.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
script=$1 default_dataset=$2 default_ipc=$3
shift 3
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; else PYTHON=python3; fi
fi
if [ -z "${DATASET:-}" ]; then
  DATASET=$default_dataset
  IPC=${IPC:-$default_ipc}
fi
exec "$PYTHON" "$root/$script" --dataset "$DATASET" ${IPC:+--ipc "$IPC"} \
  ${DATA_PATH:+--data_path "$DATA_PATH"} ${SAVE_PATH:+--save_path "$SAVE_PATH"} \
  ${BUFFER_PATH:+--buffer_path "$BUFFER_PATH"} "$@"
