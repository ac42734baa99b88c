#!/bin/sh
# Distribution matching with FreD. Without further words: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DM/scripts/run_DM_FreD.sh
#   DATASET=MNIST IPC=1 sh DM/scripts/run_DM_FreD.sh --num_eval 3
# Environment: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON. Flags go on to DM/distill.py (see --help there).
# The hyper-parameters themselves are in common/recipes/DM.toml.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  if [ -x "$root/.venv/bin/python" ]; then PYTHON=$root/.venv/bin/python; else PYTHON=python3; fi
fi
if [ -z "${DATASET:-}" ]; then
  DATASET=CIFAR10
  IPC=${IPC:-2}
fi
exec "$PYTHON" "$root/DM/distill.py" --dataset "$DATASET" ${IPC:+--ipc "$IPC"} \
  ${DATA_PATH:+--data_path "$DATA_PATH"} ${SAVE_PATH:+--save_path "$SAVE_PATH"} "$@"
