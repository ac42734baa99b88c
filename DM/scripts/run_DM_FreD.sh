#!/bin/sh
# Distribution matching with FreD. Without further words: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DM/scripts/run_DM_FreD.sh
#   DATASET=MNIST IPC=1 sh DM/scripts/run_DM_FreD.sh --num_eval 3
# Environment: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags go on to DM/distill.py (see --help there).
# The hyper-parameters themselves are in common/recipes/DM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" DM/distill.py CIFAR10 2 "IPC DATA_PATH SAVE_PATH" "$@"
