#!/bin/sh
# Experts for trajectory matching. Without arguments: CIFAR-10, 100 experts trained for 50 epochs, as published.
#   DATASET=digits sh TM/scripts/run_buffer.sh
#   sh TM/scripts/run_buffer.sh --num_experts 10 --keep_epochs 6
# Environment variables: DATASET, DATA_PATH, BUFFER_PATH, PYTHON, NPROC. Flags are passed to TM/buffer.py (see its --help).
# Experts that are already in the buffer are not trained again.
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" TM/buffer.py CIFAR10 "" "DATA_PATH BUFFER_PATH" "$@"
