#!/bin/sh
# Distribution matching with FreD. Without arguments: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DM/scripts/run_DM_FreD.sh
#   DATASET=MNIST IPC=1 sh DM/scripts/run_DM_FreD.sh --num_eval 3
# Environment variables: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags are passed to DM/distill.py (see its --help).
# The hyper-parameters are in common/recipes/DM.toml.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" DM/distill.py CIFAR10 2 "IPC DATA_PATH SAVE_PATH" "$@"
