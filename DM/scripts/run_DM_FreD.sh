#!/bin/sh
# Distribution matching with FreD. Without arguments: CIFAR-10 at ipc 2 with the published settings.
#   DATASET=digits sh DM/scripts/run_DM_FreD.sh
#   DATASET=MNIST IPC=1 sh DM/scripts/run_DM_FreD.sh --num_eval 3
# Environment variables: DATASET, IPC, DATA_PATH, SAVE_PATH, PYTHON, NPROC. Flags are passed to DM/distill.py (see its --help).
# The hyper-parameters are in common/recipes/DM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" DM/distill.py CIFAR10 2 "IPC DATA_PATH SAVE_PATH" "$@"
