#!/bin/sh
# Robustness. Without further words: the authors' CIFAR-10 set at ipc 1 on CIFAR-10-C at level 5, as published.
#   SYNSET=runs/TM/CIFAR10/ipc1/NAME/synset.safetensors sh corruption-exp/scripts/run.sh
#   SYNSET=FILE LEVEL=all sh corruption-exp/scripts/run.sh --output results/robustness
#   BASELINE=random DATASET=CIFAR10 sh corruption-exp/scripts/run.sh
#   DATASET=ImageNet SUBSET=imagenette IPC=1 sh corruption-exp/scripts/run.sh
# Environment: SYNSET or BASELINE, DATASET, SUBSET, IPC, LEVEL, TARGET_DATASET, TARGET_PATH, SYNSET_PATH, DATA_PATH,
# PYTHON. Flags go on to corruption-exp/evaluate.py (see --help there).
export LEVEL="${LEVEL:-5}"
exec sh "$(dirname -- "$0")/../../common/run.sh" corruption-exp/evaluate.py "" "" \
  "SYNSET BASELINE SUBSET IPC LEVEL TARGET_DATASET TARGET_PATH SYNSET_PATH DATA_PATH" "$@"
