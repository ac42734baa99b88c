#!/bin/sh
# Tests networks trained on a synthetic set on corrupted or shifted test images. Without variables and flags it tests
# the authors' CIFAR-10 set at ipc 1 on CIFAR-10-C at level 5, as published.
#   SYNSET=runs/TM/CIFAR10/ipc1/NAME/synset.safetensors sh corruption-exp/scripts/run.sh
#   SYNSET=FILE LEVEL=all sh corruption-exp/scripts/run.sh --output results/robustness
#   BASELINE=random DATASET=CIFAR10 sh corruption-exp/scripts/run.sh
#   DATASET=ImageNet SUBSET=imagenette IPC=1 sh corruption-exp/scripts/run.sh
# Environment variables: SYNSET or BASELINE, DATASET, SUBSET, IPC, LEVEL, TARGET_DATASET, TARGET_PATH, SYNSET_PATH,
# DATA_PATH, PYTHON. Flags are passed to corruption-exp/evaluate.py (see its --help).
export LEVEL="${LEVEL:-5}"
# The repository is FRED_HOME, or where this file lies or a link to it leads, or the current folder: batch systems run a copy.
for root in ${FRED_HOME:+"$FRED_HOME"} "$(dirname -- "$(readlink -f -- "$0")")/../.." "$PWD" ""; do
  if [ -f "$root/common/run.sh" ]; then break; fi
done
if [ -z "$root" ]; then
  echo "error: this copy of a script does not find its repository: start it there, or set the variable FRED_HOME to it" >&2
  exit 2
fi
exec sh "$root/common/run.sh" corruption-exp/evaluate.py "" "" \
  "SYNSET BASELINE SUBSET IPC LEVEL TARGET_DATASET TARGET_PATH SYNSET_PATH DATA_PATH" "$@"
