#!/bin/sh
# Trajectory matching with FreD. Without arguments: CIFAR-10 at ipc 1 with the published settings.
# Train the experts first: sh TM/scripts/run_buffer.sh
#   DATASET=digits sh TM/scripts/run_TM_FreD.sh
#   DATASET=MNIST IPC=1 sh TM/scripts/run_TM_FreD.sh --num_eval 3
# Environment variables: DATASET, IPC, DATA_PATH, SAVE_PATH, BUFFER_PATH, PYTHON, NPROC.
# Flags are passed to TM/distill.py (see its --help).
# The hyper-parameters are in common/recipes/TM.toml.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" TM/distill.py CIFAR10 1 "IPC DATA_PATH SAVE_PATH BUFFER_PATH" "$@"
