#!/bin/sh
# Trajectory matching with FreD. Without arguments: CIFAR-10 at ipc 1 with the published settings.
# Train the experts first: sh TM/scripts/run_buffer.sh
#   DATASET=digits sh TM/scripts/run_TM_FreD.sh
#   DATASET=MNIST IPC=1 sh TM/scripts/run_TM_FreD.sh --num_eval 3
# Environment variables: DATASET, IPC, DATA_PATH, SAVE_PATH, BUFFER_PATH, PYTHON, NPROC.
# Flags are passed to TM/distill.py (see its --help).
# The hyper-parameters are in common/recipes/TM.toml.
exec sh "$(dirname -- "$0")/../../common/run.sh" TM/distill.py CIFAR10 1 "IPC DATA_PATH SAVE_PATH BUFFER_PATH" "$@"
